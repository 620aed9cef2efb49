"""What a pull request or an upload wants to know about an adapter: findings, each with its value, limit and remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Unpack

from ...adapters import Adapter, AdapterError
from ...adapters.given import adapters_of, items_of
from ...adapters.locate import HUB_ID, download
from ...adapters.reading import Options, Reading
from ...files.base_model import BaseWeights, open_base
from ..sources import spread
from ..storage import is_url
from .examined import Examined, Problem, examine, examined_adapter
from .findings import COLUMNS, SEVERITIES, Finding, Found, Report
from .limits import applied, template
from .places import places
from .rules import RULES, Rule

__all__ = ["COLUMNS", "RULES", "SEVERITIES", "Finding", "Report", "Rule", "check", "template"]


def check(
    adapters: Any,
    *,
    limits: Mapping[str, Any] | str | Path | None = None,
    on_adapter: Callable[[Examined], object] | None = None,
    on_module: Callable[[], object] | None = None,
    **reading: Unpack[Options],
) -> Report:
    """Look for what is wrong with adapters. Nothing here says that an adapter is safe or malicious.

    Parameters
    ----------
    adapters : what :func:`bora_analysis.read_adapter` takes, or a list of it; of a folder with adapters in folders
        below all of these, of a folder of checkpoints each. A text may also be a pattern, or a file that lists any of
        these, as for :func:`bora_analysis.fleet.sources.find`.
    limits : rule id → ``{"severity": …, limit: number}``, or a TOML file with such tables; severity ``"off"`` drops the
        rule. See :data:`RULES` and :func:`template`.
    on_adapter, on_module : called after each adapter, and after each module.
    reading : options of :func:`bora_analysis.read_adapter`; with ``base`` the rules that need the base model apply.

    Returns
    -------
    Report
        An adapter that cannot be read is a finding, and the others are looked at.

    Raises
    ------
    ValueError
        Limits that do not exist or are no numbers.
    AdapterError
        A base model that cannot be read.
    TypeError
        Something that stands for no adapter, an unknown option.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import Adapter, check, lora
    >>> factors = np.ones((8, 1)), np.ones((1, 8))
    >>> updates = {f"layers.{k}.q_proj": lora(factors[0] * (k != 3), factors[1]) for k in range(8)}
    >>> [(each.rule, each.module) for each in check(Adapter.from_updates("mine", updates)).at_least("error")]
    []
    >>> check(Adapter.from_updates("mine", updates), limits={"doubled-layer": {"severity": "off"}}).at_least("warning")
    (Finding(adapter='mine', path='mine', rule='dead-module', severity='warning', module='layers.3.q_proj', ...),)
    """
    rules = applied(limits)
    wish = Reading.of(reading)
    options = {**reading}
    if wish.base is not None and not isinstance(wish.base, BaseWeights):
        options["base"] = open_base(wish.base)
    findings, checked = [], {}
    for item in items_of(adapters):
        for examined in _examined(item, options, on_module):
            name = _apart(examined.name, checked)
            checked[name] = examined.path
            found = [
                Finding(
                    name, examined.path, rule, severity, each.module, each.value, each.limit, each.message, row.mend
                )
                for rule, (row, severity, own) in rules.items()
                for each in _applied(row, examined, own)
            ]
            findings += sorted(found, key=lambda each: -SEVERITIES.index(each.severity))
            if on_adapter is not None:
                on_adapter(examined)
    return Report(tuple(findings), checked, {name: severity for name, (_, severity, _) in rules.items()})


def _examined(item: Any, options: dict[str, Any], on_module: Callable[[], object] | None) -> Iterator[Examined]:
    """Each adapter in what was given."""
    if isinstance(item, str | Path):
        for source in spread(str(item)):
            try:
                if source.error is not None:
                    raise source.error
                found = places(_here(source.text), bool(options.get("steps")), expected=not source.fits)
            except AdapterError as error:
                yield Examined(Path(source.text).name or source.text, source.text, problems=(Problem("", error),))
                continue
            yield from (examine(home, options, on_module) for home in found)
        return
    reading: Any = options if not isinstance(item, Adapter) else {"modules": options.get("modules")}
    yield from (examined_adapter(each, options, on_module) for each in adapters_of(item, **reading))


def _applied(row: Rule, examined: Examined, limits: Mapping[str, float]) -> list[Found]:
    try:
        return list(row.find(examined, limits))
    except AdapterError as error:  # of the base model, say: the other rules go on
        return [Found("", f"this could not be checked: {error}")]


def _here(text: str) -> Path:
    if is_url(text):
        raise AdapterError(f"{text}: a URL, which sweep reads; expected a file, a folder or a Hub id")
    place = Path(text)
    if place.exists():
        return place
    if not HUB_ID.fullmatch(text):
        raise AdapterError(f"{text}: no such file or folder")
    return download(text)


def _apart(name: str, taken: Mapping[str, str]) -> str:
    """The name, with a number where another adapter has it already."""
    number = 1
    while (own := name if number == 1 else f"{name} ({number})") in taken:
        number += 1
    return own
