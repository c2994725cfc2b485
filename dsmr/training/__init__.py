"""Training: whole pieces streamed through lanes, backpropagation one segment long, the memory carried on.

`train` is the whole of it; `Trainer` is a model in training, without a folder and without a reader.
"""

from dsmr.claim import OccupiedError, SaveError
from dsmr.training.config import TrainingConfig
from dsmr.training.folder import BEST, LAST, METRICS_FILE, RunFolder
from dsmr.training.loop import train
from dsmr.training.optimisation import accumulate_gradients, make_optimizer
from dsmr.training.trainer import DivergedError, Run, Trainer, perplexity

__all__ = [
    "BEST",
    "LAST",
    "METRICS_FILE",
    "DivergedError",
    "OccupiedError",
    "Run",
    "RunFolder",
    "SaveError",
    "Trainer",
    "TrainingConfig",
    "accumulate_gradients",
    "make_optimizer",
    "perplexity",
    "train",
]
