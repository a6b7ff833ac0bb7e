"""Models that fastdiff trains and samples itself: `load()` gives the bundled one."""

from fastdiff.models.checkpoint import CheckpointError, TrainedUNet, load, save
from fastdiff.models.config import UNetConfig
from fastdiff.models.unet import UNet

__all__ = ["CheckpointError", "TrainedUNet", "UNet", "UNetConfig", "load", "save"]
