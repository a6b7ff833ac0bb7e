"""An untrained network of three classes that runs in milliseconds, for tests of what is built on a model."""

from __future__ import annotations

import torch

from fastdiff import models


def tiny_model() -> models.TrainedUNet:
    """Labels brick, cat, truchet; sizes are multiples of 4, 16x16 by default."""
    config = models.UNetConfig(
        num_classes=3, channels=(8, 16), blocks=(1, 1), embed_dim=8, time_dim=8, groups=4, image_size=16
    )
    net = models.TrainedUNet(
        config, labels=("brick", "cat", "truchet"), prediction="v", schedule_options={"name": "cosine_betas"}
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return net.eval().requires_grad_(False)
