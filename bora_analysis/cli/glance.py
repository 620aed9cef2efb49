"""`bora-analysis PATH`: one screen on what an adapter is, the rank it uses and what to do next."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from .common import each_analysed, note, opened, reading, usage
from .help import Command, folded
from .plain_text import cells_wide, padded, printable, terminal_width, wrapped

if TYPE_CHECKING:
    from ..adapters import Adapter

_BLOCKS = "▁▂▃▄▅▆▇█"
_DIGITS = "0123456789"
_COLOURS = {"spare": "yellow", "fits": "green", "short": "red"}
#: Columns of a pipe; adapters that are shown whole, not only with their verdicts.
_WIDTH, _WHOLE = 100, 3


@click.command("PATH", cls=Command, examples=("my-adapter", "runs/*", "my-dora --base org/base-model", "./compare"))
@reading()
def glance(paths: tuple[str, ...], reading: dict[str, Any], analysis: dict[str, Any]) -> None:
    """One screen on each adapter: what it is, the rank it uses, where, and what to do next.

    Of a folder of checkpoints the last counts. A PATH that has a command's name is given as ./NAME.
    """
    from ..analysis.tables import analyse, join
    from ..analysis.verdict import verdicts
    from .answer import command_for, next_of

    width = terminal_width() or _WIDTH
    with opened(paths, reading) as (chosen, failed):
        last = {adapter.name: adapter for adapter in chosen}  # of a run the last checkpoint
        counts = {name: sum(each.name == name for each in chosen) for name in last}
        parts = each_analysed([*last.values()], failed, analyse, **analysis)
        for adapter in last.values():
            for line in adapter.warnings:
                note(f"{adapter.name}: {line}")
        if not parts:
            raise click.exceptions.Exit(1)
        with usage():
            layers = join(parts).layers
            found = verdicts(layers)
            for verdict in found:
                adapter = last[verdict.adapter]
                own = layers.rows(layers["adapter"] == verdict.adapter)
                lines = [*_facts(adapter, own, counts[adapter.name], width), "", *wrapped(verdict.sentence, width)]
                lines += _where(own, width) if len(found) <= _WHOLE else []
                for line in lines:
                    click.echo(_coloured(line))
                click.echo()
            following = command_for(next_of(found, "glance"), [each.adapter for each in found], reading)
            click.echo("\n".join(folded(printable(f"next: {following}"), width)))


def _facts(adapter: Adapter, layers: Any, steps: int, width: int) -> Iterator[str]:
    """What it is."""
    from ..analysis.overview import overview

    known = overview(adapter, layers)
    title = adapter.name if adapter.step is None else f"{adapter.name} step {adapter.step}"
    yield from wrapped(title + (f", the last of {steps} checkpoints" if steps > 1 else ""), width)
    yield from wrapped(facts_of(known), width, others="  ")
    for name in ("targets", "base", "trained"):
        if name in known:
            yield from wrapped(f"{name}: {known[name]}", width, others="  ")


def facts_of(known: Mapping[str, str]) -> str:
    """Method, sizes and dtype on one line, of :func:`bora_analysis.analysis.overview.overview`."""
    facts = [known["method"], *(f"{name} = {known[name]}" for name in ("r", "b", "α") if name in known)]
    facts += [f"scaling {known['scaling']}"] if "scaling" in known else []
    return ", ".join([*facts, f"{known['parameters']} parameters", *([known["dtype"]] if "dtype" in known else [])])


def _where(layers: Any, width: int) -> Iterator[str]:
    """Where the rank is used: the strip, and the modules that say most."""
    from ..analysis.telling import telling

    if strip := list(_strip(layers, width)):
        yield ""
        yield from strip
    found = telling(layers)
    if found:
        yield ""
        wide = min(width // 2, max(cells_wide(printable(each.name)) for each in found))
        for each in found:
            name = printable(each.name)
            head = padded(name, wide, left=True) if cells_wide(name) <= wide else name
            yield from wrapped(f"{head}  {each.reason}", width, others=" " * (wide + 2))


def _strip(layers: Any, width: int) -> Iterator[str]:
    """A row for each projection, a sign for each layer: the share of the allowed directions that 99 % of Σσ² needs."""
    import numpy as np

    from ..analysis.columns import mean
    from ..style import projections_in_order

    needed, bound, layer = layers["energy_rank_99"].astype(float), layers["rank_bound"], layers["layer"].tolist()
    placed = layers.rows([k for k in np.flatnonzero((bound > 0) & ~np.isnan(needed)) if layer[k] is not None])
    shares = placed["energy_rank_99"] / placed["rank_bound"]
    share = {key: mean(shares[places]) for key, places in placed.groups("projection", "layer").items()}
    numbers = sorted({layer for _, layer in share})
    if not numbers:
        return
    signs = _signs()
    names = projections_in_order(name for name, _ in share)
    kept, rest = names[:12], len(names) - 12
    wide = min(max(cells_wide(printable(name)) for name in (*kept, "layer")), width // 3)
    room = width - wide - 2
    each = -(-len(numbers) // room)  # layers to a sign
    broad = 2 if 2 * len(numbers) <= min(room, 80) else 1
    groups = [numbers[k : k + each] for k in range(0, len(numbers), each)]
    many = f", a sign for {each} layers" if each > 1 else ""
    told = f"directions that hold 99 % of the energy, of those allowed: {signs[0]} few, {signs[-1]} all{many}"
    yield from wrapped(told, width)
    for name in kept:
        row = []
        for group in groups:
            values = [share[name, layer] for layer in group if (name, layer) in share]
            level = sum(values) / len(values) if values else 0
            row.append(signs[max(0, min(len(signs) - 1, round(level * len(signs)) - 1))] if values else " ")
        shown = printable(name)
        head = padded(shown, wide, left=True) if cells_wide(shown) <= wide else f"{shown[: wide - 1]}~"
        yield f"{head}  {''.join(sign * broad for sign in row)}".rstrip()
    if rest > 0:
        yield f"and {rest} more projections"
    first, last = str(numbers[0]), str(numbers[-1])
    gap = broad * len(groups) - len(first) - len(last)
    end = "" if first == last else f"{' ' * gap}{last}" if gap > 0 else f" to {last}"
    yield f"{padded('layer', wide, left=True)}  {first}{end}"


def _signs() -> str:
    """Blocks of growing height, or digits where the encoding lacks them."""
    return _BLOCKS if printable(_BLOCKS) == _BLOCKS else _DIGITS


def _coloured(line: str) -> str:
    """The line with the colours of a terminal; as it is in a pipe, and with NO_COLOR."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return line
    for kind, colour in _COLOURS.items():
        line = line.replace(f"rank {kind}", f"rank {click.style(kind, fg=colour, bold=True)}")
    if any(sign in line for sign in _BLOCKS):
        head, _, strip = line.rpartition("  ")
        if head:
            return f"{head}  {click.style(strip, fg='cyan')}"
    return line
