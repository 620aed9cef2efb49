"""Limits and severities of the rules, from a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from textwrap import wrap
from typing import Any

from .findings import SEVERITIES
from .rules import RULES, Rule

OFF = "off"


def applied(limits: Mapping[str, Any] | str | Path | None = None) -> dict[str, tuple[Rule, str, dict[str, float]]]:
    """Rule id → the rule, its severity and its limits; without the rules that are off.

    Parameters
    ----------
    limits : rule id → ``{"severity": …, limit: number}``, or a TOML file with such tables; what it does not name keeps
        its default.

    Raises
    ------
    ValueError
        An unknown rule, limit or severity, a limit that is no number, a file that is no TOML.
    OSError
        A file that cannot be read.
    """
    given, where = _read(limits)
    for name, own in given.items():
        _known(name, RULES, f"{where}rule")
        if not isinstance(own, Mapping):
            raise ValueError(f"{where}{name} is {own!r}; expected a table of limits: [{name}]")
        for key, value in own.items():
            _known(key, {**RULES[name].limits, "severity": ""}, f"{where}[{name}]: setting")
            _check(f"{where}[{name}]: {key}", key, value)
    out = {}
    for name, rule in RULES.items():
        own = dict(given.get(name, {}))
        severity = own.pop("severity", rule.severity)
        if severity != OFF:
            out[name] = rule, severity, {**rule.limits, **own}
    return out


def template() -> str:
    """A TOML file with the defaults, each rule with its words."""
    blocks = []
    for name, rule in RULES.items():
        lines = [
            *wrap(rule.words, 76, initial_indent="# ", subsequent_indent="# "),
            f"[{name}]",
            f'severity = "{rule.severity}"',
        ]
        blocks.append("\n".join([*lines, *(f"{limit} = {value}" for limit, value in rule.limits.items())]))
    return "\n\n".join(blocks) + "\n"


def _read(limits: Mapping[str, Any] | str | Path | None) -> tuple[Mapping[str, Any], str]:
    if limits is None or isinstance(limits, Mapping):
        return limits or {}, ""
    path = Path(limits)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), f"{path}: "
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is no TOML: {error}") from None


def _known(name: str, names: Mapping[str, Any], what: str) -> None:
    if name in names:
        return
    near = get_close_matches(name, names, 1)
    meant = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"{what} {name!r} is unknown; expected {', '.join(names)}{meant}")


def _check(where: str, key: str, value: Any) -> None:
    if key == "severity":
        if value not in (*SEVERITIES, OFF):
            raise ValueError(f"{where} is {value!r}; expected {', '.join(SEVERITIES)} or {OFF}")
    elif isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise ValueError(f"{where} is {value!r}; expected a number")
