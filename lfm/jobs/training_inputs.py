"""What a training run begins from, made in one step: data, backbone, class embeddings.

Each pod costs Argo some ten seconds before and ten after its work, so what always goes together is one step. Each part
has its own run in MLflow and its own place in the store.
"""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from lfm.config.schema import DataConfig
from lfm.jobs.alignment import align_backbone
from lfm.jobs.prepare import embed_text, fetch_backbone, loading, prepare_data
from lfm.jobs.retrain import CHANGED, UNCHANGED, data_news, nothing_to_do
from lfm.jobs.step import Mistake, step


@step
def repeat_mistakes() -> None:
    """End a retry at once where the attempt before met a mistake: not by way of a backbone or a list of all files."""
    for job in (fetch_backbone, prepare_data, embed_text, align_backbone):
        Mistake.of(job.__name__).repeat()


@step
def tell_other_data(preset: str, dataset: str) -> None:
    """Say in one line where the registered name has a champion of other data; a server that is down stops nothing."""
    from lfm.jobs.champion import say_other_data
    from lfm.storage.handover import resolve

    with suppress(Exception):
        say_other_data(preset, resolve(dataset, "prepare"))


def prepare_inputs(config: dict[str, Any], dataset: str, embeddings: str, backbone: str) -> None:
    """Fetch the backbone, prepare the data, embed the class names, and fit a projection where the tower needs one.

    The backbone is first: that it cannot be had is known in seconds, and decoding the images may take hours.

    Args:
        config: The complete configuration.
        dataset: Folder for the data set artifact.
        embeddings: Folder for the class embeddings.
        backbone: Folder for the pre-trained towers.
    """
    repeat_mistakes()
    fetch_backbone(config["model"], config["seed"], backbone, config["text"])
    prepare_data(config["data"], config["model"], config["seed"], dataset)
    tell_other_data(config["preset"], dataset)
    embed_text(config["text"], dataset, backbone, embeddings)
    align_backbone(config["model"], dataset, embeddings, backbone)


def prepare_retraining(config: dict[str, Any], dataset: str, embeddings: str, backbone: str) -> str:
    """Do what `prepare_inputs` does, where the data are new to the champion: changed or unchanged.

    Args:
        config: The complete configuration; names the registered model.
        dataset: Folder for the data set artifact; empty where no image had to be read to know that it is unchanged.
        embeddings: Folder for the class embeddings; empty where the data are unchanged.
        backbone: Folder for the pre-trained towers; empty where the data are unchanged.
    """
    repeat_mistakes()
    load = loading(DataConfig.model_validate(config["data"]))
    unchanged = nothing_to_do(config, load)
    if not unchanged:
        fetch_backbone(config["model"], config["seed"], backbone, config["text"])
        prepare_data(config["data"], config["model"], config["seed"], dataset, load)
        unchanged = data_news(config, dataset) == UNCHANGED
        if not unchanged:
            tell_other_data(config["preset"], dataset)
    if unchanged:
        shutil.rmtree(backbone, ignore_errors=True)
        for folder in (dataset, embeddings, backbone):  # KFP expects every output
            Path(folder).mkdir(parents=True, exist_ok=True)
        return UNCHANGED
    embed_text(config["text"], dataset, backbone, embeddings)
    align_backbone(config["model"], dataset, embeddings, backbone)
    return CHANGED
