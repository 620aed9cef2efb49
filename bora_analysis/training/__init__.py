"""Training adapters for the analysis, with transformers and PEFT (extra ``train``)."""

from .errors import TrainingError
from .recipes import RECIPES
from .run import train
from .settings import TASKS, Settings

__all__ = ["RECIPES", "TASKS", "Settings", "TrainingError", "train"]
