"""Training: `fastdiff train` as a library. `train(read_config(path), data, out)`."""

from fastdiff.training.config import TrainConfig, read_config
from fastdiff.training.trainer import Progress, Trainer, train

__all__ = ["Progress", "TrainConfig", "Trainer", "read_config", "train"]
