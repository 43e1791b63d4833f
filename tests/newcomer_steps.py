"""A few training steps of a preset with some fields set: `python newcomer_steps.py NAME=VALUE ...` prints them as JSON.

tests/test_newcomer.py runs it on a copy of the package.
"""

import json
import sys

import torch
from torch.nn import functional as F  # noqa: N812

import lfm
from lfm.config.overrides import parse_overrides
from lfm.config.presets import load
from lfm.method.losses import Classes, make_loss, soft
from lfm.method.mixup import PairSampler, mix

COUNTS = torch.tensor([60, 30, 10])


def main() -> None:
    """A linear model of 8 features in cosines with random text, on three classes of random features."""
    config = load("fashion-mnist-lt", parse_overrides(sys.argv[1:]))
    rng = torch.Generator().manual_seed(0)
    text_CD = F.normalize(torch.randn(3, 8, generator=rng), dim=1)
    label_N = torch.arange(3).repeat_interleave(COUNTS)
    feature_ND = torch.randn(3, 8, generator=rng)[label_N] + 0.3 * torch.randn(len(label_N), 8, generator=rng)
    sampler = PairSampler(config.mixup, label_N, text_CD, alpha=0.5, batch_size=20, seed=config.seed, stage=1)
    loss = make_loss(config.loss, Classes(COUNTS, text_CD))
    weight_DD = torch.eye(8, requires_grad=True)
    optimizer = torch.optim.Adam([weight_DD], lr=0.05)
    batches, losses = [sampler.batch(*divmod(step, sampler.steps_per_epoch)) for step in range(25)], []
    for batch in batches:
        first_BD, partner_BD = feature_ND[batch.index_B2].unbind(dim=1)
        mixed_BD = mix(first_BD, partner_BD, batch.lambda_x_B)
        cosine_BC = F.normalize(mixed_BD @ weight_DD, dim=1) @ text_CD.T
        optimizer.zero_grad()
        mean = soft(loss, cosine_BC, batch.label_B2, batch.weight_B2).mean()
        mean.backward()
        optimizer.step()
        losses.append(mean.item())
    lambda_x, weight = batches[0].lambda_x_B.tolist(), batches[0].weight_B2[:, 0].tolist()
    print(json.dumps({"package": lfm.__file__, "losses": losses, "lambda_x": lambda_x, "label_weight": weight}))


if __name__ == "__main__":
    main()
