"""One of several training processes: `lfm.jobs.training` starts them here, `lfm.jobs.multinode` on other machines."""

import json
import sys
from pathlib import Path
from typing import Any

from lfm.config.schema import RunConfig
from lfm.errors import InputError
from lfm.jobs.step import ERROR_MARK
from lfm.jobs.training import METHOD, train
from lfm.storage.import_closure import source_hash
from lfm.training.curves import Curves


def main(path: str) -> None:
    """Train this process's share.

    Args:
        path: JSON file that `lfm.jobs.training.write_ranks` wrote.
    """
    told = json.loads(Path(path).read_text())
    curves = Curves(Path(told.pop("curves")), lambda values, epoch: None)  # the step sends them
    config = RunConfig.model_validate(told.pop("config"))
    places: dict[str, Any] = {name: Path(told.pop(name)) for name in ("out", "checkpoints")}
    code = told.pop("code")
    try:
        if code != source_hash(*METHOD):
            raise InputError(
                "this machine's image holds another version of LFM than the step's; set LFM_IMAGE, or the image of the "
                "training runtime, to the one that the step runs in"
            )
        train(config=config, log=curves.log, **places, **told)
    except InputError as error:
        print(f"{ERROR_MARK}{error}", file=sys.stderr, flush=True)  # noqa: T201
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main(sys.argv[1])
