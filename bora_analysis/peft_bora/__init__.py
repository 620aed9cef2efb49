"""The earlier name of :mod:`bora_analysis.peft_methods`, kept for code that imports it."""

from ..peft_methods import *  # noqa: F403
