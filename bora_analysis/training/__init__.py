"""Training adapters for the analysis, with transformers and PEFT (extra ``train``)."""

from .errors import TrainingError
from .experiment import experiment
from .plan import Plan, read_plan
from .recipes import RECIPES
from .run import train
from .settings import TASKS, Settings

__all__ = ["RECIPES", "TASKS", "Plan", "Settings", "TrainingError", "experiment", "read_plan", "train"]
