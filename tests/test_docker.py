"""The Docker runner: what a container is shown, how its output and its end arrive, what is said when none starts."""

import os
import signal
from pathlib import Path

import docker
import pytest
from kfp import dsl, local

from lfm.config.presets import load
from lfm.config.schema import RunConfig
from lfm.errors import InputError
from lfm.pipelines.docker_runner import _environment, _lines, _mounts, _run, docker_steps
from tests.containers import ROOT, base_image, build

CONFIG = load("fashion-mnist-lt", {})
containers = pytest.mark.containers


@pytest.fixture(scope="module")
def image(daemon: docker.DockerClient) -> str:
    """Any that has a shell."""
    assert daemon.ping()
    return base_image().get("BASE_IMAGE") or build(ROOT).image


def shown(config: RunConfig) -> dict[str, bool]:
    """Mounted places, and whether they can be written to."""
    mounts = _mounts(config)
    assert all(mount["Source"] == mount["Target"] for mount in mounts)
    return {mount["Target"]: not mount["ReadOnly"] for mount in mounts}


def test_a_step_is_shown_the_home_and_what_the_configuration_names(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_CA_BUNDLE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "names.json").touch()
    assert shown(CONFIG) == {str(home): True}
    config = load("custom-scratch", {"data.source": "photos", "data.class_names": "lists/names.json"})
    assert shown(config) == {str(home): True, str(tmp_path / "photos"): False, str(tmp_path / "lists"): False}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs/mlflow.db")
    assert shown(CONFIG) == {str(home): True, str(tmp_path / "runs"): True}


def test_a_folder_that_would_hide_one_of_the_container_is_refused(home: Path) -> None:
    assert home
    with pytest.raises(InputError, match=r"/tmp cannot be mounted in a container; move"):
        _mounts(load("custom-scratch", {"data.source": "/tmp"}))


def test_the_callers_variables_reach_a_step_but_not_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "LFM_HOME", "LFM_COMMIT", "MLFLOW_RUN_ID", "PYTHONPATH", "PATH"):
        monkeypatch.setenv(name, "x")
    assert {"AWS_ACCESS_KEY_ID", "LFM_HOME", "MLFLOW_RUN_ID"} <= _environment().keys()
    assert not {"LFM_COMMIT", "PYTHONPATH", "PATH", "HOME"} & _environment().keys()


def test_lines_survive_chunks_that_end_anywhere() -> None:
    text = "one ▕██▏ 5%\rtwo ▕███▏ 9%\r\nthree\nlast"
    data = text.encode()
    for size in (1, 2, 3, 7, len(data)):
        chunks = [data[i : i + size] for i in range(0, len(data), size)]
        assert list(_lines(chunks)) == ["one ▕██▏ 5%\n", "two ▕███▏ 9%\n", "three\n", "last\n"]


def test_no_daemon_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with (
        pytest.raises(InputError, match=r"no Docker daemon answers .*start it") as error,
        docker_steps("lfm:x", CONFIG),
    ):
        pass
    assert "\n" not in str(error.value)


@containers
def test_an_image_that_is_not_there_is_said_with_its_remedy(daemon: docker.DockerClient) -> None:
    assert daemon.ping()
    with (
        pytest.raises(InputError, match="the image lfm:never-built is not on this machine; build it with: make image"),
        docker_steps("lfm:never-built", CONFIG),
    ):
        pass


@containers
@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_of_a_step_that_ends_at_once_is_not_lost(
    daemon: docker.DockerClient, image: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        assert _run(daemon.containers.create(image, ["sh", "-c", f"echo said; exit {code}"])) == code
    assert capsys.readouterr().out == "said\n" * 3
    assert not daemon.containers.list(all=True, filters={"ancestor": image})


@containers
def test_a_step_that_is_killed_says_so(
    daemon: docker.DockerClient, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(daemon.containers.create(image, ["sh", "-c", "sh -c 'kill -9 $$'"])) == 128 + 9
    out = capsys.readouterr().out
    assert "error: the step was ended from outside by SIGKILL, most likely for lack of memory" in out


@containers
def test_an_interrupt_reaches_every_process_and_no_container_stays(
    daemon: docker.DockerClient, image: str, tmp_path: Path
) -> None:
    inner = 'trap "touch /out/checkpoint; exit 0" TERM; touch /out/ready; while :; do sleep 0.05; done'
    container = daemon.containers.create(
        image,
        ["sh", "-c", f"sh -c '{inner}'; true"],
        volumes={str(tmp_path): {"bind": "/out", "mode": "rw"}},
    )

    def interrupt_when_ready(*_: object) -> None:
        if (tmp_path / "ready").exists():
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt_when_ready)
    signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            _run(container)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert (tmp_path / "checkpoint").exists()
    assert not daemon.containers.list(all=True, filters={"id": container.id})


@dsl.component(base_image="an-image:that-no-one-has", install_kfp_package=False)
def look(folder: str, fails: bool, seen: dsl.Output[dsl.Dataset]) -> dict:  # type: ignore[type-arg]
    import os
    from pathlib import Path

    if fails:
        raise SystemExit(2)
    Path(seen.path).write_text("▕ " + (Path(folder) / "name.txt").read_text())
    return {
        "uid": os.getuid(),
        "home": os.environ["LFM_HOME"],
        "task": os.environ["OF_THE_TASK"],
        "lfm": os.environ["LFM_COMMIT"],
    }


@dsl.pipeline(name="looking")
def looking(fails: bool = False) -> dict:  # type: ignore[type-arg]
    task = look(folder="photos", fails=fails)
    task.set_env_variable("OF_THE_TASK", "kept").set_caching_options(False)
    return task.outputs["Output"]


@containers
@pytest.mark.slow
def test_kfp_runs_a_step_in_the_chosen_image_as_the_caller(
    daemon: docker.DockerClient, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert daemon.ping()
    chosen = build(ROOT).image
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/name.txt").write_text("a photo")
    home.mkdir()
    with docker_steps(chosen, load("custom-scratch", {"data.source": "photos"})) as runner:
        local.init(runner=runner, pipeline_root=str(home / "pipelines"))
        said = looking().output
        with pytest.raises(RuntimeError, match="failed"):
            looking(fails=True)
    assert said == {"uid": os.getuid(), "home": str(home), "task": "kept", "lfm": chosen.removeprefix("lfm:")}
    written = next((home / "pipelines").rglob("seen"))
    assert written.read_text() == "▕ a photo" and written.stat().st_uid == os.getuid()
