"""The jobs of a retraining: is there anything new, and is the new model better than the champion."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfm.config.schema import RunConfig
from lfm.jobs.prepare import data_key
from lfm.jobs.scoring import CHAMPION_PREDICTIONS, PREDICTIONS
from lfm.jobs.step import content, step
from lfm.progress import say
from lfm.storage.handover import resolve
from lfm.storage.store import makes_again

if TYPE_CHECKING:
    from lfm.tracking.registry import Version

CHANGED, UNCHANGED = "changed", "unchanged"
DATA_KEY = "lfm.data_key"
"""Tag of a run and of a version: `lfm.jobs.prepare.data_key` of its data. A version that `lfm run` registered gets it
from the first retraining that finds its data unchanged."""


@step
def nothing_to_do(config: dict[str, Any], load: Callable[[], Any]) -> bool:
    """Whether a retraining ends before it reads an image.

    So it does if another of the same configuration goes on that began before it, as where a schedule catches up and a
    person has started one; and if the files are those that champion or challenger was trained on, by their list.

    Args:
        config: The complete configuration.
        load: Lists the images.
    """
    from lfm.tracking import other_runs, past_runs, pipeline_run

    run_config = RunConfig.model_validate(config)
    if other := other_runs.going_on(run_config):
        why = f"left to {other}, which goes on with this very configuration"
    else:
        key, known = data_key(run_config, load), _aliased(run_config.preset)
        pipeline_run.tag({DATA_KEY: key})
        trained = {run_id: run.tags for run_id, run in past_runs.by_id(version.run for version in known).items()}
        keys = [(v.tags.get(DATA_KEY), trained.get(v.run, {}).get(DATA_KEY)) for v in known]
        same = next((version for version, of in zip(known, keys, strict=True) if key in of), None)
        if same is None or makes_again():
            return False
        why = f"unchanged: {same.aliases[0]} {same.number} of {same.name} was trained on these very files"
    with pipeline_run.step_run("data news") as run:
        say(why)
        run.tags({"lfm.outcome": UNCHANGED})
    pipeline_run.end_well()
    return True


def _aliased(name: str) -> "list[Version]":
    """Champion and challenger; without a champion none, since then everything is new."""
    from lfm.tracking import registry

    aliased = (registry.with_alias(name, alias) for alias in (registry.CHAMPION, registry.CHALLENGER))
    known = [version for version in aliased if version]
    return known if known and registry.CHAMPION in known[0].aliases else []


@step
def data_news(config: dict[str, Any], dataset: str) -> str:
    """Whether the data differ from those of the champion and the challenger: changed or unchanged.

    Without a champion everything is new. The challenger counts too: data that gave no better model once are not
    trained on again every night.
    """
    from lfm.tracking import pipeline_run, registry

    name = RunConfig.model_validate(config).preset
    with pipeline_run.step_run("data news") as run:
        found, known = content(resolve(dataset, "prepare")), _aliased(name)
        same = next((version for version in known if version.tags.get(registry.DATASET) == found), None)
        if same:
            say(f"unchanged: {same.aliases[0]} {same.number} of {name} was trained on these very data ({found[:12]})")
            run.tags({"lfm.outcome": UNCHANGED})
            if key := run.client.get_run(run.parent).data.tags.get(DATA_KEY):
                registry.tag(same.name, same.number, {DATA_KEY: key})
        else:
            say(f"data {found[:12]} are new to the champion of {name}" if known else f"{name} has no champion yet")
            return CHANGED
    pipeline_run.end_well()  # nothing comes after it
    return UNCHANGED


@step
def decide(config: dict[str, Any], dataset: str, metrics: str, uri: str) -> str:
    """Make the new version champion or challenger and keep the reason: champion or challenger."""
    from lfm.tracking import pipeline_run, registry

    name, number = RunConfig.model_validate(config).preset, uri.rpartition("/")[2]
    with pipeline_run.step_run("decide") as run:
        champion = registry.with_alias(name, registry.CHAMPION)
        promoted, why = True, "there was no champion"
        if champion and champion.number == number:
            why = "it is the champion: training gave the same weights again"
        elif champion:
            promoted, why = _compared(champion, resolve(dataset, "prepare"), Path(metrics), run)
        outcome = registry.CHAMPION if promoted else registry.CHALLENGER
        if promoted:
            registry.promote(name, number, why)
        else:
            registry.challenge(name, number, why)
        run.tags({"lfm.outcome": outcome, registry.REASON: why})
        say(f"{uri} is {outcome}: {why}")
    pipeline_run.end_well()
    return outcome


def _compared(champion: Any, dataset: str, metrics: Path, run: Any) -> tuple[bool, str]:
    """The gate's answer, or why the two cannot be compared."""
    import json

    import numpy as np

    from lfm.evaluation.promotion import gate
    from lfm.jobs.champion import input_of, of_other_data, other_data, split_images, unseen_images
    from lfm.tracking import registry

    if other_data(champion, dataset):
        return False, f"{of_other_data(champion)}, so the two are not compared; decide with lfm promote"
    if not (metrics / CHAMPION_PREDICTIONS).is_file():
        other = champion.tags.get(registry.INPUT) != input_of(dataset)
        why = "knows other classes or takes other pixels" if other else "cannot be loaded"
        return False, f"champion {champion.number} {why}, so the two do not compare; decide with lfm promote"
    same = champion.tags.get(registry.TEST) == split_images(dataset, "test")
    fair_N = unseen_images(dataset, 1.0 if same else float(champion.tags.get(registry.TEST_SHARE, 0)))
    if not fair_N.any():
        return False, (
            f"the test images are not those of champion {champion.number}, which may have trained on some of the new "
            f"ones; give the data a fixed test split, or decide with lfm promote"
        )
    label_N = np.load(Path(dataset) / "test_labels.npy", allow_pickle=False)
    new_N, old_N = (np.load(metrics / n, allow_pickle=False) == label_N for n in (PREDICTIONS, CHAMPION_PREDICTIONS))
    groups = np.array(json.loads((metrics / "metrics.json").read_text())["test"]["groups"])
    found = gate(new_N[fair_N], old_N[fair_N], (groups[label_N] == "few")[fair_N])
    run.log({"gate/all_gain": found.all.points, "gate/all_low": found.all.low}, 0)
    if found.few:
        run.log({"gate/few_gain": found.few.points, "gate/few_high": found.few.high}, 0)
    return found.promote, found.why
