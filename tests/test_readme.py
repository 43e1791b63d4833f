"""The commands of the README are real, and the documents name things that exist."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from lfm.config.overrides import field_names
from tests.warm import lfm

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = sorted(re.findall(r"^\| `(lfm [^`]+)`", README, re.MULTILINE))
ELSEWHERE = (
    "lfm run",
    "lfm report",
    "lfm compare",
    "lfm predict",
    "lfm serve",
    "lfm sweep",
    "lfm retrain",
    "lfm models",
    "lfm ui",
)  # they need a run, or are one


def call(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith(ELSEWHERE)])
def test_each_command_works(command: str, fashion_folder: Path, tmp_path: Path) -> None:
    downloads = tmp_path / ".lfm" / "downloads"
    downloads.mkdir(parents=True)
    (downloads / "fashion-mnist").symlink_to(fashion_folder)
    done = call([*lfm(), *shlex.split(command)[1:]], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("lfm run")])
def test_each_run_is_understood_and_gets_as_far_as_its_data(command: str, tmp_path: Path) -> None:
    """The runs themselves are in test_pipeline.py; here they meet no data folder, once all else of them was checked."""
    done = call([*lfm(), *shlex.split(command)[1:], "--set", f"data.source={tmp_path / 'none'}"], tmp_path)
    assert (done.returncode, done.stderr) == (
        2, f"error: data.source: {tmp_path / 'none'} does not exist; correct the path\n"
    )  # fmt: skip


@pytest.mark.slow
def test_the_commands_for_own_images_work_on_a_folder_of_photos(tmp_path: Path) -> None:
    from tests.photos import PHOTOS

    for (name, k), data in PHOTOS.items():
        path = tmp_path / "photos" / name / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (block,) = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)
    commands = block.strip().splitlines()
    assert len(commands) == 3
    for command in commands:
        done = call([*lfm(), *shlex.split(command)[1:]], tmp_path)
        assert done.returncode == 0, done.stderr
    # Of six test images: a class that keeps half of its own label, as `alpha: auto` allows, may lose one of its two.
    (score,) = re.findall(r"^lfm \+ ce .* ([\d.]+)$", done.stdout.split("Top-1")[1], re.MULTILINE)
    assert float(score) > 60, done.stdout


def test_make_lists_its_commands_and_the_readme_names_real_ones() -> None:
    listed = set(re.findall(r"make (\S+)", call(["make"], ROOT).stdout))
    assert {"demo", "test", "ui", "setup"} <= listed
    named = {
        name
        for document in ("README.md", "CONTRIBUTING.md")
        for name in re.findall(r"^make (\w+)|`make (\w+)", (ROOT / document).read_text(), re.MULTILINE)
        for name in name
        if name
    }
    assert named <= listed


PLACE = re.compile(r"`((?:lfm|tests|benchmarks|components|pipelines|docs|infra|requirements)/[^`\s]*)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md")))]
# At least so many files named and links: fewer, and the patterns have gone blind.
LEAST = {
    "README.md": (3, 8), "CONTRIBUTING.md": (15, 0), "docs/cluster.md": (4, 1), "docs/data.md": (0, 2),
    "docs/method.md": (2, 0), "docs/mlflow.md": (1, 1), "docs/nodes.md": (2, 1), "docs/pipelines.md": (2, 1),
    "docs/serving.md": (1, 1), "docs/training.md": (1, 3),
}  # fmt: skip


def anchors(markdown: str) -> set[str]:
    """The names that a page's headings have in links."""
    headings = re.findall(r"^#+ (.+)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(text: str, folder: Path) -> list[str]:
    """The files and links inside this repository that a document in `folder` names and that are not there."""
    missing = [place for place in PLACE.findall(text) if not (ROOT / place).exists()]
    for link in LINK.findall(text):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        page = folder / name
        found = page.exists() and (not anchor or anchor in anchors(page.read_text() if name else text))
        missing += [] if found else [link]
    return missing


def test_a_name_or_a_link_that_leads_nowhere_is_found() -> None:
    text = "# A page\n`lfm/no-such-file.py` and `docs/adr/0001-imports-flow-one-way.md`, [a](docs/no-such.md)"
    assert broken(text, ROOT) == ["lfm/no-such-file.py", "docs/no-such.md"]
    assert broken("# A page: of ours\n[b](#a-page-of-ours) [c](#none) [d](README.md#none)", ROOT) == [
        "#none", "README.md#none"
    ]  # fmt: skip


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_and_functions_that_documents_name_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    assert broken(text, (ROOT / document).parent) == []
    assert len(LINK.findall(text)) == text.count("]("), "each link is understood"
    places, links = LEAST.get(document, (0, 0))
    assert len(PLACE.findall(text)) >= places and len(LINK.findall(text)) >= links
    if document == "docs/method.md":
        named = re.findall(r"`(analysis|mixup|model|loop)\.(\w+)(?:\.(\w+))?`", text)
        assert len(named) > 8
        for module, name, member in named:
            if f"{module}.{name}" in field_names():  # a field of the configuration, like `mixup.beta`
                continue
            (file,) = (ROOT / "lfm").glob(f"*/{module}.py")
            source = file.read_text()
            assert re.search(rf"^(def|class) {name}\b", source, re.MULTILINE), name
            assert not member or re.search(rf"^    def {member}\b", source, re.MULTILINE), member
