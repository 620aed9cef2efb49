"""What the readers return."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files.keys import natural
from ..updates.contract import Update


@dataclass(frozen=True, eq=False)
class Adapter(Mapping[str, Update]):
    """The updates of one adapter by module path, in natural order (layer 2 before layer 10).

    Attributes
    ----------
    name : the folder's name; for a folder ``checkpoint-N`` its parent's; for a bare file its stem.
    method : ``"lora"``, ``"rslora"``, ``"melora"`` or ``"bora"``.
    step : N of ``checkpoint-N``.
    path : the weight file; None for an adapter in memory.
    loaders : module path → function that reads its update. Indexing calls it, so that only the modules in use are in
        memory: keep the result where it is needed twice.
    passed_over : keys of the file that are no part of any low-rank update (heads, biases, embeddings …).
    warnings : one line each, where the numbers need a caveat.
    """

    name: str
    method: str
    step: int | None
    path: Path | None
    loaders: Mapping[str, Callable[[], Update]] = field(repr=False)
    passed_over: tuple[str, ...] = field(default=(), repr=False)
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_updates(
        cls, name: str, updates: Mapping[str, Update], step: int | None = None, method: str | None = None
    ) -> Adapter:
        """An adapter of updates that are in memory. ``method`` is by default that of the updates.

        Examples
        --------
        >>> import numpy as np
        >>> from bora_analysis import lora
        >>> delta = lora(np.ones((4, 1)), np.ones((1, 3)))
        >>> list(Adapter.from_updates("mine", {"layers.10.q": delta, "layers.2.q": delta}))
        ['layers.2.q', 'layers.10.q']
        """
        methods = sorted({update.facts.method for update in updates.values()})
        loaders = {module: _holder(updates[module]) for module in sorted(updates, key=natural)}
        return cls(name, method or "+".join(methods), step, None, loaders)

    def __getitem__(self, module: str) -> Update:
        return self.loaders[module]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.loaders)

    def __len__(self) -> int:
        return len(self.loaders)

    def __contains__(self, module: object) -> bool:  # Mapping's own would load the module
        return module in self.loaders

    # Mapping's equality would load and compare every module.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return id(self)


@dataclass(frozen=True)
class Trajectory(Sequence[Adapter]):
    """The checkpoints of one run, in the order of their steps."""

    name: str
    checkpoints: tuple[Adapter, ...]

    def __getitem__(self, index: Any) -> Any:
        return self.checkpoints[index]

    def __len__(self) -> int:
        return len(self.checkpoints)


def checkpoints(adapter: Adapter | Trajectory) -> tuple[Adapter, ...]:
    """The adapters in it: one, or one per checkpoint."""
    return adapter.checkpoints if isinstance(adapter, Trajectory) else (adapter,)


def _holder(update: Update) -> Callable[[], Update]:
    return lambda: update
