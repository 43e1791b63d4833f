"""One of several training processes; `lfm.jobs.training.train_together` starts them through torchrun's API."""

import json
import sys
from pathlib import Path
from typing import Any

from lfm.config import InputError, RunConfig
from lfm.jobs.step import ERROR_MARK
from lfm.jobs.training import Curves, train


def main(path: str) -> None:
    """Train this process's share.

    Args:
        path: JSON file with the arguments of `lfm.jobs.training.train`, and where the curves go.
    """
    told = json.loads(Path(path).read_text())
    curves = Curves(Path(told.pop("curves")), lambda values, epoch: None)  # the step sends them
    config = RunConfig.model_validate(told.pop("config"))
    places: dict[str, Any] = {name: Path(told.pop(name)) for name in ("out", "checkpoints")}
    try:
        train(config=config, log=curves.log, **places, **told)
    except InputError as error:
        print(f"{ERROR_MARK}{error}", file=sys.stderr, flush=True)  # noqa: T201
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main(sys.argv[1])
