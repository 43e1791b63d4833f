"""The command given something wrong: one line that says what to do, before anything is trained."""

import gzip
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import warm

HEAVY = {"torch", "torchvision", "transformers", "accelerate", "mlflow", "kfp", "numpy", "pandas", "matplotlib"}


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LFM_")}
    return kept | {"LFM_HOME": str(home)}


def lfm(home: Path, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """The command as installed."""
    command = [str(warm.INSTALLED), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment(home))


def forked(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The same where it comes as far as to import PyTorch: from a process that has done so."""
    command = [*warm.lfm(), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(home))


def assert_one_line(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", done.stderr), done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "stage 1" not in done.stdout, "refused before training"


WRONG: dict[str, tuple[list[str], str]] = {
    "an unknown preset": (["fashion-mnist"], r"unknown preset 'fashion-mnist'; did you mean fashion-mnist-lt\?"),
    "a preset like no other": (["zzz"], "unknown preset 'zzz'; known: fashion-mnist-lt"),
    "an unknown field": (
        ["fashion-mnist-lt", "--set", "stage1.epoch=3"],
        r"unknown config field 'stage1.epoch'; did you mean stage1.epochs\?",
    ),
    "a bad value": (["fashion-mnist-lt", "--set", "stage1.lr=-1"], "stage1.lr = -1: should be greater than 0"),
    "a value of another type": (["fashion-mnist-lt", "--set", "seed=abc"], "seed = 'abc': should be a valid integer"),
    "a value not in the list": (["fashion-mnist-lt", "--set", "loss.name=cee"], "loss.name = 'cee': should be 'ce', "),
    "two fields at odds": (["fashion-mnist-lt", "--set", "stage1.min_lr=1"], "min_lr 1.0 is above lr 0.002; lower it"),
    "no value": (["fashion-mnist-lt", "--set", "seed"], r"--set 'seed' is not NAME=VALUE; write it like --set "),
}


@pytest.mark.slow
def test_a_folder_without_images_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "notes.txt").write_text("no image")
    for command in (["run"], ["retrain"], ["data", "inspect"], ["data", "report"]):
        done = forked(tmp_path / "home", *command, "custom-scratch", "--set", f"data.source={tmp_path / 'photos'}")
        assert_one_line(done, r"photos has no images in class folders; lay them out as \S*photos/CLASS/")
        assert done.stdout == "" and not list((tmp_path / "home").glob("*"))


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("command", [["run"], ["data", "inspect"]], ids=" ".join)
def test_a_wrong_argument_is_refused_in_one_line(command: list[str], case: str, tmp_path: Path) -> None:
    arguments, message = WRONG[case]
    home = tmp_path / "home"
    assert_one_line(lfm(home, *command, *arguments), message)
    assert not home.exists(), "nothing was touched"


def below_a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("x")
    return tmp_path / "file" / "home"


@pytest.mark.slow
@pytest.mark.parametrize("place", [below_a_file, lambda _: Path("/proc/lfm")], ids=["below a file", "/proc"])
@pytest.mark.parametrize("command", [["run"], ["data", "inspect"]], ids=" ".join)
def test_a_home_that_cannot_be_written_is_refused_in_one_line(
    command: list[str], place: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = place(tmp_path)
    message = rf"cannot write to {folder} \(.+\); set LFM_HOME or --home to a folder you can write to"
    assert_one_line(forked(tmp_path / "home", *command, "fashion-mnist-lt", "--home", str(folder)), message)
    assert_one_line(forked(folder, *command, "fashion-mnist-lt"), message)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = lfm(tmp_path / "home", "--debug", "run", "fashion-mnist-lt", "--set", "stage1.lr=-1")
    assert done.returncode != 0
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.rstrip().endswith("InputError: stage1.lr = -1: should be greater than 0")


# --- wrong files ---


@pytest.fixture
def truncated(fashion_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "truncated"
    folder.mkdir()
    for path in fashion_folder.glob("*.gz"):
        (folder / path.name).symlink_to(path)
    short = folder / "train-labels-idx1-ubyte.gz"
    raw = gzip.decompress(short.read_bytes())[:-1000]
    short.unlink()
    short.write_bytes(gzip.compress(raw))
    return folder


@pytest.mark.slow
def test_missing_files_are_refused_in_one_line(tmp_path: Path) -> None:
    done = forked(tmp_path / "home", "data", "inspect", "fashion-mnist-lt", "--set", f"data.source={tmp_path}")
    assert_one_line(done, f"{tmp_path} has no train-images-idx3-ubyte.gz; put the four files .* data.source")
    done = forked(tmp_path / "home", "data", "inspect", "fashion-mnist-lt", "--set", "data.source=/nonexistent")
    assert_one_line(done, "data.source: /nonexistent does not exist; correct the path")


@pytest.mark.slow
def test_a_truncated_file_is_refused_in_one_line(tmp_path: Path, truncated: Path) -> None:
    done = forked(tmp_path / "home", "data", "inspect", "fashion-mnist-lt", "--set", f"data.source={truncated}")
    assert_one_line(done, rf"{truncated}/train-labels-idx1-ubyte.gz is truncated: 59,008 bytes.* 60,008; delete ")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Whole pipelines that must come to nothing, side by side: each takes its time to import KFP and MLflow."""
    folder = tmp_path_factory.mktemp("running")
    (folder / "taken").mkdir()
    missing = ["run", "fashion-mnist-lt", "--set", f"data.source={folder / 'taken'}"]
    commands = {
        "missing files": missing,
        "a folder as --json": [*missing, "--json", str(folder / "taken")],
        "an ending KFP does not take": ["compile", "fashion-mnist-lt", "-o", str(folder / "pipeline.txt")],
    }
    started = {
        name: subprocess.Popen(
            [*warm.lfm(), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(folder / name.replace(" ", "-")),
        )
        for name, command in commands.items()
    }
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.slow
def test_a_pipeline_without_its_files_ends_in_one_line(running: dict[str, subprocess.Popen[str]]) -> None:
    done = ended(running["missing files"])
    assert_one_line(done, "taken has no train-images-idx3-ubyte.gz; put the four files .* data.source")


@pytest.mark.slow
def test_a_table_that_cannot_be_written_is_refused_before_training(
    running: dict[str, subprocess.Popen[str]],
) -> None:
    """The data folder is missing as well, so that the command ends soon: --json must be looked at first."""
    assert_one_line(ended(running["a folder as --json"]), "taken")


@pytest.mark.slow
def test_a_pipeline_file_that_kfp_does_not_take_is_refused_in_one_line(
    running: dict[str, subprocess.Popen[str]],
) -> None:
    assert_one_line(ended(running["an ending KFP does not take"]), r"pipeline\.txt.*\.yaml")


# --- what works without a word of error, and fast ---


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--version"], r"lfm \d+\.\d+\.\d+\S*\n"),
        (["presets"], r"fashion-mnist-lt\n(  .*\n|\n)*  Command: lfm run fashion-mnist-lt\n(.*\n)*"),
        (["--help"], r"(.*\n)*.*\b(run|presets|compile|ui)\b(.*\n)*"),
        (["run", "--help"], r"(.*\n)*.*--set NAME=VALUE(.*\n)*.*--baseline(.*\n)*.*--home(.*\n)*"),
    ],
    ids=["--version", "presets", "--help", "run --help"],
)
def test_commands_that_only_print_import_nothing_heavy(arguments: list[str], expected: str, tmp_path: Path) -> None:
    done = lfm(tmp_path / "home", *arguments)
    assert (done.returncode, done.stderr) == (0, "") and re.fullmatch(expected, done.stdout)
    timed = subprocess.run(
        [sys.executable, "-X", "importtime", str(warm.INSTALLED), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(tmp_path / "home"),
    )
    assert timed.stdout == done.stdout
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in timed.stderr.splitlines() if "|" in line}
    assert {"lfm", "typer"} <= imported, "the list is that of the command"
    assert not imported & HEAVY
    if arguments in (["--help"], ["--version"]):  # typer itself needs pydantic to read other arguments
        assert not imported & {"pydantic", "yaml"}
    assert not (tmp_path / "home").exists()


def test_no_argument_shows_the_help(tmp_path: Path) -> None:
    done = lfm(tmp_path / "home")
    assert "Usage" in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert shutil.which(str(warm.INSTALLED)), "the command is installed"


@pytest.mark.slow
def test_a_dead_mlflow_server_is_said_in_one_line_without_its_password(tmp_path: Path) -> None:
    """Nothing listens on the discard port of loopback."""
    done = subprocess.run(
        [*warm.lfm(), "run", "fashion-mnist-lt", "--home", str(tmp_path)],
        env={**os.environ, "MLFLOW_TRACKING_URI": "http://someone:secret@127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: the MLflow server at http://127.0.0.1:9 does not answer")
    assert "secret" not in done.stdout + done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["imagenet-lt"], "put ImageNet_LT_train.txt, .* into .*downloads/imagenet-lt, or set data.source"),
        (["places-lt"], "put Places_LT_train.txt"),
        (["inaturalist2018"], "put train2018.json"),
        (["cifar100-lt", "--source", "/nonexistent"], "cifar-100-python.tar.gz"),
        (["cifar"], "unknown data set 'cifar'; did you mean cifar10?"),
    ],
)
def test_fetch_says_which_file_goes_where(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = forked(tmp_path / "home", "data", "fetch", *arguments)
    assert_one_line(done, f".*{message}")


@pytest.mark.slow
def test_fetch_explains_own_data_and_counts_what_is_there(tmp_path: Path, fashion_folder: Path) -> None:
    done = forked(tmp_path / "home", "data", "fetch", "custom")
    assert done.returncode == 0 and "image folder" in done.stdout and "manifest" in done.stdout
    done = forked(tmp_path / "home", "data", "fetch", "fashion-mnist", "--source", str(fashion_folder))
    assert done.returncode == 0 and "fashion-mnist: complete, 70,000 images of 10 classes" in done.stdout


@pytest.mark.slow
def test_a_folder_of_the_packages_name_is_not_taken_for_it(tmp_path: Path) -> None:
    """As where commands are run next to a clone: an installation for development is found after the working folder."""
    (tmp_path / "lfm").mkdir()
    program = (
        "import subprocess, sys; from lfm.cli.main import main; sys.argv = ['lfm', '--version']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.exit(subprocess.run([sys.executable, '-c', 'from lfm import __version__']).returncode)"
    )
    plain = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, env=plain, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
