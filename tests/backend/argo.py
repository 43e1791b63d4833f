"""What Argo tries again, when, and how often."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lfm.pipelines.compiled import Json, Spec

SUCCEEDED, FAILED, ERROR = "Succeeded", "Failed", "Error"


class Attempt(NamedTuple):
    """One pod of a step."""

    started: float
    ended: float
    phase: str
    """Failed: an exit code, an exception, no memory, a deadline. Error: deleted or refused by the API server."""


@dataclass(frozen=True)
class Strategy:
    """A retryStrategy. The defaults are those that KFP's stock controller merges into every template.

    manifests/kustomize/third-party/argo/base/workflow-controller-configmap-patch.yaml, templateDefaults.
    """

    limit: int = 2
    policy: str = "OnError"
    wait: float = 0
    factor: float = 1
    longest: float = 0
    """Seconds since the first attempt began after which there is none (MaxDuration); 0: no such limit."""


def strategy_of(task: Json, policy: str = "OnError") -> Strategy:
    """The strategy of a step (compiler/argocompiler/container.go:577, 667): the file has no policy, so the merged one.

    Args:
        task: the task in the file.
        policy: of the controller's templateDefaults.
    """
    said = task.get("retryPolicy")
    if not said:
        return Strategy(policy=policy)
    return Strategy(
        limit=int(said.get("maxRetryCount", 0)),
        policy=policy,
        wait=seconds(said.get("backoffDuration", "0s")),
        factor=float(said.get("backoffFactor", 1)),
        longest=seconds(said.get("backoffMaxDuration", "0s")),
    )


def seconds(text: str) -> float:
    """A duration of the file, as in 60s."""
    return float(text.removesuffix("s"))


def wait_before_next(attempts: Sequence[Attempt], strategy: Strategy) -> float | None:
    """Seconds until the next attempt; None: there is none (workflow/controller/operator.go:978-1155)."""
    last = attempts[-1]
    if last.phase == SUCCEEDED:
        return None
    wait = 0.0
    if strategy.wait or strategy.longest:
        ends = attempts[0].started + strategy.longest
        wait = strategy.wait * max(strategy.factor, 1) ** (len(attempts) - 1)
        if strategy.longest and last.ended + wait > ends:
            return None  # "Max duration limit exceeded", "Backoff would exceed max duration limit"
    again = {"Always": (FAILED, ERROR), "OnError": (ERROR,), "OnFailure": (FAILED,)}[strategy.policy]
    return wait if last.phase in again and len(attempts) <= strategy.limit else None


def killed_at(attempts: Sequence[Attempt], strategy: Strategy, pod_seconds: float | None) -> float | None:
    """When the next attempt is killed for time: its own limit, and, if it is a retry, MaxDuration (operator.go:1094).

    Args:
        attempts: those before it, at least one.
        strategy: of the step.
        pod_seconds: activeDeadlineSeconds of the pod.

    Returns:
        Seconds since the first attempt began.
    """
    began = attempts[-1].ended + (wait_before_next(attempts, strategy) or 0) - attempts[0].started
    ends = [began + pod_seconds] if pod_seconds else []
    return min([*ends, *([strategy.longest] if strategy.longest else [])], default=None)


class Cost(NamedTuple):
    """What a pod costs that is refused for good."""

    pods: int
    seconds: float


def refused_for_good(spec: Spec, path: str, policy: str = "OnError") -> Cost:
    """What it costs if the API server refuses the pod of a step each time: a quota, an admission rule, an invalid pod.

    It is Error, and so is the template above it, and each tries again: the step's own strategy, then the step's
    executor, every group above, the root and the entrypoint with the stock one. Seen: 81 tries for a plain task.

    Args:
        spec: the compiled file.
        path: names of the groups and of the step, joined by /.
        policy: of the controller's templateDefaults.
    """
    places = {place.path: place for place in spec.places()}
    groups = path.count("/")
    levels = [strategy_of(places[path].task, policy), *[Strategy(policy=policy)] * (groups + 3)]
    return _cost(levels)


def _cost(levels: list[Strategy]) -> Cost:
    if not levels:
        return Cost(1, 0.0)
    pods, attempts, now = 0, list[Attempt](), 0.0
    while True:
        inner = _cost(levels[:-1])
        pods += inner.pods
        attempts.append(Attempt(now, now + inner.seconds, ERROR))
        now += inner.seconds
        wait = wait_before_next(attempts, levels[-1])
        if wait is None:
            return Cost(pods, now)
        now += wait
