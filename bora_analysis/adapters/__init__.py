"""Readers, one per file family, behind :func:`read_adapter`; and a writer of our own formats."""

from ..files.errors import AdapterError
from .adapter import Adapter, Trajectory, checkpoints
from .merging import merge
from .read import read_adapter
from .write import write_adapter

__all__ = ["Adapter", "AdapterError", "Trajectory", "checkpoints", "merge", "read_adapter", "write_adapter"]
