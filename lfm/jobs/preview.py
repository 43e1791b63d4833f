"""What the method will do to each class, shown before any training."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfm.config.schema import RunConfig
from lfm.errors import counted
from lfm.progress import say
from lfm.training.model_artifact import read_text

if TYPE_CHECKING:
    from lfm.method.analysis import Pairs

SHOWN_CLASSES = 20
UNEQUAL = 1.2
"""gamma' by text this many times that of uniform partners is said. The paper's own are 1.04 times it on CIFAR100-LT."""
DENSE = 2048
"""With more classes no tau is searched for: each try walks the table of all pairs."""
MANY = 100
"""Images above which a class counts as large where it is said what to tune (LT-Soups 2025)."""
ALIKE = 0.9
"""Class names whose embeddings have a higher cosine are nearly the same to the text tower."""
SHOWN_PAIRS = 50


def preview(config: RunConfig, stage: int, dataset: str, text: str) -> float:
    """Show what the label shift will do to each class before any training; the alpha to train with."""
    if config.mixup.name != "lfm" or not config.stage(stage).epochs:
        if stage == 1 and (warning := alike_warning(alike(Path(dataset), Path(text)))):
            say(warning)
        return 0.0
    found = inspect(config, stage, Path(dataset), Path(text))
    alpha, own = found["alpha"], found["own_label_mass"]
    if config.stage(stage).alpha == "auto":
        kept = config.train.auto_own_label
        say(f"stage {stage}: alpha = {alpha} keeps every class's own-label mass at {kept} or more")
    say(
        f"stage {stage}: gamma {found['gamma']:.0f}, gamma' {found['gamma_effective']:.1f} after local sampling; "
        f"own-label mass at alpha {alpha}: {min(own):.2f} to {max(own):.2f}"
    )
    if stage == 1:  # the picture is the same for stage 2 but for its alpha
        say(describe(found))
    if collapsing := found["collapsing"]:
        say(f"warning: {collapsing}")
    return float(alpha)


def inspect(config: RunConfig, stage: int, dataset: Path, text: Path) -> dict[str, Any]:
    """What the method will do to each class, exact and without sampling (`lfm.method.analysis`).

    Returns:
        `classes`, `counts`, `gamma`, `gamma_effective`, `own_label_mass`, `label_mass`, `neighbours` (for each class
        the three nearest in text, with cosines), `prior`, `seen` (p(Y)), `alpha` as used, and `collapsing`: a warning
        that names the classes whose own-label mass is under the threshold, or nothing; `alike` of `alike`.
    """
    import torch

    from lfm.data.artifact import read_info
    from lfm.method import analysis
    from lfm.training.batches import barred_partners

    info, text_CD = read_info(dataset), read_text(text)
    count_C = torch.tensor(info["counts"])
    barred = barred_partners(config.mixup, info["classes"], text_CD)
    pairs = analysis.Pairs(count_C, text_CD, config.mixup.tau, config.mixup.partner == "uniform", barred)
    threshold, alpha = config.train.own_label_threshold, config.stage(stage).alpha
    alpha = analysis.auto_alpha(pairs, config.train.auto_own_label) if alpha == "auto" else alpha
    own_C, seen_C = analysis.own_label_mass(pairs, alpha), analysis.seen_probability(pairs)
    names = info["classes"]
    near = zip(*(t.tolist() for t in analysis.neighbours(text_CD)), strict=True)
    under = [name for name, own in zip(names, own_C.tolist(), strict=True) if own < threshold]
    return {
        "classes": names,
        "counts": info["counts"],
        "gamma": analysis.imbalance(count_C),
        "gamma_effective": analysis.imbalance(seen_C),
        "own_label_mass": own_C.tolist(),
        "label_mass": analysis.label_mass(pairs, alpha, config.mixup.beta).tolist(),
        "neighbours": [[{"class": names[k], "cosine": cosine} for k, cosine in zip(*row, strict=True)] for row in near],
        "prior": pairs.prior_C.tolist(),
        "seen": seen_C.tolist(),
        "advice": advice(config, pairs),
        "alpha": alpha,
        "alike": alike(dataset, text),
        "collapsing": under
        and f"own-label mass under {threshold} for {', '.join(under)}: these classes are about to collapse. "
        f"Lower stage{stage}.alpha (auto finds the largest safe one) or raise mixup.tau",
    }


def advice(config: RunConfig, pairs: "Pairs") -> list[str]:
    """What the data say of tau and of what to tune, a sentence each."""
    from dataclasses import replace

    from lfm.method import analysis

    classes = len(pairs.count_C)
    found = []
    if config.mixup.name == "lfm":
        partners = analysis.effective_partners(pairs)
        uniform = analysis.imbalance(analysis.seen_probability(replace(pairs, uniform=True)))
        ours = analysis.imbalance(analysis.seen_probability(pairs))
        found.append(
            f"an image has {partners:.3g} of {classes - 1} partner classes in effect (e^entropy) at tau "
            f"{config.mixup.tau:g}; gamma' is {ours:.3g}, with uniform partners {uniform:.3g}"
        )
        if ours > UNEQUAL * uniform and classes <= DENSE:
            found.append(_milder(pairs, partners, UNEQUAL * uniform))
    else:
        found.append(f"mixup.name={config.mixup.name} draws no partners by text: p(Y), own and M are those of lfm")
    if config.model.tower != "conv4" and config.model.weights != "random":
        found.append(_what_to_tune(pairs.count_C))
    return found


def _milder(pairs: "Pairs", partners: float, most: float) -> str:
    """That text makes the classes unequal, and a milder tau: of ever more partners the first that keeps gamma' low.

    Args:
        pairs: as they are.
        partners: of an image in effect, as they are.
        most: gamma' that is low enough; where none is, the tau for nine tenths of the other partners is told.
    """
    from dataclasses import replace

    from lfm.method import analysis

    said = "text makes the classes more unequal than uniform partners would; the paper's tau is for CLIP's cosines"
    others = len(pairs.count_C) - 1
    for step in range(1, 10):
        wanted = partners + (others - partners) * step / 10
        tau = analysis.tau_for(pairs, wanted)
        gamma = analysis.imbalance(analysis.seen_probability(replace(pairs, tau=tau)))
        if gamma <= most:
            break
    return f"{said}: mixup.tau={tau:.2g} gives {wanted:.3g} partners here, and gamma' {gamma:.3g}"


def _what_to_tune(count_C: Any) -> str:
    many, classes = int((count_C > MANY).sum()), len(count_C)
    eta = many / max(1, classes - many)
    better = (
        "adapters (stage1.tune=adaptformer), where the tower has transformer blocks, are likely best"
        if eta < 1
        else "the tower is likely best tuned as a whole (stage1.tune=full)"
    )
    return (
        f"{many} of {counted(classes, 'class has', 'classes have')} more than {MANY} images, {eta:.2g} for each other "
        f"one: {better}, as LT-Soups (2025) found on photos"
    )


def alike(dataset: Path, text: Path) -> dict[str, Any]:
    """Pairs of class names that are nearly the same to the text tower under the prompt, the nearest first.

    Returns:
        `pairs`: how many; `first`: "left hand / right hand 0.97", at most `SHOWN_PAIRS`.
    """
    from lfm.backbones.text_encoders import near_pairs
    from lfm.data.artifact import read_info

    names = read_info(dataset)["classes"]
    found = near_pairs(read_text(text), ALIKE)
    return {"pairs": len(found), "first": [f"{names[i]} / {names[k]} {c:.2f}" for i, k, c in found[:SHOWN_PAIRS]]}


def alike_warning(found: Mapping[str, Any]) -> str:
    """A line about the result of `alike`, or nothing."""
    if not found["pairs"]:
        return ""
    few = ", ".join(found["first"][:5]) + (", ..." if found["pairs"] > 5 else "")
    are = counted(found["pairs"], "pair of class names is", "pairs of class names are")
    return (
        f"warning: {are} nearly the same to the text tower, with a cosine above {ALIKE} ({few}), told apart and mixed "
        f"accordingly: {ALIKE_FIX}"
    )


ALIKE_FIX = (
    "name what differs with data.class_names=FILE, describe it with text.descriptions=FILE, or do not mix them: "
    f"mixup.max_similarity={ALIKE}, or the pairs in mixup.exclude"
)


def describe(found: Mapping[str, Any]) -> str:
    """The result of `inspect` as a table with a bar a class, the first and last of many, and names that are alike."""
    from lfm.report.tables import histogram

    columns = {
        "images": found["counts"],
        "p(Y)": [f"{v:.3f}" for v in found["seen"]],
        "own": [f"{v:.2f}" for v in found["own_label_mass"]],
        "M": [f"{v:.3f}" for v in found["label_mass"]],
    }
    table = histogram(found["classes"], columns, found["seen"], SHOWN_CLASSES)
    warning = alike_warning(found["alike"])
    return f"{table}\n\n{warning}" if warning else table
