"""Readers, one per file family, behind :func:`read_adapter`; and a writer of our own formats."""

from typing import TYPE_CHECKING

import lazy_loader

from ..files.errors import AdapterError
from .adapter import Adapter, Trajectory, checkpoints
from .read import read_adapter

if TYPE_CHECKING:
    from .merging import merge
    from .write import write_adapter

# Reading does without these two.
__getattr__, _, _ = lazy_loader.attach(__name__, submod_attrs={"merging": ["merge"], "write": ["write_adapter"]})
__all__ = ["Adapter", "AdapterError", "Trajectory", "checkpoints", "merge", "read_adapter", "write_adapter"]
