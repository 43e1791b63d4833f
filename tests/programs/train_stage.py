"""Train one small stage and write its weights: STAGE CHECKPOINT_FOLDER OUT.safetensors [FIELD=VALUE ...]."""

import signal
import sys
from pathlib import Path

from safetensors.torch import save_file

from lfm.backbones.model import LFM, conv4
from lfm.config.overrides import parse_overrides
from lfm.training.loop import Stage
from tests.small_stage import config, images, text


def main(stage: int, folder: Path, out: Path, settings: list[str]) -> None:
    values = {"stage1.epochs": 40, "stage2.epochs": 40, **parse_overrides(settings)}
    model = LFM(conv4(1, 32, 0), text())
    Stage(stage, config(**values), model, images(), images(1), folder, lambda metrics, epoch: None, 0.5).run()
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, out)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores Ctrl-C
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
