"""What one training process is given to do; a launcher writes it to a file for processes that it starts."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from lfm.config.schema import RunConfig

METHOD = ("lfm.training.worker",)
"""What trains; the import closure is in the key of a model, and the same on all machines that train one."""


@dataclass(frozen=True)
class WorkerTask:
    """One stage to train.

    Args:
        config: the run's configuration.
        stage: 1 or 2.
        alpha: strength of the label shift, a number even where the configuration says "auto".
        dataset: folder of the data set artifact.
        text: folder of the class embeddings.
        backbone: folder of the pre-trained tower.
        previous: folder of stage 1's model; None in stage 1.
        work: folder for checkpoints and curves, which a resumed stage finds again.
        out: folder for the trained model.
        processes: number of processes that train together, over all machines.
        remote: address at LFM_STORE where checkpoints are copied; None without a shared store.
        code: hash of the code that trains, as the launcher has it.
        silence: seconds without a heartbeat of the step after which training elsewhere ends; 0: it trains with the
            step, and ends with it.
    """

    config: RunConfig
    stage: int
    alpha: float
    dataset: Path
    text: Path
    backbone: Path
    previous: Path | None
    work: Path
    out: Path
    processes: int
    remote: str | None
    code: str
    silence: float = 0

    @property
    def checkpoints(self) -> Path:
        """Folder of the stage's checkpoints."""
        return self.work / "checkpoints"

    @property
    def curves(self) -> Path:
        """File with a line for each epoch."""
        return self.work / "curves.jsonl"

    @property
    def heartbeat(self) -> Path:
        """File in which the step that started other machines counts (`lfm.training.heartbeat`)."""
        return self.work / "heartbeat"

    def write(self, folder: Path) -> Path:
        """Write the task as JSON into a folder; the file's path."""
        path = folder / "worker_task.json"
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(TypeAdapter(WorkerTask).dump_json(self, indent=1))
        return path

    @classmethod
    def read(cls, path: Path) -> "WorkerTask":
        """The task that `write` wrote, perhaps on another machine."""
        return TypeAdapter(cls).validate_json(path.read_bytes())
