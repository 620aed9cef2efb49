"""What several commands share: options, reading the adapters, errors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import catalogue

if TYPE_CHECKING:
    from ..adapters import Adapter
    from ..analysis.tables import Tables

FORMATS = ("table", "csv", "json", "parquet")
SIGMA_HELP = "How Σ comes from the stored σ (BoRA)"


_SOLVING = (
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:K."),
    click.option(
        "--solver",
        type=click.Choice(["auto", "svd", "gram"]),
        default="auto",
        show_default=True,
        help="svd is exact; gram is faster for cores of 512 and more, and auto takes it where it is as good.",
    ),
)
_COUNTING = (
    click.option(
        "--threshold",
        type=click.FloatRange(min=0),
        default=0.005,
        show_default=True,
        help="effective_rank counts the singular values above it.",
    ),
)


def reading(
    *, required: bool = True, count: int = -1, metavar: str = "PATH...", solving: bool = True, counting: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of every command that reads adapters.

    ``count`` PATHs, -1 for any number; ``solving`` for those that want singular values alone, ``counting`` for those
    that count them.
    """
    options = (
        *(_SOLVING if solving else ()),
        click.option(
            "--activation", type=click.Choice(catalogue.ACTIVATIONS), help=f"{SIGMA_HELP} where the file does not say."
        ),
        click.option("--alpha", type=float, help="α where the file does not say."),
        click.option("--method", help="The method where the file does not say (rslora, melora); otherwise a check."),
        click.option(
            "--experts",
            type=click.Choice(catalogue.EXPERTS),
            default="mean",
            show_default=True,
            help=f"{catalogue.labels(lambda row: row.experts, ', ')}: the uniform mean, each expert, or their stack, a "
            "bound on every mixture.",
        ),
        click.option(
            "--base",
            metavar="DIR_OR_HUB_ID",
            help=f"The base model: for {catalogue.labels(lambda row: row.needs_base, ', ')}, and a PATH that is a "
            "whole fine-tuned model.",
        ),
        click.option(
            "--initial",
            metavar="PATH",
            help=f"{catalogue.labels(lambda row: row.initialises, ', ')}: the adapter before training, to subtract.",
        ),
        click.option("--steps", is_flag=True, help="The checkpoint-N beside a final adapter, not the adapter."),
        click.option("--modules", metavar="REGEX", help="Only modules in whose path REGEX is found."),
        *(_COUNTING if counting else ()),
        click.argument("paths", nargs=count, required=required, metavar=metavar),
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in options:
            command = option(command)
        return command

    return decorate


@contextmanager
def usage() -> Iterator[None]:
    """An impossible wish is wrong usage (2); an adapter that cannot be read or written is not (1)."""
    from ..adapters import AdapterError

    try:
        yield
    except AdapterError as error:
        fail(error)
        raise click.exceptions.Exit(1) from None
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else error)
        raise click.exceptions.Exit(1) from None


@contextmanager
def opened(
    paths: tuple[str, ...], modules: str | None, options: dict[str, Any]
) -> Iterator[tuple[list[Adapter], Callable[[object], None]]]:
    """The adapters that can be read, a checkpoint each, with the options of :func:`reading` that are the reader's.

    Errors go to stderr, and the exit code is 1 at the end if there were any; so do those of the block, told to the
    function beside the adapters.
    """
    from ..adapters import AdapterError, checkpoints, read_adapter
    from ..analysis.tables import select

    failures: list[object] = []

    def failed(error: object) -> None:
        failures.append(error)
        fail(error)

    adapters: list[Adapter] = []
    for path in dict.fromkeys(paths):  # an adapter named twice is one adapter
        try:
            adapters += checkpoints(read_adapter(path, **_accepted(read_adapter, options)))
        except AdapterError as error:
            failed(error)
    with usage():
        chosen = []
        for adapter in named_apart(adapters):
            try:
                chosen.append(select(adapter, modules))
            except AdapterError as error:
                failed(error)
    yield chosen, failed
    if failures:
        raise click.exceptions.Exit(1)


@contextmanager
def results(paths: tuple[str, ...], *, modules: str | None, **options: Any) -> Iterator[Tables]:
    """The tables of all adapters that can be read; for errors see :func:`opened`."""
    from ..adapters import AdapterError
    from ..analysis.tables import analyse, join

    parts: list[Tables] = []
    with opened(paths, modules, options) as (chosen, failed):
        with usage(), progress(sum(map(len, chosen))) as step:
            for adapter in chosen:
                try:
                    parts.append(analyse(adapter, on_module=step, **_accepted(analyse, options)))
                except AdapterError as error:
                    failed(error)
        tell(chosen, [line for part in parts for line in part.provenance])
        if not parts:
            raise click.exceptions.Exit(1)
        with usage():
            yield join(parts)


def tell(adapters: list[Adapter], further: Sequence[str] = ()) -> None:
    """The adapters' caveats on stderr, each once: the checkpoints of one run would say the same again and again.

    A line of ``further`` may begin with an adapter's name and a colon; what several have in common is said together.
    """
    notes = [f"{adapter.name}: {line}" for adapter in adapters for line in (*adapter.warnings, *_passed_over(adapter))]
    said: dict[str, list[str]] = {}  # what is said → of whom
    for line in dict.fromkeys([*notes, *further]):
        name = next((adapter.name for adapter in adapters if line.startswith(f"{adapter.name}: ")), "")
        said.setdefault(line.removeprefix(f"{name}: "), []).append(name)
    for words, names in said.items():
        of_whom = ", ".join(filter(None, names[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        click.echo(f"note: {of_whom}{': ' if of_whom else ''}{words}", err=True)


def _accepted(function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options that the function takes."""
    from inspect import signature

    known = signature(function).parameters
    return {name: value for name, value in options.items() if name in known}


def read_one(path: str, modules: str | None, options: dict[str, Any]) -> Adapter:
    """One adapter, with the options of :func:`reading` that are the reader's; its caveats go to stderr.

    AdapterError where there are several checkpoints.
    """
    from ..adapters import Adapter, AdapterError, read_adapter
    from ..analysis.tables import select

    adapter = read_adapter(path, **_accepted(read_adapter, options))
    if not isinstance(adapter, Adapter):
        raise AdapterError(f"{path}: holds {len(adapter)} checkpoints; name one")
    for line in adapter.warnings:
        click.echo(f"note: {adapter.name}: {line}", err=True)
    return select(adapter, modules)


@contextmanager
def progress(length: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr where that is a terminal; call what it yields once a module."""
    with click.progressbar(length=length, label="modules", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        yield lambda: bar.update(1)


def named_apart(adapters: list[Adapter]) -> list[Adapter]:
    """Adapters of one name from different folders get as much of their path as tells them apart."""
    out = []
    for adapter in adapters:
        homes = {_home(other) for other in adapters if other.name == adapter.name}
        name, home = adapter.name, _home(adapter)
        if len(homes) > 1 and home is not None:
            depth = next(k for k in range(1, 99) if len({other.parts[-k:] for other in homes if other}) == len(homes))
            name = "/".join(home.parts[-depth:])
        out.append(replace(adapter, name=name))
    return out


def _home(adapter: Adapter) -> Path | None:
    """The folder (or bare file) that gives an adapter its name."""
    if adapter.path is None:
        return None
    path = Path(adapter.path).resolve()
    for part in (path, *path.parents):
        if adapter.name in (part.name, part.stem):
            return part
    return path


def _passed_over(adapter: Adapter) -> Iterator[str]:
    keys = adapter.passed_over
    if keys:
        shown = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
        yield f"{len(keys)} tensors are no part of a low-rank update and were passed over ({shown})"


def fail(error: object) -> None:
    click.echo(f"error: {error}", err=True)
