"""What several commands share: options, examples, reading the adapters, results, errors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.shell_completion import CompletionItem

from .. import catalogue
from ..threshold import Threshold
from .help import Command
from .output import Decorator, is_quiet, shared, together
from .plain_text import in_columns, terminal_width, wrapped

if TYPE_CHECKING:
    from ..adapters import Adapter
    from ..analysis.tables import Tables

POSITIVE = click.IntRange(min=1)
READING = "Reading adapters"
PLACES = "bora_analysis.places"  # of the context: adapter → the path by which it was called
SIGMA_HELP = "How BoRA's Σ follows from the stored σ"


class _Thresholds(click.ParamType):
    """A :class:`bora_analysis.Threshold`."""

    name = "threshold"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "T|T%"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Threshold:
        try:
            return Threshold.of(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def threshold_options(what: str, default: str | None, group: str = "Options") -> Decorator:
    """--threshold and --at-norm, which a command receives as one ``threshold``; None where neither is given."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def joined(*args: Any, threshold: Threshold | None, at_norm: float | None, **others: Any) -> Any:
            if at_norm is not None:
                if threshold is None:
                    raise click.UsageError("--at-norm is the norm of --threshold; give both")
                with usage():
                    threshold = replace(threshold, norm=at_norm)
            return function(*args, threshold=threshold, **others)

        return together(
            shared(
                group,
                "--threshold",
                type=_Thresholds(),
                default=default,
                help=f"{what} this; 1% is a share of σ₁.",
            ),
            shared(
                group,
                "--at-norm",
                type=click.FloatRange(min=0, min_open=True),
                metavar="N",
                help="Scale every ΔW to ‖ΔW‖_F = N before --threshold.",
            ),
        )(joined)

    return decorate


_READ = ("modules", "steps", "initial", "base", "experts", "method", "alpha", "activation")


def command(*examples: str, **settings: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """A command whose --help ends with examples; each is what follows ``bora-analysis``."""
    return click.command(cls=settings.pop("cls", Command), examples=examples, **settings)


def set_values(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """``("r=8", "method=lora")`` → settings; a value is of JSON or TOML, or else a text.

    >>> set_values(None, None, ("steps=100", "names=['a', 'b']", "model=org/name"))  # type: ignore[arg-type]
    {'steps': 100, 'names': ['a', 'b'], 'model': 'org/name'}
    """
    import json
    import tomllib

    found: dict[str, Any] = {}
    for value in values:
        key, sign, text = value.partition("=")
        if not sign or not key.strip():
            raise click.BadParameter(f"{value!r} sets nothing; expected KEY=VALUE, such as steps=100")
        try:
            found[key.strip()] = json.loads(text)
        except ValueError:
            try:
                found[key.strip()] = tomllib.loads(f"value = {text}")["value"]
            except ValueError:
                found[key.strip()] = text
    return found


def engines(workers: str, *names: str) -> Decorator:
    """--engine, --address and --workers of a command whose work joblib spreads; ``workers`` is the help of the last.

    ``names`` are engines besides those of :mod:`bora_analysis.fleet.engines` (which takes long to import) that run any
    function; the first of all is the default.
    """
    known = [*names, "loky", "dask", "ray", "spark"]
    return together(
        click.option(
            "--engine",
            type=click.Choice(known),
            default=known[0],
            help=f"Processes of this machine ({known[0]}), or a cluster, through joblib.",
        ),
        click.option("--address", help="Of the cluster's scheduler; without it one is started on this machine."),
        click.option("-j", "--workers", type=POSITIVE, help=workers),
    )


def reading(
    *,
    required: bool = True,
    count: int = -1,
    metavar: str = "PATH...",
    solving: bool = True,
    counting: bool = True,
    naming: bool = True,
) -> Decorator:
    """The options of every command that reads adapters.

    The command receives those of :func:`bora_analysis.read_adapter` as ``reading``, and, unless it has neither
    ``solving`` nor ``counting``, those of :func:`bora_analysis.analyse` as ``analysis``: dictionaries of keywords.

    Parameters
    ----------
    required, count, metavar : of the argument PATH; count -1 takes any number.
    solving : with the options that say how singular values are computed.
    counting : with --threshold, for a command that counts singular values.
    naming : with --method; a command without has a --method of its own.
    """
    read = [name for name in _READ if naming or name != "method"]
    measured = ["threshold"] * counting + ["device", "solver"] * solving
    options = [
        click.argument("paths", nargs=count, required=required, metavar=metavar, shell_complete=_files),
        shared(READING, "--modules", metavar="REGEX", help="Only modules whose path contains a match of REGEX."),
        shared(READING, "--steps", is_flag=True, help="Read the checkpoint-N folders instead of the final adapter."),
        shared(
            READING,
            "--initial",
            metavar="PATH",
            help=f"{catalogue.labels(lambda row: row.initialises, ', ')}: the adapter before training, to subtract.",
        ),
        shared(
            READING,
            "--base",
            metavar="DIR_OR_HUB_ID",
            help=f"The base model: for {catalogue.labels(lambda row: row.needs_base, ', ')}, and for a PATH that is a "
            "whole fine-tuned model.",
        ),
        shared(
            READING,
            "--experts",
            type=click.Choice(catalogue.EXPERTS),
            default="mean",
            help=f"{catalogue.labels(lambda row: row.experts, ', ')}: the uniform mean, each expert, or the stack of "
            "all, whose singular values bound those of every mixture.",
        ),
        shared(READING, "--alpha", type=float, help="α, for a file that does not store it."),
        shared(
            READING,
            "--activation",
            type=click.Choice(catalogue.ACTIVATIONS),
            help=f"{SIGMA_HELP}, for a file that does not name it.",
        ),
    ]
    if naming:
        help = "The method, for a file that does not name it (rslora, melora); else it must agree with the file."
        options.insert(-2, shared(READING, "--method", help=help))
    if counting:
        options.insert(1, threshold_options("effective_rank counts the singular values above", "0.005", READING))
    if solving:
        solvers = click.Choice(["auto", "svd", "gram"])
        help = "svd is exact; gram is faster for cores of 512 and more; auto uses gram where it is as exact."
        options.append(shared(READING, "--device", default="auto", help="auto, cpu, cuda or cuda:K."))
        options.append(shared(READING, "--solver", type=solvers, default="auto", help=help))

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def packed(*args: Any, **given: Any) -> Any:
            packs = {"reading": {name: given.pop(name) for name in read}}
            if measured:
                packs["analysis"] = {name: given.pop(name) for name in measured}
            return function(*args, **packs, **given)

        return together(*options)(packed)

    return decorate


def _files(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]


@contextmanager
def errors_within_terminal() -> Iterator[None]:
    """What click says about wrong usage breaks between words, as our own messages do."""
    try:
        yield
    except click.ClickException as error:
        width, head = terminal_width(sys.stderr), "Error: "
        if width is not None:
            words = "\n".join(wrapped(f"{head}{error.format_message()}", width, others="  ")).removeprefix(head)
            error.format_message = lambda: words
        raise


@contextmanager
def usage() -> Iterator[None]:
    """Wrong settings (ValueError) end with exit code 2, files that cannot be read or written with 1; each in a line."""
    from ..adapters import AdapterError

    try:
        yield
    except BrokenPipeError:  # `| head`: click ends quietly
        raise
    except (AdapterError, OSError) as error:
        stop(error)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


@contextmanager
def opened(paths: tuple[str, ...], reading: dict[str, Any]) -> Iterator[tuple[list[Adapter], Callable[[object], None]]]:
    """Yield the readable adapters, one per checkpoint, and a function that reports an error of one of them.

    Every error goes to stderr; after the block the exit code is 1 if there was one.
    """
    from ..adapters import AdapterError, checkpoints, read_adapter
    from ..adapters.given import named_apart
    from ..adapters.locate import is_other

    failures: list[object] = []

    def failed(error: object) -> None:
        failures.append(error)
        fail(error)

    adapters: list[Adapter] = []
    typed: list[str] = []  # beside each adapter the path that it was called by
    others: dict[str, AdapterError] = {}
    with usage():
        found = [(place, given) for given in dict.fromkeys(paths) for place in _places(given, reading["steps"])]
        for path, given in {place: (place, given) for place, given in found}.values():
            try:  # an adapter named twice is one adapter
                adapters += checkpoints(read_adapter(path, **reading))
            except AdapterError as error:
                if is_other(Path(path)):
                    others[path] = error
                else:
                    failed(error)
            typed += [given] * (len(adapters) - len(typed))
    if others and adapters:
        note(f"passed over, no adapters: {first_of([*others])}")
    else:
        for error in others.values():
            failed(error)
    adapters = named_apart(adapters)
    names = [adapter.name for adapter in adapters]
    click.get_current_context().meta[PLACES] = dict(zip(reversed(names), reversed(typed), strict=True))
    yield adapters, failed
    if failures:
        raise click.exceptions.Exit(1)


def _places(path: str, steps: bool) -> list[str]:
    """The path, or the adapters below it where it is a folder of them."""
    from ..adapters import AdapterError
    from ..adapters.locate import adapters_below, homes
    from ..files.configuration import CONFIG_NAME
    from ..files.errors import counted

    place = Path(path)
    try:
        if not place.is_dir() or homes(place, steps, below=False):
            return [path]
    except (AdapterError, OSError, ValueError):
        if (place / CONFIG_NAME).exists():
            return [path]
    found = adapters_below(place, steps)
    if found:
        note(f"{path}: a folder of {counted(len(found), 'adapter')}")
    return [*map(str, found)] or [path]


@contextmanager
def results(paths: tuple[str, ...], reading: dict[str, Any], analysis: dict[str, Any]) -> Iterator[Tables]:
    """Yield the tables of all readable adapters; errors are handled as in :func:`opened`."""
    from ..analysis.tables import analyse, join

    with opened(paths, reading) as (chosen, failed):
        parts = each_analysed(chosen, failed, analyse, **analysis)
        tell(chosen, [line for part in parts for line in part.provenance])
        if not parts:
            raise click.exceptions.Exit(1)
        with usage():
            yield join(parts)


def null_of(tables: Tables) -> Any:
    """The null of what was read; what has none is told on stderr."""
    from ..analysis.null import null

    found = null(tables)
    for line in found.missing:
        note(line)
    return found


def each_analysed(
    adapters: list[Adapter],
    failed: Callable[[object], None],
    function: Callable[..., Any],
    *others: Any,
    **options: Any,
) -> list[Any]:
    """The function's results for all adapters that it can read, with a progress bar; it is called per adapter."""
    from ..adapters import AdapterError
    from ..linalg.threads import one_blas_thread
    from ..pipes import keep_freed_memory

    keep_freed_memory()
    found = []
    with usage(), one_blas_thread(), progress(sum(map(len, adapters))) as step:
        for adapter in adapters:
            try:
                found.append(function(adapter, *others, on_module=step, **options))
            except AdapterError as error:
                failed(error)
    return found


def tell(adapters: list[Adapter], further: Sequence[str] = ()) -> None:
    """Print the adapters' warnings and the lines of ``further`` to stderr.

    A line of ``further`` may begin with an adapter's name and a colon. What holds for several adapters is printed
    once, with their names.
    """
    notes = [f"{adapter.name}: {line}" for adapter in adapters for line in (*adapter.warnings, *_passed_over(adapter))]
    for line in gathered([adapter.name for adapter in adapters], [*notes, *further]):
        note(line)


def gathered(names: Sequence[str], lines: Sequence[str]) -> list[str]:
    """Lines, some of which begin with a name and a colon: what holds for several names is said once.

    >>> gathered(["a", "b"], ["a: float32", "a: trained", "b: float32", "all read"])
    ['a, b: float32', 'a: trained', 'all read']
    """
    said: dict[str, list[str]] = {}  # line → names
    for line in dict.fromkeys(lines):
        name = next((name for name in names if line.startswith(f"{name}: ")), "")
        said.setdefault(line.removeprefix(f"{name}: "), []).append(name)
    found = []
    for words, known in said.items():
        of_whom = ", ".join(filter(None, known[:4])) + (f" and {len(known) - 4} more" if len(known) > 4 else "")
        found.append(f"{of_whom}{': ' if of_whom else ''}{words}")
    return found


def read_one(path: str, reading: dict[str, Any]) -> Adapter:
    """Read one adapter; its warnings go to stderr. AdapterError for a folder with several checkpoints."""
    from ..adapters.given import one_of

    adapter = one_of(path, **reading)
    for line in adapter.warnings:
        note(f"{adapter.name}: {line}")
    return adapter


@contextmanager
def progress(length: int, what: str = "modules") -> Iterator[Callable[[], None]]:
    """Show a bar on stderr if that is a terminal; the yielded function counts one module, or another thing."""
    with click.progressbar(length=length, label=what, width=24, file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        yield lambda: bar.update(1)


def _passed_over(adapter: Adapter) -> Iterator[str]:
    keys = adapter.passed_over
    if keys:
        yield f"{len(keys)} tensors do not belong to a low-rank update and were skipped ({first_of(keys)})"


def first_of(keys: Sequence[str]) -> str:
    """The first three, for a message."""
    return ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")


def note(line: str) -> None:
    """Print a note to stderr, within its terminal; nothing with --quiet."""
    if not is_quiet():
        _told(f"note: {line}")


def _told(line: str) -> None:
    width = terminal_width(sys.stderr)
    click.echo(line if width is None else "\n".join(wrapped(line, width, others="  ")), err=True)


def print_listed(rows: Sequence[Sequence[str]]) -> None:
    """Print what there is to choose: rows of cells, the last of them words."""
    click.echo("\n".join(in_columns(rows, terminal_width())))


def fail(error: object) -> None:
    """Print an error in one line."""
    named = isinstance(error, OSError) and error.filename
    _told(f"error: {error.filename}: {error.strerror}" if named else f"error: {error}")  # pyright: ignore[reportAttributeAccessIssue]


def stop(error: object) -> NoReturn:
    """Print an error and end with exit code 1."""
    fail(error)
    raise click.exceptions.Exit(1) from None


def reading_flags(reading: Mapping[str, Any]) -> list[str]:
    """The options of :func:`reading` as they would be typed, those that differ from their defaults."""
    usual = {"steps": False, "experts": "mean"}
    words: list[str] = []
    for name, value in reading.items():
        if value is not None and value != usual.get(name):
            words += [f"--{name}"] if value is True else [f"--{name}", f"{value:g}" if name == "alpha" else str(value)]
    return words
