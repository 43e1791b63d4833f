"""Answers for other class shares: Bayes by hand, a known mixture, processes (over 300 lines: one model for all).

Letters in the names give shapes: N images, C classes.
"""

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from lfm.errors import InputError
from lfm.evaluation.calibration import fit_shift
from lfm.serving import prior
from lfm.serving.predictor import Predictor
from lfm.serving.prior import estimate, parsed, read, shares_of
from tests.conftest import Fashion
from tests.serving import LFM_COMMAND, SHIFT, Server, png, serving, write_conv4

CLASSES = ["cat", "dog", "owl, barn"]
SOURCE, TARGET = [0.7, 0.2, 0.1], [0.1, 0.3, 0.6]


# --- The estimate --------------------------------------------------------------------------------------


def mixture(images: int, shares: Sequence[float], spread: float = 0.6) -> tuple[Tensor, Tensor]:
    """Exact posteriors (N, C) under SOURCE of images of three Gaussians that come in other shares, and their labels."""
    rng = np.random.default_rng(0)
    label_N = rng.choice(3, images, p=shares)
    x_N = np.array([-1.0, 0.0, 1.0])[label_N] + spread * rng.standard_normal(images)
    density_NC = np.exp(-((x_N[:, None] - np.array([-1.0, 0.0, 1.0])) ** 2) / (2 * spread**2))
    joint_NC = density_NC * np.array(SOURCE)
    return torch.from_numpy(joint_NC / joint_NC.sum(axis=1, keepdims=True)), torch.from_numpy(label_N)


def ratios(posterior_NC: Tensor) -> Tensor:
    """Log likelihoods up to a constant an image, as the predictor has them: log p(y | x) - log pi_y."""
    return posterior_NC.log() - torch.tensor(SOURCE).log()


def saerens(posterior_NC: list[list[float]], steps: int) -> list[float]:
    """Equations 2.9 of Saerens et al. 2002, as printed, in plain Python."""
    share = list(SOURCE)
    for _ in range(steps):
        total = [0.0, 0.0, 0.0]
        for row in posterior_NC:
            weighed = [share[k] / SOURCE[k] * row[k] for k in range(3)]
            total = [t + w / sum(weighed) for t, w in zip(total, weighed, strict=True)]
        share = [t / len(posterior_NC) for t in total]
    return share


@pytest.mark.parametrize("target", [TARGET, SOURCE, [0.05, 0.9, 0.05]])
def test_the_shares_of_a_known_mixture_are_found(target: list[float]) -> None:
    posterior_NC, label_N = mixture(40_000, target)
    found = estimate(ratios(posterior_NC), torch.tensor(SOURCE))
    assert found.estimated and not found.warnings and float(found.share_C.sum()) == pytest.approx(1)
    drawn_C = label_N.bincount(minlength=3) / len(label_N)
    torch.testing.assert_close(found.share_C, drawn_C.double(), atol=0.015, rtol=0)


def test_it_is_saerens_rule_and_the_likeliest_shares() -> None:
    posterior_NC, _ = mixture(400, TARGET)
    found = estimate(ratios(posterior_NC), torch.tensor(SOURCE)).share_C.tolist()
    assert found == pytest.approx(saerens(posterior_NC.tolist(), 300), abs=2e-3)
    likely_NC = (posterior_NC / torch.tensor(SOURCE)).numpy()

    def negative(logit: Any) -> float:
        share = np.exp(logit) / np.exp(logit).sum()
        return -float(np.log(likely_NC @ share).mean())

    best = minimize(negative, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12})
    assert found == pytest.approx((np.exp(best.x) / np.exp(best.x).sum()).tolist(), abs=2e-3)
    assert negative(np.log(found)) <= best.fun + prior.CLOSE, "no more is left to gain than it says"


def test_a_class_that_does_not_occur_gets_nothing() -> None:
    posterior_NC, _ = mixture(5_000, [0.5, 0.0, 0.5], spread=0.3)
    assert float(estimate(ratios(posterior_NC), torch.tensor(SOURCE)).share_C[1]) < 0.005


def test_it_warns_where_it_is_rough_or_has_not_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior_NC, _ = mixture(29, TARGET)
    (rough,) = estimate(ratios(posterior_NC), torch.tensor(SOURCE)).warnings
    assert rough.startswith(
        "the class shares were estimated from 29 images, and 3 classes want 30 or more (10 a class)"
    )
    monkeypatch.setattr(prior, "ITERATIONS", 2)
    posterior_NC, _ = mixture(2_000, TARGET)
    (unsettled,) = estimate(ratios(posterior_NC), torch.tensor(SOURCE)).warnings
    assert "has not settled after 2 steps" in unsettled and "give the shares" in unsettled


def test_one_image_makes_no_number_that_is_none() -> None:
    found = estimate(torch.tensor([[0.0, -800.0, -900.0]]), torch.tensor(SOURCE))
    assert found.share_C.tolist() == pytest.approx([1, 0, 0], abs=1e-4) and len(found.warnings) == 1


# --- Shares that are given -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '{"dog": 1, "cat": 2, "owl, barn": 1}'),
        ("a.csv", 'class,share\ndog,0.25\n"owl, barn",0.25\n\ncat,0.5\n'),
        ("b.csv", '\ufeffdog, 25\r\n"owl, barn", 25\r\ncat, 50\r\n'),
    ],
)
def test_a_file_of_shares_is_read_by_name(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    given = read(str(tmp_path / name))
    assert not isinstance(given, str)
    assert shares_of(given, CLASSES).tolist() == [0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"cat": 1', "is no JSON object {class: share}"),
        ('{"cat": 1, "cat": 2}', "names 'cat' more than once"),
        ("cat,1\ncat,2", "names 'cat' more than once"),
        ("class,share\n", "holds no class shares; write JSON"),
        ("", "holds no class shares"),
        ("cat,1\ndog,many", "has no number in 'dog,many'"),
        ("cat,1,2", r"a row of 3 cells \(cat,1,2\); write class,share"),
    ],
)
def test_a_file_that_holds_no_shares_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "shares").write_text(content)
    with pytest.raises(InputError, match=message):
        read(str(tmp_path / "shares"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cat": 1, "dog": 1, "owl": 1}, "names 'owl', which is no class of the model; write the names"),
        ({"cats": 1, "dog": 1}, "names 'cats', which is no class of the model; did you mean cat"),
        ({"cat": 1}, "lacks dog, owl, barn; give every class a share"),
        ({"cat": 1, "dog": -1, "owl, barn": 1}, "share of 'dog' is -1; give a number of 0 or more"),
        ({"cat": 1, "dog": math.nan, "owl, barn": 1}, "share of 'dog' is nan"),
        ({"cat": 1, "dog": True, "owl, barn": 1}, "share of 'dog' is True"),
        ({"cat": 1, "dog": "2", "owl, barn": 1}, "share of 'dog' is 2; give a number"),
        ({"cat": 0, "dog": 0, "owl, barn": 0}, "add up to 0; give at least one above 0"),
    ],
)
def test_shares_that_do_not_fit_are_refused(given: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        shares_of(given, CLASSES)


def test_words_and_what_is_neither() -> None:
    assert [parsed(word) for word in ("", *prior.WORDS)] == ["", *prior.WORDS] == [read(w) for w in ("", *prior.WORDS)]
    assert parsed('{"cat": 1}') == {"cat": 1}
    with pytest.raises(InputError, match=r"'even' is none of none, train, uniform, auto, nor a JSON object"):
        parsed("even")
    with pytest.raises(InputError, match=r"--prior even is none of none, train, uniform, auto, nor a file that can be"):
        read("even")


# --- The predictor -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(fashion: Fashion, text_CD: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conv4(tmp_path_factory.mktemp("conv4") / "model", fashion, text_CD)


@pytest.fixture
def predictor(folder: Path) -> Predictor:
    return Predictor(folder, precision="fp32")


def by_hand(cosine: Sequence[float], own: Sequence[float], share: Sequence[float], temperature: float) -> list[float]:
    """Bayes: likelihood exp(z / T) / pi, times the share of the field, over all classes."""
    mass = [math.exp(z / temperature) / p * q for z, p, q in zip(cosine, own, share, strict=True)]
    return [m / math.fsum(mass) for m in mass]


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["train", "uniform", "given"])
def test_the_shift_is_bayes_rule(asked: str, predictor: Predictor, fashion: Fashion) -> None:
    own = [0.3, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05, 0.04, 0.03, 0.03]
    predictor.own = replace(predictor.own, prior=own)
    counts = predictor.info["counts"]
    shares = {"train": [n / sum(counts) for n in counts], "uniform": [0.1] * 10, "given": [0.0, *[1 / 9] * 9]}[asked]
    unit_ND = predictor.features(fashion.test_images[:20, ..., None])
    told = dict(zip(predictor.classes, shares, strict=True)) if asked == "given" else asked
    answers = predictor.answers(unit_ND, 10, shares=predictor.shares(told, unit_ND))
    for cosine, answer in zip((unit_ND @ predictor.unit_CD.T).tolist(), answers, strict=True):
        expected = by_hand(cosine, own, shares, SHIFT["temperature"])
        found = {one["label"]: one["probability"] for one in answer}
        assert [found[name] for name in predictor.classes] == pytest.approx(expected, abs=1e-5)
        listed = [one["probability"] for one in answer]
        assert listed == sorted(listed, reverse=True), "in the order of the shifted answers"


@pytest.mark.slow
def test_nothing_is_shifted_unless_asked_and_a_new_class_keeps_its_logit(
    predictor: Predictor, fashion: Fashion
) -> None:
    unit_ND = predictor.features(fashion.test_images[:20, ..., None])
    assert predictor.shares("", unit_ND) is None is predictor.shares("none", unit_ND)
    own = [0.3, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05, 0.04, 0.03, 0.03]
    predictor.own = replace(predictor.own, prior=own)
    shares = predictor.shares("uniform", unit_ND)
    _, _, text_CD = predictor.classes_of(["owl", "lynx"])
    for cosine, answer in zip(
        (unit_ND @ text_CD.T).tolist(), predictor.answers(unit_ND, 12, ["owl", "lynx"], shares), strict=True
    ):
        mean = [0.1, 0.1]  # of the model's shares, and of those asked for
        expected = by_hand(cosine, [*own, *mean], [0.1] * 10 + mean, SHIFT["temperature"])
        found = {one["label"]: one["probability"] for one in answer}
        assert [found[name] for name in (*predictor.classes, "owl", "lynx")] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [{0: 400, 6: 30, 8: 300, 2: 10}, {2: 400, 4: 20, 9: 200, 1: 100}])
def test_the_shares_of_real_images_are_estimated_and_help(
    wanted: dict[int, int], predictor: Predictor, fashion: Fashion
) -> None:
    """A model that was trained for moments and takes too many images for shirts, asked about few classes."""
    held_out = fashion.test_images[5000:7000, ..., None].copy()
    label_N = torch.from_numpy(fashion.test_labels[5000:7000].astype(np.int64))
    cosine_NC = predictor.features(held_out) @ predictor.unit_CD.T
    fitted = fit_shift(cosine_NC, label_N, 0.05, "val", torch.full((10,), 0.1))
    predictor.own = replace(predictor.own, prior=fitted.prior, temperature=fitted.temperature)
    rows = np.concatenate([np.flatnonzero(fashion.test_labels[:5000] == k)[:n] for k, n in wanted.items()])
    unit_ND = predictor.features(fashion.test_images[rows][..., None])
    shares = predictor.shares("auto", unit_ND)
    assert shares is not None and not shares.warnings
    true_C = np.bincount(fashion.test_labels[rows], minlength=10) / len(rows)
    assert float(np.abs(shares.share_C.numpy() - true_C).sum()) / 2 < 0.08, "total variation"
    plain, shifted = (
        np.mean(
            [row[0]["label"] == predictor.classes[fashion.test_labels[k]] for row, k in zip(said, rows, strict=True)]
        )
        for said in (predictor.answers(unit_ND), predictor.answers(unit_ND, shares=shares))
    )
    assert shifted > plain + 0.1


@pytest.mark.slow
def test_an_estimate_without_fitted_shares_is_doubted(predictor: Predictor, fashion: Fashion) -> None:
    predictor.own = replace(predictor.own, fitted=False)
    shares = predictor.shares("auto", predictor.features(fashion.test_images[:200, ..., None].copy()))
    assert shares is not None and shares.warnings == (prior.NOT_FITTED,)


@pytest.mark.slow
def test_a_model_that_does_not_know_its_shares_says_so(predictor: Predictor, fashion: Fashion) -> None:
    predictor.own = replace(predictor.own, prior=None)
    unit_ND = predictor.features(fashion.test_images[:1, ..., None])
    for asked in ("train", "uniform", "auto"):
        with pytest.raises(InputError, match=r"does not say which class shares it stands for; register it again"):
            predictor.shares(asked, unit_ND)
    assert predictor.shares("none", unit_ND) is None


# --- The command, the server ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shares_file(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    path = tmp_path_factory.mktemp("shares") / "shares.json"
    classes = json.loads((folder / "info.json").read_text())["classes"]
    path.write_text(json.dumps({name: 100 if name == "Bag" else 1 for name in classes}))
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LFM_COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300)


def same(found: Sequence[Any], expected: Sequence[Any]) -> bool:
    """The same labels with the same probabilities but for rounding."""
    return all(
        one["label"] == other["label"] and abs(one["probability"] - other["probability"]) < 1e-3
        for row, wanted in zip(found, expected, strict=True)
        for one, other in zip(row["top"], wanted["top"], strict=True)
    )


def expected_rows(
    folder: Path, fashion: Fashion, asked: prior.Prior, images: int, precision: str = "fp32"
) -> list[dict[str, Any]]:
    predictor = Predictor(folder, precision=precision)
    unit_ND = predictor.features(fashion.test_images[:images, ..., None])
    return predictor.rows(predictor.answers(unit_ND, shares=predictor.shares(asked, unit_ND)))


@pytest.mark.slow
def test_the_command_shifts_estimates_and_keeps_the_estimate(
    folder: Path, shares_file: Path, fashion: Fashion, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for k in range(40):  # more than one batch
        (photos / f"{k:03d}.png").write_bytes(png(fashion.test_images[k]))
    given = run("predict", photos, "--model", folder, "--json", "--prior", shares_file, "--device", "cpu")
    assert given.returncode == 0, given.stderr
    rows = [json.loads(line) for line in given.stdout.splitlines()]
    assert same(rows, expected_rows(folder, fashion, read(str(shares_file)), 40, "auto"))
    assert not same(rows, expected_rows(folder, fashion, "none", 40, "auto"))
    out = tmp_path / "found.json"
    auto = run("predict", photos, "--model", folder, "--prior", "auto", "--prior-out", out, "--device", "cpu")
    assert auto.returncode == 0, auto.stderr
    assert auto.stdout.startswith(f"{folder}, 10 classes, probabilities calibrated, for class shares auto\n")
    assert "class shares estimated from 40 images:\n" in auto.stderr
    assert "warning: the class shares were estimated from 40 images, and 10 classes want 100 or more" in auto.stderr
    again = run("predict", photos, "--model", folder, "--prior", out, "--device", "cpu")
    assert again.stdout.split("\n\n")[1:] == auto.stdout.split("\n\n")[1:], "the kept estimate gives the same answers"
    for arguments, message in (
        (("--prior", "even"), "--prior even is none of none, train, uniform, auto, nor a file"),
        (("--prior", "train", "--prior-out", out), "--prior-out keeps what --prior auto estimates, not train"),
    ):
        done = run("predict", photos, "--model", folder, *arguments)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def server(folder: Path, shares_file: Path) -> Iterator[Server]:
    with serving(folder, "--threads", "1", "--precision", "fp32", "--prior", str(shares_file)) as server:
        yield server


@pytest.mark.slow
def test_the_server_shifts_by_its_own_shares_or_those_of_the_request(
    server: Server, folder: Path, shares_file: Path, fashion: Fashion
) -> None:
    inputs = fashion.test_images[:6].tolist()
    told = json.loads(shares_file.read_text())
    other = {**told, "Bag": 0}
    for params, asked in (
        ({}, told),
        ({"prior": "none"}, "none"),
        ({"prior": "uniform"}, "uniform"),
        ({"prior": "train"}, "train"),
        ({"prior": other}, other),
        ({"prior": json.dumps(other)}, other),
    ):
        status, answer = server.invoke({"inputs": inputs, "params": params})
        assert status == 200 and same(answer["predictions"], expected_rows(folder, fashion, asked, 6)), params
        assert set(answer) == {"predictions"}
    file = png(fashion.test_images[0])
    for query, asked in (("", told), ("?prior=uniform", "uniform"), (f"?prior={quote(json.dumps(other))}", other)):
        status, answer, _ = server.ask(f"/predict{query}", file, "image/png")
        assert status == 200 and same(answer["predictions"], expected_rows(folder, fashion, asked, 1)), query


@pytest.mark.slow
def test_the_server_estimates_from_a_request_and_says_what_is_doubtful(
    server: Server, folder: Path, fashion: Fashion
) -> None:
    status, answer = server.invoke({"inputs": fashion.test_images[:50].tolist(), "params": {"prior": "auto"}})
    assert status == 200 and same(answer["predictions"], expected_rows(folder, fashion, "auto", 50))
    shares = list(answer["prior"].values())
    assert sum(shares) == pytest.approx(1, abs=1e-3) and shares == sorted(shares, reverse=True) and len(shares) == 10
    assert "note: the class shares were estimated from 50 images, and 10 classes want 100 or more" in answer["note"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("even", "prior 'even' is none of none, train, uniform, auto, nor a JSON object"),
        (quote('{"Bag": 1'), "prior is no JSON object {class: share}"),
        (quote('{"Bag": 1}'), "the prior lacks T-shirt/top, Trouser, Pullover and 6 more"),
        (quote('{"Bags": 1}'), "the prior names 'Bags', which is no class of the model; did you mean Bag?"),
        ("/etc/passwd", "prior '/etc/passwd' is none of"),
    ],
)
def test_a_prior_that_cannot_be_used_is_one_clear_line(
    server: Server, fashion: Fashion, query: str, message: str
) -> None:
    status, answer, _ = server.ask(f"/predict?prior={query}", png(fashion.test_images[0]), "image/png")
    assert status == 422 and message in answer["error"] and "\n" not in answer["error"]


@pytest.mark.slow
def test_a_server_with_shares_of_other_classes_does_not_start(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "shares.csv").write_text("cat,1\ndog,1\n")
    done = run("serve", "--model", folder, "--port", 0, "--prior", tmp_path / "shares.csv")
    assert done.returncode == 2 and "the prior names 'cat', which is no class of the model" in done.stderr
    assert sys.executable not in done.stderr, "no traceback"
