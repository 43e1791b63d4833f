"""Every loss and every mixup on Fashion-MNIST-LT, with paired seeds: the table of docs/science.md.

    .venv/bin/python benchmarks/science.py --seeds 5
    .venv/bin/python benchmarks/science.py --seeds 5 --precision
    .venv/bin/python benchmarks/science.py --seeds 3 --partners
    .venv/bin/python benchmarks/science.py --seeds 3 --own-label

The second compares bf16 with fp32 (docs/precision.md), the third bars the nearest names from being partners
(docs/partners.md), the fourth tries what own-label mass `alpha: auto` keeps (docs/own-label.md).
A seed redraws subset, initial weights and batches alike for all arms, so differences are paired. Results are kept
in the JSON file as they come, each named by its configuration and the code's hash: a stopped run goes on where it
was, and a changed method is trained again.
"""

import argparse
import json
import platform
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from lfm.backbones.device import pick_device
from lfm.config.presets import load
from lfm.config.schema import GROUPS, RunConfig
from lfm.data.artifact import read_info
from lfm.data.images import open_split
from lfm.evaluation.adjustment import direction, predict_adjusted, tune
from lfm.evaluation.inference import image_features, score, score_split
from lfm.jobs.prepare import backbone_for, dataset_for, embeddings_for
from lfm.jobs.preview import inspect
from lfm.report.tables import COLUMNS, percent
from lfm.revision import commit
from lfm.storage.artifact import content_key
from lfm.storage.import_closure import source_hash
from lfm.training.loop import Stage
from lfm.training.model_artifact import new_model

PRESET = "fashion-mnist-lt"
BASE = "CE"
PLAIN = {"mixup.name": "none"}
MMS = {"loss.name": "mms"}

ARMS: dict[str, dict[str, Any]] = {
    BASE: PLAIN,
    "BalCE": PLAIN | {"loss.name": "balce"},
    "Focal": PLAIN | {"loss.name": "focal"},
    "LDAM": PLAIN | {"loss.name": "ldam"},
    "MMS": PLAIN | MMS,
    "Mixup + CE": {"mixup.name": "mixup"},
    "Remix + CE": {"mixup.name": "remix"},
    "CE + LA(prior)": PLAIN | {"loss.adjust": "prior"},
    "LFM + CE": {},
    "LFM + CE + LA(mass)": {"loss.adjust": "label-mass"},
    "LFM + CE, EMA .99": {"stage1.ema": 0.99, "stage2.ema": 0.99},
    "LFM + MMS": MMS,
    "LFM + CE, uniform partner": {"mixup.partner": "uniform"},
    "LFM + CE, the paper's tau .05, alpha 1": {"mixup.tau": 0.05, "stage1.alpha": 1.0, "stage2.alpha": 1.0},
    "LFM + CE, tau .05, alpha .5": {"mixup.tau": 0.05},
    "LFM + CE, tau .05, alpha auto": {"mixup.tau": 0.05, "stage1.alpha": "auto", "stage2.alpha": "auto"},
    **{f"alpha {a:g}": {"stage1.alpha": a, "stage2.alpha": a} for a in (0.0, 0.25, 0.75, 1.0, 1.5, 2.0)},
    **{f"tau {t:g}": {"mixup.tau": t} for t in (0.01, 1.25, 31.25)},
}

FP32 = "LFM + CE, fp32"
PRECISION: dict[str, dict[str, Any]] = {
    FP32: {"train.precision": "fp32"},
    "LFM + CE, bf16": {"train.precision": "bf16"},
}

ANY_PARTNER = "LFM + CE, any partner"
PARTNERS: dict[str, dict[str, Any]] = {
    ANY_PARTNER: {},
    "no partner above .8 (Shirt and T-shirt/top, .81)": {"mixup.max_similarity": 0.8},
    "no partner above .55 (7 pairs)": {"mixup.max_similarity": 0.55},
}

HALF = "alpha auto, own-label mass .5"
OWN_LABEL: dict[str, dict[str, Any]] = {
    f"alpha auto, own-label mass .{kept}": {
        "mixup.tau": 0.05, "stage1.alpha": "auto", "stage2.alpha": "auto", "train.auto_own_label": kept / 10
    }
    for kept in (5, 6, 7, 8)
}  # fmt: skip


def train_and_score(config: RunConfig) -> dict[str, Any]:
    """Both stages of one arm and seed, and its test metrics; adjusted ones too, where there are validation images."""
    device = pick_device(config.train.device)
    folder, _ = dataset_for(config.data, config.model, config.seed)
    backbone, _ = backbone_for(config.model, config.seed, config.text)
    text, _ = embeddings_for(config.text, folder, backbone)
    train, val, test = (open_split(folder, split, device, config.train.resize) for split in ("train", "val", "test"))
    classes = read_info(folder)["classes"]
    model = new_model(config, folder, text, backbone).to(device)
    with tempfile.TemporaryDirectory() as checkpoints:  # written only when it is ended in the middle
        for number in (1, 2):
            alpha, place = inspect(config, number, folder, text)["alpha"], Path(checkpoints) / str(number)
            stage = Stage(number, config, model, train, val, place, lambda _, __: None, alpha, None, classes)
            stage.run()
            prior_C = stage.shares.remaining(config.loss)
    of_test, label_N = image_features(model, test, config), train.label_N
    found = score_split(model, test, label_N, config, of_test)
    scores = {name: found[name] for name in (*COLUMNS, "per_class")}
    if len(val):
        log_prior_C = direction(prior_C, label_N.bincount(minlength=len(classes)))
        of_val = image_features(model, val, config)
        tuned = tune(model, of_val, val.label_N, log_prior_C, config.loss.divisor, config)
        better = score(predict_adjusted(model, of_test, tuned, config), test, label_N, config, len(classes))
        scores["adjusted"] = {name: better[name] for name in COLUMNS} | {"strength": tuned.strength}
    return scores


def arm_config(overrides: Mapping[str, Any], seed: int, common: Mapping[str, Any]) -> RunConfig:
    """The configuration of an arm: no validation and no checkpoints, which change nothing in the result."""
    quiet = {"train.validate_every": 0, "train.checkpoint_minutes": 1e9}
    return load(PRESET, {**quiet, **common, **overrides, "seed": seed})


def paired(ours: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """Mean of the paired differences and half the width of its 95 % interval (Student's t)."""
    differences = [a - b for a, b in zip(ours, base, strict=True)]
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return mean, float("nan")
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return mean, float(stats.t.ppf(0.975, len(differences) - 1)) * error


def spread(values: Sequence[float | None]) -> str:
    """Mean and standard deviation; a dash for an absent group."""
    numbers = [v for v in values if v is not None]
    if not numbers:
        return "-"
    return (
        f"{statistics.mean(numbers):.1f} {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else percent(numbers[0])
    )


def markdown(
    scores: Mapping[str, Mapping[int, Mapping[str, Any]]], about: Mapping[str, Any], title: str, base: str
) -> str:
    """The table, with what it is of; paired differences are to `base`."""
    lines = [
        f"# {title} on Fashion-MNIST-LT",
        "",
        f"Printed by `{about['command']}`.",
        "",
        "Top-1 accuracy on the 10,000 test images in percent, mean and standard deviation over the seeds; last, the",
        f"paired difference to {base} with its 95 % interval (Student's t). A seed redraws subset, weights, batches.",
        "alpha .5 and tau .25 unless the row says otherwise. Last two columns: adjusted after training, as strongly as",
        "is best on the validation images (docs/method.md).",
        "",
        *(f"- {name}: {value}" for name, value in about.items() if name != "command"),
        "",
        "| | " + " | ".join(COLUMNS) + f" | All against {base} | Few against {base} | all, adjusted | few, adjusted |",
        "|---" * (len(COLUMNS) + 5) + "|",
    ]
    for arm, by_seed in scores.items():
        seeds = sorted(set(by_seed) & set(scores.get(base, {})))
        cells = [spread([by_seed[s][c] for s in sorted(by_seed)]) for c in COLUMNS]
        for column in ("all", "few"):
            if arm == base or not seeds or any(by_seed[s][column] is None for s in seeds):
                cells.append("")
                continue
            mean, half = paired([by_seed[s][column] for s in seeds], [scores[base][s][column] for s in seeds])
            cells.append(f"{mean:+.1f} ± {half:.1f}")
        cells += [spread([by_seed[s]["adjusted"][c] for s in sorted(by_seed)]) for c in ("all", "few")]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> dict[str, dict[int, dict[str, Any]]]:
    """Run what is missing, then write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="paired seeds, from 0")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS), help="rows; default all")
    parser.add_argument("--precision", action="store_true", help="bf16 against fp32 instead of the methods")
    parser.add_argument("--partners", action="store_true", help="near names as partners or not, instead of the methods")
    parser.add_argument("--own-label", action="store_true", help="what alpha auto keeps, instead of the methods")
    parser.add_argument("--quick", action="store_true", help="10 and 3 epochs instead of 40 and 10")
    parser.add_argument("--out", type=Path, help="writes OUT.md and OUT.json; default docs/science or docs/precision")
    options = parser.parse_args(argv)
    base, title, name = BASE, "Every loss and every mixup", "science"
    if options.precision:
        base, title, name, options.arms = FP32, "bf16 against fp32", "precision", list(PRECISION)
    if options.partners:
        base, title, name, options.arms = ANY_PARTNER, "Near names as partners or not", "partners", list(PARTNERS)
    if options.own_label:
        base, title, name, options.arms = HALF, "What alpha auto keeps, at tau .05,", "own-label", list(OWN_LABEL)
    options.out = options.out or Path("docs") / name
    common = {"stage1.epochs": 10, "stage2.epochs": 3} if options.quick else {}
    code = source_hash("lfm.jobs.training", "lfm.jobs.prepare")
    kept_path = options.out.with_suffix(".json")
    kept: dict[str, Any] = json.loads(kept_path.read_text())["results"] if kept_path.exists() else {}
    scores: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in options.arms}
    about = {
        "command": "python benchmarks/science.py --seeds "
        + str(options.seeds)
        + (" --precision" if options.precision else "")
        + (" --partners" if options.partners else "")
        + (" --own-label" if options.own_label else "")
        + (" --quick" if options.quick else ""),
        "data": f"Fashion-MNIST-LT, imbalance 100, 2,478 training images, seeds 0 to {options.seeds - 1}",
        "split": f"test; shots: {load(PRESET).shots.rule}; groups: {', '.join(GROUPS)}",
        "weights": "conv4 from scratch; text all-MiniLM-L6-v2",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}",
        "method": f"commit {commit()}, code {code[:12]}",
    }
    for seed in range(options.seeds):  # seed by seed, so that a stopped run is a paired table of fewer seeds
        for arm in options.arms:
            config = arm_config((ARMS | PRECISION | PARTNERS | OWN_LABEL)[arm], seed, common)
            key = content_key([config.model_dump(), code])
            if key not in kept:
                print(f"seed {seed}: {arm}", flush=True)
                kept[key] = {"arm": arm, "seed": seed, **train_and_score(config)}
                _write(kept_path, {"about": about, "results": kept})
            scores[arm][seed] = kept[key]
    current = {r["arm"] + str(r["seed"]) for by_seed in scores.values() for r in by_seed.values()}
    assert len(current) == len(options.arms) * options.seeds
    table = markdown(scores, about, title, base)
    _write(kept_path, {"about": about, "results": kept})
    options.out.with_suffix(".md").write_text(table)
    print(table)
    return scores


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(content, indent=1))
    aside.replace(path)


if __name__ == "__main__":
    main()
