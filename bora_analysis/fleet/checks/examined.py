"""What the rules look at: one adapter's files, its configuration, its numbers, and what went wrong in reading them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...adapters import Adapter, AdapterError, read_adapter
from ...adapters.locate import Located, located, named
from ...analysis.arranging import of_llama_cpp
from ...analysis.tables import analyse
from ...catalogue.dtypes import EPSILON
from ...files.adapter_file import Source
from ...files.base_model import BaseWeights
from ...files.configuration import read_configuration
from ...files.errors import BaseNeededError, RankError
from ...files.keys import ancestors, module_path
from ...files.tensors import Tensors, open_tensors
from ...updates.checks import is_finite

if TYPE_CHECKING:
    import pandas as pd


class Problem(NamedTuple):
    """Something that could not be read: the module, or "" for the whole, and the error."""

    module: str
    error: AdapterError


class Scan(NamedTuple):
    """What a look at a tensor's numbers tells.

    Attributes
    ----------
    size : how many. bad : how many are NaN or infinite. first : the index of the first of these.
    """

    size: int
    bad: int
    first: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Examined:
    """One adapter as the rules see it.

    Attributes
    ----------
    name : of the adapter. path : where it is.
    folder : the adapter's own folder; None for a bare file and for an adapter in memory.
    config : its configuration. tensors : its weight file, open. adapter : as read. Each None where there is none.
    layers : ``layer_metrics`` of the modules that can be read.
    base : the base model, where it was given.
    problems : what could not be read. ranks : module → rank found and rank of the configuration, where they differ.
    """

    name: str
    path: str
    folder: Path | None = None
    config: Mapping[str, Any] | None = None
    tensors: Tensors | None = None
    adapter: Adapter | None = None
    layers: pd.DataFrame | None = None
    base: BaseWeights | None = None
    problems: tuple[Problem, ...] = ()
    ranks: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @cached_property
    def scans(self) -> dict[str, Scan]:
        """Key → what its numbers tell, of every tensor of floating-point numbers that can be read."""
        found = {}
        for key in self.tensors.keys() if self.tensors is not None else ():
            if self.tensors.dtype(key) in EPSILON:  # pyright: ignore[reportOptionalMemberAccess]
                try:
                    found[key] = _scan(self.tensors.read(key))  # pyright: ignore[reportOptionalMemberAccess]
                except AdapterError:  # the reader says it
                    continue
        return found

    def module_of(self, key: str) -> str:
        """The module of a tensor; the key itself where it belongs to none."""
        modules = self.adapter or {}
        path = module_path(key)
        return next((path for path in (path, *ancestors(path)) if path in modules), key)

    def rows(self) -> list[Any]:
        """The rows of ``layers``, as named tuples."""
        return [] if self.layers is None else list(self.layers.itertuples(index=False))


def examine(home: Path, reading: Mapping[str, Any], on_module: Callable[[], object] | None = None) -> Examined:
    """Look at the adapter in one place: a folder, a file, a checkpoint; nothing raises for a fault of the adapter."""
    options = {**reading, "steps": False}
    title, problems = named(home).name, []
    found = Examined(title, str(home), base=reading.get("base"))
    try:
        place = located(home)
        found = replace(found, path=str(place.weights), folder=place.folder)
        found = replace(found, config=_configuration(place, options), tensors=_opened(place))
    except AdapterError as error:
        problems.append(Problem("", error))
    adapter, ranks = None, None
    try:
        adapter, ranks = _read(home, options, found.config)
    except AdapterError as error:
        if not any(str(problem.error) == str(error) for problem in problems):
            problems.append(Problem("", error))
            if isinstance(error, RankError):
                found = replace(found, ranks={error.module: (error.found, error.expected)})
    return _measured(replace(found, problems=tuple(problems)), adapter, ranks, on_module)


def examined_adapter(
    adapter: Adapter, reading: Mapping[str, Any], on_module: Callable[[], object] | None = None
) -> Examined:
    """The same of an adapter that is read already, with its file where it has one."""
    found = Examined(adapter.name, str(adapter.path or adapter.name), base=reading.get("base"))
    if adapter.path is not None and adapter.path.exists() and adapter.method != "full":
        try:
            place = located(adapter.path)
            found = replace(found, config=_configuration(place, {}), tensors=_opened(place), folder=place.folder)
        except AdapterError as error:
            found = replace(found, problems=(Problem("", error),))
    return _measured(found, adapter, None, on_module)


def _configuration(place: Located, options: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if options.get("config") is not None:
        from ...adapters.in_memory import settings_of

        return settings_of(options["config"])
    return None if place.config is None else read_configuration(place.config.parent)


def _opened(place: Located) -> Tensors:
    return BaseWeights(place.weights) if place.config is None else open_tensors(place.weights)


def _read(home: Path, options: Mapping[str, Any], config: Mapping[str, Any] | None) -> tuple[Adapter, RankError | None]:
    """The adapter; where its ranks are not the configuration's, read by those of the tensors."""
    try:
        return _one(home, options), None
    except RankError as error:
        try:
            return _one(home, {**options, "config": {**(config or {}), "r": None, "rank_pattern": {}}}), error
        except AdapterError:
            raise error from None


def _one(home: Path, options: Mapping[str, Any]) -> Adapter:
    found: Any = read_adapter(home, **options)  # a home holds one adapter, not a run
    return found


def _measured(
    found: Examined, adapter: Adapter | None, ranks: RankError | None, on_module: Callable[[], object] | None
) -> Examined:
    """With the adapter's numbers, module by module where one of them cannot be used."""
    if adapter is None:
        return found
    step = "" if adapter.step is None else f" step {adapter.step}"
    problems = list(found.problems)
    if found.base is not None and adapter.layout == "gguf":
        try:
            adapter = of_llama_cpp(adapter, found.base.config)
        except AdapterError as error:
            problems.append(Problem("", error))
    try:
        layers = analyse(adapter, on_module=on_module or (lambda: None)).layer_metrics
    except AdapterError:
        layers, faults = _one_by_one(adapter)
        problems += faults
    found = replace(
        found, name=f"{adapter.name}{step}", adapter=adapter, layers=layers, problems=tuple(problems)
    )  # fmt: skip
    return found if ranks is None else replace(found, ranks=_differing(found, ranks))


def _one_by_one(adapter: Adapter) -> tuple[pd.DataFrame | None, list[Problem]]:
    import pandas as pd

    frames, faults = [], []
    for module, load in adapter.loaders.items():
        try:
            alone = replace(adapter, loaders={module: load})
            frames.append(analyse(alone, on_module=lambda: None).layer_metrics)
        except AdapterError as error:
            faults.append(Problem(module, error))
    return (pd.concat(frames, ignore_index=True) if frames else None), faults


def _differing(found: Examined, first: RankError) -> dict[str, tuple[int, int]]:
    """Every module whose rank is not the configuration's; the first alone where a table's r means something else."""
    ranks = {row.module: int(row.r) for row in found.rows()}
    own = {first.module: (first.found, first.expected)}
    if ranks.get(first.module) != first.found or found.tensors is None:
        return own
    source = Source(found.tensors, found.config)
    told = {module: source.rank(module) for module in ranks}
    return own | {module: (r, told[module]) for module, r in ranks.items() if told[module] not in (None, r)}  # pyright: ignore[reportReturnType]


def _scan(values: np.ndarray[Any, Any]) -> Scan:
    if is_finite(values):
        return Scan(values.size, 0, ())
    wrong = ~np.isfinite(values)
    first = np.unravel_index(int(np.argmax(wrong)), values.shape)
    return Scan(values.size, int(np.count_nonzero(wrong)), tuple(int(k) for k in first))


def is_base_needed(problem: Problem) -> bool:
    """Whether the adapter could be read if the base model were given."""
    return isinstance(problem.error, BaseNeededError)
