"""What names a result's code: every line that can change it, and no comment."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lfm.config.presets import load
from lfm.data.sources.registry import DATASETS
from lfm.jobs.evaluation import SCORING
from lfm.jobs.prepare import DECODING
from lfm.jobs.training import stage_inputs
from lfm.storage.artifact import content_key, publishing
from lfm.storage.import_closure import ROOT, closure, copy_code, source_hash
from lfm.training.task import METHOD

ROOTS = {
    "training": METHOD,
    "scores": SCORING,
    "registered model": ("lfm.jobs.packaging",),
    "decoding": (DECODING,),
    "text": ("lfm.backbones.text_encoders",),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "lfm", root / "lfm", ignore=shutil.ignore_patterns("__pycache__"))
    return root


def edited(path: Path, change: Callable[[str], str], modules: tuple[str, ...], root: Path) -> bool:
    """Whether the hash changes when a file is edited; the file is put back."""
    text = path.read_text()
    path.write_text(change(text))
    try:
        return source_hash.__wrapped__(*modules, root=root) != source_hash(*modules)
    finally:
        path.write_text(text)


@pytest.mark.slow
@pytest.mark.parametrize("what", ROOTS)
def test_a_changed_line_in_any_imported_module_changes_the_key_and_a_comment_does_not(what: str, tree: Path) -> None:
    modules = ROOTS[what]
    reached = closure(*modules, root=tree)
    assert len(reached) > 8
    for source in reached.values():
        assert edited(source.path, lambda text: text + "\nADDED = 1\n", modules, tree), source.path
        assert not edited(source.path, lambda text: "# a comment\n" + text + "\n\n# another\n", modules, tree)
    elsewhere = set(closure("lfm.cli.main", root=tree)) - set(reached)
    assert elsewhere
    for name in sorted(elsewhere)[::8]:
        path = closure(name, root=tree)[name].path
        assert not edited(path, lambda text: text + "\nADDED = 1\n", modules, tree), path


def test_what_was_missed_by_hand_is_reached() -> None:
    trained = closure(*METHOD)
    assert {
        "lfm.backbones.device", "lfm.backbones.openclip", "lfm.data.artifact", "lfm.data.decoding", "lfm.data.images",
        "lfm.data.prefetch", "lfm.evaluation.metrics", "lfm.method.losses", "lfm.method.mixup",
        "lfm.training.checkpoints", "lfm.training.memory",
    } <= trained.keys()  # fmt: skip
    assert not {name for name in trained if name.startswith(("lfm.report", "lfm.cli", "lfm.serving"))}


def test_a_docstring_does_not_count_and_a_default_does(tree: Path) -> None:
    path = tree / "lfm" / "method" / "mixup.py"
    assert not edited(
        path, lambda text: text.replace("Partner distribution", "The distribution of partners"), METHOD, tree
    )
    assert edited(path, lambda text: text.replace("clamp(0, 1)", "clamp(0, 2)"), METHOD, tree)


def test_an_import_for_types_alone_is_not_followed(tree: Path) -> None:
    path = tree / "lfm" / "method" / "losses.py"
    text = path.read_text()
    path.write_text(text + "\nif TYPE_CHECKING:\n    from lfm.report import run_page\nelse:\n    import lfm.revision\n")
    try:
        found = closure("lfm.method.losses", root=tree)
        assert "lfm.report.run_page" not in found and "lfm.revision" in found
    finally:
        path.write_text(text)


def test_one_loader_does_not_bring_the_others() -> None:
    """A changed line in the loader of one data set leaves the artifacts of the others as they are."""
    loaders = {loader.module for loader in DATASETS.values()}
    for loader in DATASETS.values():
        assert closure(loader.module).keys() & loaders <= {loader.module, "lfm.data.sources.split_lists"}
    assert not closure(DECODING).keys() & loaders


@pytest.mark.slow
def test_the_code_of_a_model_is_its_predictor_and_no_loader(tmp_path: Path) -> None:
    package = copy_code("lfm.tracking.packaged_model", tmp_path)
    brought = {str(path.relative_to(package)) for path in package.rglob("*.py") if path.name != "__init__.py"}
    assert {"serving/predictor.py", "serving/request.py", "backbones/model.py", "data/decoding.py"} <= brought
    assert not any(name.startswith(("data/sources/", "training/", "jobs/", "report/")) for name in brought)
    assert len(brought) <= 28, sorted(brought)  # 6 of them put a tuned tower together


def test_an_alpha_that_was_found_is_in_the_key_as_a_number(tmp_path: Path) -> None:
    folders = []
    for name in ("dataset", "text", "backbone"):
        with publishing(tmp_path / name, name, {}) as aside:
            (aside / "file").write_text(name)
        folders.append(str(tmp_path / name))
    data, text, backbone = folders
    config = load("custom-scratch", {"data.source": "photos"})
    assert config.stage1.alpha == "auto"
    keys = {content_key(stage_inputs(config, 1, alpha, data, text, backbone, "")) for alpha in (0.25, 0.25, 0.5)}
    assert len(keys) == 2
    said = load("custom-scratch", {"data.source": "photos", "stage1.alpha": 0.5})
    assert content_key(stage_inputs(said, 1, 0.5, data, text, backbone, "")) in keys, (
        "found or given, the same number is the same run"
    )
