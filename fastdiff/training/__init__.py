"""Training: `fastdiff train` as a library. `train(read_config(path), data, out)`."""

from fastdiff.training.config import TrainConfig, read_config
from fastdiff.training.data import Examples
from fastdiff.training.progress import Diverged, Progress
from fastdiff.training.run import train
from fastdiff.training.start import settings_of
from fastdiff.training.trainer import Trainer

__all__ = [
    "Diverged",
    "Examples",
    "Progress",
    "TrainConfig",
    "Trainer",
    "read_config",
    "settings_of",
    "train",
]
