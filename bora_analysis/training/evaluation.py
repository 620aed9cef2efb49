"""What the task loses when every ΔW of an adapter is cut to some of its directions."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from ..adapters import Adapter, AdapterError, checkpoints, read_adapter
from ..adapters.given import items_of, named_apart
from ..adapters.read import select
from ..adapters.reading import Options
from ..analysis.keeping import Directions, Keep, keeps_of, planned
from ..analysis.runs import RECORD
from ..catalogue import METHODS
from ..extras import require
from ..files.configuration import read_configuration
from .errors import TrainingError
from .evaluation_tables import Measured, key_of, rows_of, table_of
from .intervals import Bootstrap
from .models import is_place
from .scores import Scorer
from .settings import Settings

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_KEEPS = "0,1,2,4,8,16,32,64,all"
# What of a run's settings decides on the examples and their scores; the rest is about training.
_MEASURED = (
    "model", "data", "task", "text", "label", "metric", "encoding", "validation", "validation_share", "split_seed",
    "limit", "max_length", "dtype",
)  # fmt: skip
# Settings of an adapter that a cut ΔW in the weights would not respect.
_ELSEWHERE = ("alora_invocation_tokens", "layer_replication")


@dataclass(frozen=True)
class Wish:
    """What :func:`evaluate` is to measure, where the options are explained."""

    keeps: tuple[Keep, ...]
    orders: tuple[str, ...] = ("largest",)
    draws: int = 3
    seed: int = 0
    how: Bootstrap = field(default_factory=Bootstrap)
    answers: bool = False
    most_tokens: int = 256
    batch_size: int | None = None
    device: str = "auto"
    only: str | None = None

    @property
    def cuts(self) -> list[Keep]:
        return planned(self.keeps, self.orders, self.draws)


@dataclass(frozen=True)
class Candidate:
    """An adapter, and on what it is measured."""

    adapter: Adapter
    settings: Settings
    record: Mapping[str, Any] | None


def evaluate(
    adapters: Any,
    *,
    model: str | None = None,
    data: str | None = None,
    keep: Any = DEFAULT_KEEPS,
    order: str | Sequence[str] = "largest",
    draws: int = 3,
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
    answers: bool = False,
    max_new_tokens: int = 256,
    batch_size: int | None = None,
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
    on_cut: Callable[[], object] | None = None,
    **reading: Unpack[Options],
) -> pd.DataFrame:
    """The task's metric with each ΔW cut to its k largest directions, one row per adapter, cut and metric.

    The examples are those that the adapter's training held out: model, data and split come from the ``run.json`` that
    :func:`bora_analysis.training.train` left beside it. A base model is loaded once for all adapters of it that
    follow each other, each ΔW decomposed once, through its factors. Heads and biases of the adapter's file are used as
    they are, so k = 0 is the base model with the trained head.

    Parameters
    ----------
    adapters, reading : as for :func:`bora_analysis.analyse`. ``modules`` here are those that are cut; the others keep
        their ΔW. Methods that need the base model take ``model``, if it is a folder, unless ``base`` says otherwise.
    model, data : instead of those in ``run.json``; needed where there is none.
    keep : numbers of directions, shares of Σσ² and all, ``"0,1,2,8,90%,all"`` or a list. A k that no ΔW reaches is
        that of all and left out; all is always measured.
    order : which directions k counts: ``"largest"``, ``"smallest"``, ``"random"``, or several.
    draws : of random orders; ``seed`` decides on them.
    resamples, confidence : of the bootstrap intervals, drawn by ``seed`` too: percentiles, paired over the examples.
    answers : for instructions, generate the answers and count those that are right, see
        :mod:`bora_analysis.training.answers`; at most ``max_new_tokens`` each.
    batch_size : default 64, for causal-lm 8.
    device : ``"auto"`` (CUDA if there is one), ``"cpu"`` or ``"cuda"``.
    settings : further ones of :class:`bora_analysis.training.Settings` in place of the run's: task, text, label,
        metric, validation, max_length …
    on_cut : called after each cut, for progress.

    Returns
    -------
    DataFrame
        adapter, step, method, keep, order (largest, smallest, random, or energy), draw, rank (directions kept, mean
        over the modules), metric (the task's, and loss), value, low, high, n (held-out examples), energy (share of
        Σσ² kept, all modules together), parameters (of the kept directions as a LoRA; of all: the adapter's own),
        change, change_low, change_high (value minus that of all, on the same examples).

    Raises
    ------
    AdapterError, TrainingError
        One line: no model, no data, other classes than in training, a head that nobody has, a kind of layer or a
        method whose ΔW cannot be put into the model.
    ValueError
        A wrong cut, order, or number.
    ImportError
        The extra ``train`` is not installed.

    Examples
    --------
    >>> from bora_analysis import evaluate, synthetic_adapter
    >>> evaluate(synthetic_adapter("lora", {"layers.0.q_proj": (8, 8)}, r=2))
    Traceback (most recent call last):
    bora_analysis.training.errors.TrainingError: lora-r2: no run.json beside it; name model and data (--model, --data)
    >>> evaluate("my-adapter", model="base-model", data="reviews.csv", keep="1,2,all")  # doctest: +SKIP
    """
    orders = (order,) if isinstance(order, str) else tuple(order)
    how = Bootstrap(resamples, seed, confidence)
    only = reading.pop("modules", None)
    wish = Wish(tuple(keeps_of(keep)), orders, draws, seed, how, answers, max_new_tokens, batch_size, device, only)
    chosen = {"model": model, "data": data, **(settings or {})}
    found = candidates(items_of(adapters), chosen, reading)
    rows: list[dict[str, Any]] = []
    whole: Measured | None = None
    for each in each_measured(found, wish):
        whole = each if each.keep.whole else whole
        assert whole is not None  # it comes first
        rows += rows_of(each, whole, how)
        if on_cut is not None:
            on_cut()
    return table_of(rows)


def candidates(
    sources: Sequence[Any],
    chosen: Mapping[str, Any],
    reading: Mapping[str, Any],
    failed: Callable[[Exception], object] | None = None,
) -> list[Candidate]:
    """The adapters with their settings, those of one base model behind each other.

    Parameters
    ----------
    chosen : settings in place of the runs'; None leaves the run's.
    failed : is called with the error of a source that cannot be read; without it the error is raised.
    """
    require("train", "evaluating an adapter", "torch", "transformers", "peft", "sklearn")
    found: list[Candidate] = []
    for source in sources:
        try:
            found += _candidates(source, chosen, reading)
        except (AdapterError, TrainingError) as error:
            if failed is None:
                raise
            failed(error)
    named = named_apart([each.adapter for each in found])
    found = [replace(each, adapter=adapter) for each, adapter in zip(found, named, strict=True)]
    first = {each.settings.model: k for k, each in reversed([*enumerate(found)])}
    return sorted(found, key=lambda each: first[each.settings.model])


def _candidates(source: Any, chosen: Mapping[str, Any], reading: Mapping[str, Any]) -> list[Candidate]:
    if isinstance(source, str | Path):
        place = Path(source)
        settings, record, told = _settings(place if place.is_dir() else place.parent, str(source), chosen)
        own = dict(reading)
        if own.get("base") is None and Path(settings.model).is_dir():
            own["base"] = settings.model
        _check_model(settings, told)
        adapters = checkpoints(read_adapter(source, **own))
        return [Candidate(adapter, settings, record) for adapter in adapters]
    read = checkpoints(read_adapter(source, **reading))
    out = []
    for adapter in read:
        home = adapter.path.parent if adapter.path is not None else None
        settings, record, told = _settings(home, adapter.name, chosen)
        _check_model(settings, told)
        out.append(Candidate(adapter, settings, record))
    return out


def _settings(home: Path | None, name: str, chosen: Mapping[str, Any]) -> tuple[Settings, dict[str, Any] | None, str]:
    """Settings of the run whose folder, or checkpoint, ``home`` is; its record; where they come from."""
    wanted = {key: value for key, value in chosen.items() if value is not None}
    known = {each.name for each in fields(Settings)}
    if unknown := sorted(wanted.keys() - known):
        raise ValueError(f"settings has {unknown[0]!r}, which is none of {', '.join(_MEASURED)}")
    record: dict[str, Any] | None = None
    told = name
    for folder in () if home is None else (home, home.parent) if home.name.startswith("checkpoint-") else (home,):
        path = folder / RECORD
        if path.is_file():
            told = str(path)
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                run = dict(record["settings"])  # pyright: ignore[reportOptionalSubscript]
            except (ValueError, KeyError, TypeError) as error:
                raise TrainingError(f"{path}: is not a record of a run ({type(error).__name__})") from None
            wanted = {key: run[key] for key in _MEASURED if key in run} | wanted
            break
    if missing := [key for key in ("model", "data") if not wanted.get(key)]:
        flags = ", ".join(f"--{key}" for key in missing)
        raise TrainingError(f"{name}: no {RECORD} beside it; name {' and '.join(missing)} ({flags})")
    wanted["text"] = tuple(wanted.get("text") or ())
    return Settings(**wanted), record, told


def _check_model(settings: Settings, told: str) -> None:
    if not is_place(settings.model):
        raise TrainingError(f"{told}: the base model {settings.model} is not here; name its folder or Hub id (--model)")


def each_measured(
    found: Sequence[Candidate],
    wish: Wish,
    *,
    known: Collection[tuple[str, int, str, str, int]] = (),
    failed: Callable[[Exception], object] | None = None,
    note: Callable[[str], object] = lambda line: None,
    step: Callable[[], object] = lambda: None,
) -> Iterator[Measured]:
    """One cut after another; of each adapter that is not wholly ``known``, all of it comes first.

    Parameters
    ----------
    known : keys of cuts that are left out.
    failed : is called with the error of an adapter that cannot be measured; without it the error is raised.
    note : receives lines on what is measured.
    step : called after each cut, known ones too.
    """
    scorer = Scorer(wish.answers, wish.most_tokens, wish.batch_size, wish.device)
    cuts = wish.cuts
    for each in found:
        done = 0
        try:
            for item in _measured(each, scorer, wish, cuts, known, note):
                if item is not None:
                    yield item
                done += 1
                step()
        except (AdapterError, TrainingError) as error:
            if failed is None:
                raise
            failed(error)
        for _ in range(len(cuts) - done):
            step()


def _measured(
    each: Candidate,
    scorer: Scorer,
    wish: Wish,
    cuts: Sequence[Keep],
    known: Collection[tuple[str, int, str, str, int]],
    note: Callable[[str], object],
) -> Iterator[Measured | None]:
    adapter = each.adapter
    _refuse(adapter)
    directions = Directions(adapter, select(adapter, wish.only))
    # A k that no ΔW reaches keeps all of them.
    new = [key_of(adapter, keep) not in known and (keep.whole or (keep.k or 0) < directions.rank) for keep in cuts]
    if not any(new):
        return
    bench = scorer.bench(each.settings, each.record, note)
    model = bench.model
    try:
        model.take_over(adapter)
        for keep, wanted in zip(cuts, new, strict=True):
            if not wanted and not keep.whole:
                yield None
                continue
            part = directions.part(keep, wish.seed)
            pairs = {module: directions.pair(module, index) for module, index in part.chosen.items()}
            model.apply(adapter, pairs)
            yield Measured(adapter, keep, part, bench.score())
    finally:
        model.restore()


def _refuse(adapter: Adapter) -> None:
    """What works differently from ΔW in the weights."""
    config = read_configuration(adapter.path.parent) if adapter.path is not None else None
    for key in _ELSEWHERE:
        if (config or {}).get(key):
            raise AdapterError(f"{adapter.path}: its configuration has {key}; a ΔW in the weights would not respect it")


def routed(adapter: Adapter) -> bool:
    """Whether its ΔW depends on the token, so that their uniform mean is measured."""
    return any(name in METHODS and METHODS[name].experts for name in adapter.method.split("+"))
