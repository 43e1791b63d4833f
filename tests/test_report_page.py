"""The page of a run, its numbers read back, in a browser (over 300 lines: all on one page, drawn once)."""

import html
import json
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F  # noqa: N812

from lfm.backbones.towers import Preprocess
from lfm.config.presets import load
from lfm.config.schema import GROUPS, RunConfig
from lfm.data.images import Images
from lfm.data.subsets import profile
from lfm.errors import InputError
from lfm.evaluation.diagnostics import Answer
from lfm.evaluation.metrics import confusion, metrics
from lfm.jobs.diagnostics import gather, keep_answers
from lfm.report.compare_page import compare_page, differences, name_of, same_images
from lfm.report.published import for_data
from lfm.report.run_page import Report, run_page
from lfm.report.run_values import Other, Run, Sweep, read_run
from tests.browser import check, chromium
from tests.reader import Reader

pytestmark = pytest.mark.slow  # all stand on one whole page

NASTY = ["<script>alert('x')</script>", 'a "quoted" & <b>bold</b> name', "T-shirt/top", "café ☕", "$x^2$", "plain"]
PROVENANCE = {
    "data": "imagenet-lt, imbalance 256", "split": "test", "shots": "many > 100, few < 20",
    "weights": "ViT-B-16 openai", "<seed>": "0 & 1", "commit": "0123456789ab",
}  # fmt: skip
CURVES = {
    "stage1/loss": [(1, 2.0), (2, 1.5), (3, 1.25)], "stage1/images_per_second": [(1, 100.0), (2, 200.0), (3, 400.0)],
    "stage1/val/all": [(3, 50.0)], "stage2/loss": [(1, 1.1)], "stage2/images_per_second": [(1, 1000.0)],
}  # fmt: skip
SCORES: dict[str, float | None] = {"many": 81.5, "medium": 60.25, "few": None, "all": 70.125}
ALPHA = Sweep("alpha", [(0.0, SCORES), (0.5, {**SCORES, "all": 75.0}), (1.0, SCORES)])


def drawn(names: Sequence[str], folder: Path, config: RunConfig, each: int, largest: int = 1280) -> Path:
    """A metrics artifact of answers that are wrong more often for rare classes, and for those alike in text."""
    classes, rng = len(names), np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    text_CD = F.normalize(torch.randn(classes, 32, generator=generator) + 1, dim=1)
    count_C = profile(largest, 256, classes, "exponential")
    folder.mkdir()
    (folder / "info.json").write_text(json.dumps({"classes": list(names), "counts": [int(n) for n in count_C]}))
    save_file({"text_CD": text_CD}, folder / "text.safetensors")
    label_N = rng.permutation(np.repeat(np.arange(classes), each))
    near_C = (text_CD @ text_CD.T - 2 * torch.eye(classes)).argmax(dim=1).numpy()
    pixels = torch.randint(0, 255, (64, 3, 32, 32), generator=generator, dtype=torch.uint8)
    to = Preprocess(0, (0.5,), (0.5,), "bicubic", "squash")
    images = Images(lambda index: pixels[index % 64], (3, 32, 32), torch.from_numpy(label_N), to, held=True)
    answers, found = {}, {}
    for name, skill in (("untrained", 0.3), ("trained", 0.9)):
        right_N = rng.random(len(label_N)) < skill * (1 - 0.5 * label_N / classes)
        other_N = np.where(rng.random(len(label_N)) < 0.6, near_C[label_N], rng.integers(0, classes, len(label_N)))
        predicted_N = np.where(right_N, label_N, other_N).astype(np.int32)
        noise_ND = torch.randn(len(label_N), 32, generator=generator)
        unit_ND = F.normalize(skill * 4 * text_CD[torch.from_numpy(label_N)] + 0.5 * noise_ND, dim=1)
        sure_N = np.where(right_N, rng.random(len(label_N)) ** 0.3, rng.random(len(label_N)))
        answers[name] = Answer(unit_ND, text_CD, predicted_N, sure_N.astype(np.float32))
        table = confusion(torch.from_numpy(predicted_N).long(), torch.from_numpy(label_N), classes)
        score = metrics(table, torch.tensor(np.asarray(count_C)), config.shots)
        found["test" if name == "trained" else name] = score | {
            "classes": list(names),
            "counts": [int(n) for n in count_C],
        }
    (folder / "metrics.json").write_text(json.dumps({"provenance": PROVENANCE, "test_images": "of the tests", **found}))
    keep_answers(folder, label_N, **answers)
    problems = [{"what": "images that cannot be used", "count": 3, "how": "Correct <them>.", "examples": ["a/b.jpg"]}]
    kept = gather(config, folder, folder, images, answers) | {"before": "zero-shot", "problems": problems}
    (folder / "evidence.json").write_text(json.dumps(kept, allow_nan=False))
    return folder


def page(folder: Path, published: bool = True) -> tuple[Run, Report]:
    others = [Other("ce <plain>", SCORES, "0123456789abcdef", "0", "ce")]
    run = read_run(folder, run_id="ffff", curves=CURVES, others=others, sweeps=[ALPHA])
    rows = for_data({"name": "imagenet-lt", "profile": "as-is", "imbalance": "100"}) if published else []
    return run, run_page(run, rows, "lfm report ffff")


def shown(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Report]:
    folder = drawn(NASTY, tmp_path_factory.mktemp("small") / "metrics", load("fashion-mnist-lt"), 50)
    return page(folder)


def test_the_score_table_is_the_metrics_and_published_rows_are_marked(small: tuple[Run, Report]) -> None:
    run, report = small
    rows = Reader(report.html).tables[0]
    columns = ("many", "medium", "few", "all")
    assert rows[0] == ["method", *columns, "weights"]
    assert rows[1][:5] == ["lfm + ce", *(shown(run.scores[c]) for c in columns)]
    assert rows[2][:5] == ["zero-shot", *(shown(run.untrained[c]) for c in columns)]
    assert rows[3][:5] == ["ce <plain>", "81.5", "60.2", "–", "70.1"]
    published = for_data({"name": "imagenet-lt", "profile": "as-is", "imbalance": "100"})
    assert [row[:6] for row in rows[5:]] == [
        [f"{line.method} published", *(shown(line.scores[c]) for c in columns), line.weights] for line in published
    ]


def test_the_class_table_is_the_metrics_class_by_class(small: tuple[Run, Report]) -> None:
    run, report = small
    rows = Reader(report.html).tables[-1]
    assert rows[0] == [
        "class", "group", "training images", "test images", "zero-shot, %", "lfm + ce, %", "p(Y)", "own-label mass"
    ]  # fmt: skip
    assert [row[0] for row in rows[1:]] == NASTY, "names are text and never markup"
    for k, row in enumerate(rows[1:]):
        assert row[2:6] == [
            f"{run.count_C[k]:,}", "50", shown(run.untrained["per_class"][k]), shown(run.scores["per_class"][k])
        ]  # fmt: skip
        assert row[6] == f"{run.evidence['stages']['1']['seen'][k]:.4f}"


def test_the_answers_kept_are_those_the_metrics_count(small: tuple[Run, Report]) -> None:
    run, _ = small
    for scores, predicted_N in ((run.scores, run.predicted_N), (run.untrained, run.untrained_N)):
        table = np.zeros((6, 6), int)
        np.add.at(table, (run.label_N, predicted_N), 1)
        assert table.tolist() == scores["confusion"]
        low, high = run.intervals(predicted_N)["all"] or (0, 0)
        assert low < scores["all"] < high


def test_captions_state_the_numbers_behind_them(small: tuple[Run, Report]) -> None:
    run, report = small
    captions = {piece.name: piece.caption for piece in report.pieces}
    stage = run.evidence["stages"]["1"]
    assert f"gamma' = {stage['gamma_effective']:.2f}" in captions["class-probability"]
    assert f"{run.evidence['similarity']['rho']['trained']:.2f}" in captions["similarity"]
    few = run.group_C[run.label_N] == 2
    to_many = few & (run.predicted_N != run.label_N) & (run.group_C[run.predicted_N] == 0)
    assert f"{100 * to_many.sum() / few.sum():.1f} % of the few-shot images" in captions["confusion-flow"]
    assert "3 runs" in captions["sweep-alpha"] and "alpha 0.5 (75.0 %)" in captions["sweep-alpha"]
    for piece in report.pieces:
        assert piece.caption.replace("&", "&amp;").split(".")[0].replace("<", "&lt;")[:20] in report.html.replace(
            "&#39;", "'"
        )


def test_time_is_what_the_speed_of_each_epoch_says(small: tuple[Run, Report]) -> None:
    run, report = small
    images = int(run.count_C.sum())
    assert report.tables["time"][1] == [
        [1, 3, pytest.approx(images * (1 / 100 + 1 / 200 + 1 / 400)), pytest.approx(3 / (1 / 100 + 1 / 200 + 1 / 400))],
        [2, 1, pytest.approx(images / 1000), pytest.approx(1000)],
    ]


def test_the_page_is_one_whole_that_asks_for_nothing(small: tuple[Run, Report]) -> None:
    _, report = small
    reader = Reader(report.html)
    assert not re.search(r"https?:|url\((?!#)|@import", report.html)
    assert not [
        1 for _, a in reader.tags for name in ("src", "href") if not (a.get(name) or "#").startswith(("#", "data:"))
    ]
    assert reader.texts["h1"] == "fashion-mnist-lt: lfm + ce, seed 0"
    assert [a.get("id") for tag, a in reader.tags if tag == "script"] == ["cloud", None], "ours and no more"
    assert "b" not in {tag for tag, _ in reader.tags}
    ids = [a["id"] for _, a in reader.tags if "id" in a]
    assert len(ids) == len(set(ids)), "an id is there but once"
    assert all(a.get("aria-label") for tag, a in reader.tags if tag in ("svg", "canvas"))
    assert all(a.get("alt") for tag, a in reader.tags if tag == "img")
    assert {a["aria-labelledby"] for tag, a in reader.tags if tag == "table"} <= set(ids)
    assert report.html.count("<title>") > 100, "values under the mouse"


def test_the_pieces_are_written_as_svg_png_and_csv(small: tuple[Run, Report], tmp_path: Path) -> None:
    run, report = small
    report.write(tmp_path)
    names = {piece.name for piece in report.pieces}
    assert {path.stem for path in (tmp_path / "figures").glob("*.svg")} == names
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == names
    assert {path.stem for path in (tmp_path / "tables").iterdir()} == names | set(report.tables)
    head, *lines = (tmp_path / "tables" / "accuracy-by-count.csv").read_text().splitlines()
    assert head == "class,training images,group,accuracy"
    assert [float(line.rsplit(",", 1)[1]) for line in lines] == pytest.approx(run.scores["per_class"])
    assert (tmp_path / "report.html").read_text() == report.html
    assert all(path.stat().st_size > 2000 for path in (tmp_path / "figures").iterdir())


def test_the_same_values_give_the_same_page(small: tuple[Run, Report], tmp_path: Path) -> None:
    _, report = small
    assert page(drawn(NASTY, tmp_path / "metrics", load("fashion-mnist-lt"), 50))[1].html == report.html


def test_an_artifact_that_kept_less_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match="evaluate the run again"):
        read_run(tmp_path)


def test_the_page_in_a_browser(small: tuple[Run, Report], tmp_path: Path) -> None:
    _, report = small
    (tmp_path / "report.html").write_text(report.html)
    check(tmp_path / "report.html", "drawn", figures=len(report.pieces))


def test_a_thousand_classes_and_fifty_thousand_images_make_a_small_page_soon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"class {k} of the many" for k in range(1000)]
    config = load("imagenet-lt")
    folder = drawn(names, tmp_path / "metrics", config, 50)
    began = time.perf_counter()
    _, report = page(folder)
    took = time.perf_counter() - began
    target = tmp_path / "report.html"
    target.write_text(report.html)
    kept = sum(path.stat().st_size for path in folder.iterdir() if path.name != "metrics.json")
    with capsys.disabled():
        print(
            f"\n1,000 classes x 50,000 images: page in {took:.1f} s, {target.stat().st_size:,} bytes, "
            f"evidence {kept:,} bytes"
        )
    assert target.stat().st_size < 5_000_000
    assert took < 60
    assert len(Reader(report.html).tables[-1]) == 1001
    check(target, "thousand", figures=len(report.pieces))


def test_sorting_and_finding_a_class_in_the_browser(small: tuple[Run, Report], tmp_path: Path) -> None:
    run, report = small
    (tmp_path / "report.html").write_text(report.html)
    with chromium() as browser:
        view = browser.new_page()
        view.goto((tmp_path / "report.html").as_uri())
        names: Any = (
            "[...document.querySelectorAll('#class-table tbody tr:not([hidden]) th')].map((cell) => cell.textContent)"
        )
        view.click("#class-table th:nth-child(6) button")
        by_score = [NASTY[k] for k in np.argsort(run.scores["per_class"], kind="stable")]
        assert view.evaluate(names) == by_score
        view.click("#class-table th:nth-child(6) button")
        assert sorted(view.evaluate(names)) == sorted(NASTY) and view.evaluate(names)[0] == by_score[-1]
        view.fill("input[type=search]", "shirt")
        assert view.evaluate(names) == ["T-shirt/top"]
        picture = "document.querySelector('canvas').toDataURL()"
        before = view.evaluate(picture)
        view.focus("canvas")
        view.keyboard.press("ArrowLeft")
        view.wait_for_timeout(100)
        assert view.evaluate(picture) != before, "the arrow keys turn the points"


def test_links_to_parts_work_in_the_frame_that_kubeflow_shows_a_page_in(small: tuple[Run, Report]) -> None:
    _, report = small
    frame = f'<iframe sandbox="allow-scripts" width="800" height="500" srcdoc="{html.escape(report.html)}"></iframe>'
    with chromium() as browser:
        view = browser.new_page()
        view.set_content(frame)
        inside = view.frame_locator("iframe")
        links = inside.locator("nav a")
        assert links.count() > 2
        for k in range(links.count()):
            links.nth(k).click()
            part = inside.locator(f"section:nth-of-type({k + 1})")
            top = part.bounding_box()["y"] - view.locator("iframe").bounding_box()["y"]
            assert top < 400 and part.inner_text().strip(), "the part is in sight, and the page is still there"


def test_names_stay_text_on_the_page_that_compares_runs(small: tuple[Run, Report]) -> None:
    run, _ = small
    run = replace(run, provenance={**run.provenance, "seed": "<i>0"}, method="<b>lfm</b> & more")
    worse = replace(run, run_id="eeee", predicted_N=run.untrained_N, scores=run.untrained)
    report = compare_page([run, worse], {"data": "<script>x</script>"})
    reader = Reader(report.html)
    assert {"b", "i"}.isdisjoint(tag for tag, _ in reader.tags)
    assert [tag for tag, _ in reader.tags].count("script") == 1 and "data: <script>x</script>" in reader.texts["p"]
    assert reader.tables[0][1][0] == "<b>lfm</b> & more, seed <i>0 (eeee)"
    assert {row[0] for row in reader.tables[-1][1:]} == set(NASTY)


def seeded(small: tuple[Run, Report]) -> Run:
    """The run, with the seed that names it."""
    return replace(small[0], provenance={**small[0].provenance, "seed": 0})


def subset(run: Run, chosen_N: Any, run_id: str, images: str) -> Run:
    """A run that was scored on some of the images."""
    right = run.predicted_N[chosen_N] == run.label_N[chosen_N]
    group_N = run.group_C[run.label_N[chosen_N]]
    scores = {name: 100 * float(right[group_N == g].mean()) for g, name in enumerate(GROUPS) if (group_N == g).any()}
    kept = dict.fromkeys(GROUPS) | scores | {"all": 100 * float(right.mean())}
    return replace(
        run, run_id=run_id, test_images=images, scores={**run.scores, **kept}, label_N=run.label_N[chosen_N],
        predicted_N=run.predicted_N[chosen_N], untrained_N=run.untrained_N[chosen_N],
    )  # fmt: skip


def test_runs_of_other_test_images_have_a_table_of_their_own_and_intervals_of_their_own_counts(
    small: tuple[Run, Report],
) -> None:
    run = seeded(small)
    few = subset(run, np.arange(0, len(run.label_N), 18), "few", "others")
    report = compare_page([run, few], {})
    assert [piece.name for piece in report.pieces] == [], "no figure draws them beside each other"
    lines = {line[1]: line for line in report.tables["differences"][1]}
    assert {line[5] for line in lines.values()} == {"other test images"}
    shares = [(len(of.label_N), float((of.predicted_N == of.label_N).mean())) for of in (run, few)]
    assert [n for n, _ in shares] == [300, 17]
    error = 100 * sum(p * (1 - p) / n for n, p in shares) ** 0.5
    _, _, value, low, high, _ = lines["all"]
    assert value == pytest.approx(100 * (shares[1][1] - shares[0][1]))
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1), "as the normal approximation says for 300 and 17"
    tables = Reader(report.html).tables
    assert len(tables[0]) == 2 and tables[0][1][0] == name_of(run), "the scores of the first run alone"
    assert (tables[1][1][0], tables[1][1][-1]) == (name_of(few), "17")


def test_as_many_other_test_images_with_the_same_labels_are_not_compared_in_pairs(small: tuple[Run, Report]) -> None:
    run, _ = small
    other = replace(run, run_id="eeee", test_images="as many others")
    of = differences(other, run)["all"]
    assert of is not None and of.value == 0 and not of.paired and of.low < 0 < of.high
    unknown = replace(run, test_images="")
    assert not same_images(unknown, unknown), "of an older version: nobody knows which images they were"
    same = differences(replace(run, run_id="eeee"), run)["all"]
    assert same is not None and same.paired and (same.low, same.high) == (0, 0)


def test_other_shot_groups_leave_all_images_paired(small: tuple[Run, Report]) -> None:
    run = seeded(small)
    moved = replace(run, run_id="eeee", group_C=np.roll(run.group_C, 1))
    found = differences(moved, run)
    kinds = {name: of.paired for name, of in found.items() if of}
    assert kinds == {"many": False, "medium": False, "few": False, "all": True}
    report = compare_page([run, moved], {})
    assert [piece.name for piece in report.pieces] == ["differences"], "no errors by group of two kinds of groups"


def test_a_tie_is_not_the_best_of_a_sweep_on_the_page(small: tuple[Run, Report]) -> None:
    run, _ = small
    tied = Sweep("alpha", [(0.0, SCORES), (0.5, {**SCORES, "all": 60.0}), (1.0, SCORES)])
    captions = {piece.name: piece.caption for piece in run_page(replace(run, sweeps=[tied])).pieces}
    assert "alpha 0 and 1 tie as best (70.1 %)" in captions["sweep-alpha"]
