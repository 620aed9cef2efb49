"""What the readers return."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bora_analysis

from ..cards import based_on, card
from ..catalogue import METHODS
from ..files.errors import counted
from ..files.keys import natural
from ..updates.contract import Update, label


class _Views:
    """What the rooms above make of adapters, by the public names, which are loaded when they are called."""

    def metrics(self, **options: Any) -> Any:
        """:func:`bora_analysis.layer_metrics` of it."""
        return bora_analysis.layer_metrics(self, **options)

    def spectra(self, **options: Any) -> Any:
        """:func:`bora_analysis.spectra` of it."""
        return bora_analysis.spectra(self, **options)

    def summary(self, **options: Any) -> Any:
        """:func:`bora_analysis.summary` of it."""
        return bora_analysis.summary(self, **options)

    def plot(self, name: str = "spectra", **options: Any) -> Any:
        """The figure of that name, see :func:`bora_analysis.figures.draw`."""
        return bora_analysis.figures.draw(name, self, **options)

    def _repr_html_(self) -> str:
        return card(self, self._told)

    def _told(self) -> tuple[list[str], Any]:
        """What a card says of it, of the last step: nothing that takes long."""
        last: Any = checkpoints(self)[-1]  # pyright: ignore[reportArgumentType]
        lines = [based_on(last.base_model), *last.warnings]
        if len(last) > 500 or is_dense(last):
            return lines, None
        layers = last.metrics(on_module=lambda: None)
        sizes = {"r": layers["r"], "b": layers["blocks"]}
        told = [f"{name} = {'–'.join(map(str, sorted({each.min(), each.max()})))}" for name, each in sizes.items()]
        table = bora_analysis.summary(layers)
        columns = ["projection", "modules", "parameters", "rank_bound", "effective_rank", "energy_rank_99", "energy"]
        return [", ".join(told), *lines, bora_analysis.verdict(layers)], table[columns]


@dataclass(frozen=True, eq=False, repr=False)
class Adapter(_Views, Mapping[str, Update]):
    """The updates of one adapter by module path, in natural order (layer 2 before layer 10).

    A module is named by its path, or by an end of it, or by some of its parts and the last one, if no other fits:
    ``adapter["layer.0.query"]``.

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
    base_model : name of the base model, where the configuration has it.
    layout : of its file, by the name under which :func:`bora_analysis.convert` writes it; None for others.

    Examples
    --------
    >>> from bora_analysis import synthetic_adapter
    >>> adapter = synthetic_adapter("bora", {f"layer.{k}.self.query": (64, 32) for k in range(2)}, r=2, blocks=4)
    >>> adapter
    <Adapter bora-r2-b4: BoRA, 2 modules>
    >>> adapter["layer.0.query"]
    BoRA 64×32, r = 2, b = 4, rank ≤ 8
    >>> adapter.metrics()["rank_bound"].tolist()
    [8, 8]
    """

    name: str
    method: str
    step: int | None
    path: Path | None
    loaders: Mapping[str, Callable[[], Update]] = field(repr=False)
    passed_over: tuple[str, ...] = field(default=(), repr=False)
    warnings: tuple[str, ...] = ()
    base_model: str | None = None
    layout: str | None = None

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
        return self.loaders[module if module in self.loaders else self._found(module)]()

    def _found(self, asked: str) -> str:
        wanted = str(asked).split(".")
        parts = {name: name.split(".") for name in self.loaders}
        hits = [name for name in parts if name.endswith(f".{asked}")]
        hits = hits or [name for name, own in parts.items() if own[-1] == wanted[-1] and _in_order(wanted, own)]
        if len(hits) == 1:
            return hits[0]
        if hits:
            raise KeyError(f"{asked} fits {len(hits)} modules of {self.name}: {', '.join(hits[:8])}; give more of one")

        from difflib import SequenceMatcher  # here: a miss is rare

        def likeness(name: str) -> float:
            last = SequenceMatcher(None, wanted[-1], parts[name][-1]).ratio()
            return last + sum(part in parts[name] for part in wanted)

        close = ", ".join(sorted(parts, key=likeness, reverse=True)[:3])
        raise KeyError(f"{self.name} has no module {asked}; close to it: {close or 'none, it is empty'}")

    def __repr__(self) -> str:
        step = "" if self.step is None else f" step {self.step}"
        return f"<Adapter {self.name}{step}: {label(self.method)}, {counted(len(self), 'module')}>"

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


@dataclass(frozen=True, repr=False)
class Trajectory(_Views, Sequence[Adapter]):
    """The checkpoints of one run, in the order of their steps.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from bora_analysis import Trajectory, synthetic_adapter
    >>> adapter = synthetic_adapter("lora", {"layers.0.q_proj": (64, 32)}, r=4)
    >>> run = Trajectory("run", tuple(replace(adapter, name="run", step=step) for step in (0, 100)))
    >>> run, run[-1]
    (<Trajectory run: 2 checkpoints, steps 0 to 100>, <Adapter run step 100: LoRA, 1 module>)
    >>> run.metrics()[["step", "effective_rank"]].values.tolist()
    [[0, 4], [100, 4]]
    """

    name: str
    checkpoints: tuple[Adapter, ...]

    def __getitem__(self, index: Any) -> Any:
        return self.checkpoints[index]

    def __len__(self) -> int:
        return len(self.checkpoints)

    def __repr__(self) -> str:
        steps = f", steps {self[0].step} to {self[-1].step}" if self.checkpoints else ""
        return f"<Trajectory {self.name}: {counted(len(self), 'checkpoint')}{steps}>"


def checkpoints(adapter: Adapter | Trajectory) -> tuple[Adapter, ...]:
    """The adapters in it: one, or one per checkpoint."""
    return adapter.checkpoints if isinstance(adapter, Trajectory) else (adapter,)


def is_dense(adapter: Adapter) -> bool:
    """Whether each module takes a decomposition of all of its weight."""
    return any(name == "full" or (name in METHODS and METHODS[name].needs_base) for name in adapter.method.split("+"))


def _in_order(asked: Sequence[str], parts: Sequence[str]) -> bool:
    rest = iter(parts)
    return all(part in rest for part in asked)


def _holder(update: Update) -> Callable[[], Update]:
    return lambda: update
