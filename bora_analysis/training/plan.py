"""An experiment as a file: which runs it has, and which of them are compared.

A TOML file with the tables

- ``settings``: what all runs share, by the names of :class:`~bora_analysis.training.settings.Settings`;
- ``variants.NAME``: what one row of the result has of its own. A list stands for a variant of each value;
- ``grid``: every variant is run with every combination of these. Runs that differ in ``seed`` alone are one row;

and ``reference``, the variant with which the others are compared, and ``paper``, the number of the BoRA paper's table
that stands beside the result. In settings, variants and grid ``recipe`` names one
of :data:`~bora_analysis.training.recipes.RECIPES`, whose settings the others change, and ``peft.NAME`` is a setting of
the method's own configuration, of which a list stands for a variant of each value too.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from ..catalogue import trained
from .errors import TrainingError
from .recipes import RECIPES, without_options
from .settings import Settings

PRESETS = Path(__file__).parent / "presets"
#: The figures of the paper that show one of its tables.
SAME = {"figure3b": "table9", "figure3c": "table8"}
SMALL = "-small"
#: The tables of the paper that an experiment may stand beside: those of what methods reach.
PAPER = (1, 2, 3, 7, 8, 9)
SEED = "seed"
# Settings whose value may itself be a list.
_LISTS = ("text", "checkpoints")
_KNOWN = ("recipe", *(field.name for field in fields(Settings)))
_SHORT = {"blocks": "b", "learning_rate": "lr", "target": ""}
# A setting of a method's configuration, by its own name after this.
_OWN = "peft."


@dataclass(frozen=True)
class Run:
    """One training of an experiment.

    Attributes
    ----------
    variant : the row that it belongs to. point : its values of the grid, without the seed.
    settings : of the training. folder : where it lies in the experiment's folder.
    """

    variant: str
    point: Mapping[str, Any]
    settings: Settings
    folder: str

    @property
    def name(self) -> str:
        """For messages: the folder without the first part."""
        return self.folder.partition("/")[2]


@dataclass(frozen=True)
class Plan:
    """An experiment.

    Attributes
    ----------
    runs : those of the first seed first. reference : the variant that the others are compared with.
    paper : the number of the paper's table that it repeats.
    """

    runs: tuple[Run, ...]
    reference: str | None
    paper: int | None = None

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(run.variant for run in self.runs))

    @property
    def axes(self) -> tuple[str, ...]:
        """What the grid varies, without the seed."""
        return tuple(self.runs[0].point)


def presets() -> dict[str, Path]:
    """Name → file of each experiment of the paper: at its size, and at one for two cores."""
    found = {path.stem: path for path in PRESETS.glob("*.toml")}
    found |= {figure + end: found[table + end] for figure, table in SAME.items() for end in ("", SMALL)}
    return dict(sorted(found.items()))


def title(path: Path) -> str:
    """The first line of a plan, a comment."""
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()


def read_plan(source: str | Path, changes: Mapping[str, Any] | None = None) -> Plan:
    """The plan in a file, or that of a preset.

    Parameters
    ----------
    source : a TOML file, or a name of :func:`presets`.
    changes : settings of every run that replace the file's.

    Raises
    ------
    TrainingError
        A file that cannot be read, an unknown setting or table, values that do not fit together, two runs of one name.

    Examples
    --------
    >>> plan = read_plan("figure3a-small", {"model": "roberta-base", "data": "reviews.csv"})
    >>> plan.reference, plan.variants, len(plan.runs)
    ('bora', ('bora', 'bora-no-exp', 'bora-no-norm'), 9)
    """
    path = presets().get(str(source)) or Path(source)
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = f"; experiments that come with bora_analysis: {', '.join(presets())}"
        raise TrainingError(f"{source}: {error.strerror or error}; expected a TOML file{known}") from None
    except ValueError as error:  # also of a file that is no text
        raise TrainingError(f"{source}: is no TOML: {error}") from None
    where = str(source)
    _only(told, ("settings", "variants", "grid", "reference", "paper"), where, "table")
    changes = _flat(changes or {})
    shared = {**_table(told, "settings", where), **changes}
    grid = {key: _listed(key, value) for key, value in _table(told, "grid", where).items()}
    grid |= {key: [value] for key, value in changes.items() if key in grid}
    variants = dict(_varied(_table(told, "variants", where), where))
    if not variants:
        raise TrainingError(f"{where}: has no variants; expected tables such as [variants.lora] with method and r")
    for name, table in (("settings", shared), ("grid", grid), *((f"variants.{key}", v) for key, v in variants.items())):
        _only(table, _KNOWN, f"{where}: {name}", "setting")
    if twice := sorted(key for own in variants.values() for key in own if key in grid):
        raise TrainingError(f"{where}: {twice[0]} stands in the grid and in a variant; expected it in one of them")
    for name in ("model", "data"):
        if not any(name in table or "recipe" in table for table in (shared, grid, *variants.values())):
            raise TrainingError(f"{where}: settings have no {name}; give it there, or as --{name}")
    reference = told.get("reference")
    if reference is not None and reference not in variants:
        raise TrainingError(f"{where}: reference is {reference!r}; expected one of {', '.join(variants)}")
    paper = told.get("paper")
    if paper is not None and paper not in PAPER:
        raise TrainingError(f"{where}: paper is {paper!r}; expected a table of BoRA, {', '.join(map(str, PAPER))}")
    return Plan(tuple(_runs(shared, variants, grid, where)), reference, paper)


def _runs(
    shared: Mapping[str, Any], variants: Mapping[str, Any], grid: Mapping[str, list[Any]], where: str
) -> Iterator[Run]:
    axes = [key for key in grid if key != SEED]
    taken: dict[str, str] = {}
    for seed in grid.get(SEED, [shared.get(SEED, 0)]):
        for values in product(*(grid[key] for key in axes)):
            point = dict(zip(axes, values, strict=True))
            for name, own in variants.items():
                settings = settings_of({**shared, **point, **own, SEED: seed}, f"{where}: {name}")
                folder = f"runs/{_path('-'.join([name, *map(_worded, point.items())]))}/seed-{seed}"
                if folder in taken:
                    raise TrainingError(f"{where}: two runs would be {folder}, of {taken[folder]} and {name}")
                taken[folder] = name
                yield Run(name, point, settings, folder)


def settings_of(values: Mapping[str, Any], where: str) -> Settings:
    """Settings from what a file says, with those of its ``recipe``; TrainingError, with ``where``, for what is none."""
    values = dict(values)
    recipe = values.pop("recipe", None)
    if recipe is not None:
        if recipe not in RECIPES:
            raise TrainingError(f"{where}: recipe {recipe!r} is unknown; `bora-analysis train --recipes` lists them")
        known = dict(RECIPES[recipe])
        if values.get("method") in trained():
            known = without_options(known, values["method"])
        values = known | values
    own = {key.removeprefix(_OWN): values.pop(key) for key in [*values] if key.startswith(_OWN)}
    if own:
        values["peft"] = own
    for key in _LISTS:
        if isinstance(values.get(key), list):
            values[key] = tuple(values[key])
    _only(values, _KNOWN, where, "setting")
    hints = get_type_hints(Settings)
    for key, value in values.items():
        allowed = [get_origin(kind) or kind for kind in get_args(hints[key]) or (hints[key],)]
        allowed = [tuple] if get_origin(hints[key]) is tuple else allowed
        wrong = isinstance(value, bool) and bool not in allowed
        if wrong or not isinstance(value, (*allowed, *([int] if float in allowed else []))):
            expected = " or ".join(kind.__name__ for kind in allowed if kind is not type(None))
            raise TrainingError(f"{where}: {key} is {value!r}; expected {expected}")
    try:
        return Settings(**values)
    except TrainingError as error:
        raise TrainingError(f"{where}: {error}") from None


def _varied(tables: Mapping[str, Any], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each variant, and one for each combination of its lists, named for their values."""
    for name, own in tables.items():
        if not isinstance(own, dict):
            raise TrainingError(f"{where}: variants.{name} is {own!r}; expected a table of settings")
        own = _flat(own)
        lists = {key: value for key, value in own.items() if isinstance(value, list) and key not in _LISTS}
        for values in product(*lists.values()):
            chosen = dict(zip(lists, values, strict=True))
            yield "-".join([name, *map(_worded, chosen.items())]), {**own, **chosen}


def _worded(item: tuple[str, Any]) -> str:
    """``("blocks", 8)`` → "b8"."""
    key, value = item[0].removeprefix(_OWN), item[1]
    return f"{_SHORT.get(key, key)}{value:g}" if isinstance(value, float) else f"{_SHORT.get(key, key)}{value}"


def _path(name: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^\w.+=,-]+", "_", name)


def _table(told: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    found = told.get(name, {})
    if not isinstance(found, dict):
        raise TrainingError(f"{where}: {name} is {found!r}; expected a table, [{name}]")
    return _flat(found) if name != "variants" else found


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """``{"peft": {"a": 1}}`` → ``{"peft.a": 1}``, as TOML has it for ``peft.a = 1``."""
    inner = table.get("peft")
    if not isinstance(inner, dict):
        return dict(table)
    return {key: value for key, value in table.items() if key != "peft"} | {f"{_OWN}{k}": v for k, v in inner.items()}


def _listed(key: str, value: Any) -> list[Any]:
    if key in _LISTS and not (isinstance(value, list) and all(isinstance(each, list) for each in value)):
        return [value]
    found = value if isinstance(value, list) else [value]
    if not found:
        raise TrainingError(f"grid: {key} is an empty list; expected its values")
    return found


def _only(table: Mapping[str, Any], known: tuple[str, ...], where: str, what: str) -> None:
    for key in table:
        if key not in known and not (key.startswith(_OWN) and "method" in known):
            close = get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"expected {', '.join(known)}"
            raise TrainingError(f"{where}: unknown {what} {key!r}; {hint}")
