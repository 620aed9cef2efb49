"""The earlier name of :mod:`bora_analysis.peft_methods`, kept for code that imports it."""

from .. import peft_methods
from ..peft_methods import *  # noqa: F403

__all__ = peft_methods.__all__
