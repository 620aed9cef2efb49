"""Readers, one per file family, behind :func:`read_adapter`; and a writer of our own formats."""

from .adapter import Adapter, Trajectory, checkpoints
from .errors import AdapterError
from .merging import merge
from .read import read_adapter
from .write import write_adapter

__all__ = ["Adapter", "AdapterError", "Trajectory", "checkpoints", "merge", "read_adapter", "write_adapter"]
