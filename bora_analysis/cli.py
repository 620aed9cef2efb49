"""The command line: a thin skin over the library.

Results on stdout, everything else on stderr. Exit codes: 0 ok, 1 an adapter could not be read (the others are still
reported), 2 wrong usage. Only click is imported here; the rest inside the commands, so that ``--help`` is instant.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import __version__

if TYPE_CHECKING:
    from .adapters import Adapter
    from .table import Tables

FORMATS = ("table", "csv", "json", "parquet")
ACTIVATIONS = ("exp-norm", "no-exp", "no-norm", "identity")  # as in delta, which imports NumPy
SIGMA_HELP = "How Σ comes from the stored σ (BoRA)"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="bora-analysis")
def main() -> None:
    """What rank does a low-rank adapter really use?

    Exact singular values of LoRA, MELoRA and BoRA (arXiv 2508.06953) adapters from the adapter file alone, in
    seconds. A PATH is a PEFT folder, a weights file, a folder of checkpoints, or a Hub id such as org/name.
    """


def reading(*, required: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of every command that reads adapters."""
    options = (
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:K."),
        click.option(
            "--solver",
            type=click.Choice(["auto", "svd", "gram"]),
            default="auto",
            show_default=True,
            help="svd is exact; gram is faster for cores of 512 and more, and auto takes it where it is as good.",
        ),
        click.option("--activation", type=click.Choice(ACTIVATIONS), help=f"{SIGMA_HELP} where the file does not say."),
        click.option("--alpha", type=float, help="α where the file does not say."),
        click.option("--modules", metavar="REGEX", help="Only modules in whose path REGEX is found."),
        click.option(
            "--threshold",
            type=click.FloatRange(min=0),
            default=0.005,
            show_default=True,
            help="effective_rank counts the singular values above it.",
        ),
        click.argument("paths", nargs=-1, required=required, metavar="PATH..."),
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in options:
            command = option(command)
        return command

    return decorate


@main.command()
@reading()
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option("-o", "--output", metavar="DIR", help="Also write layer_metrics and spectra there (csv by default).")
def analyze(paths: tuple[str, ...], form: str, output: str | None, **options: Any) -> None:
    """One row per module: ranks, norms, bound.

    The table shows a choice of columns, rounded. csv, json and parquet have all of them, unrounded; parquet needs -o.
    """
    if form == "parquet" and output is None:
        raise click.UsageError("parquet is no text: give a folder with -o DIR")
    from .report import layer_table, text, write

    with results(paths, **options) as tables:
        if output is not None:
            suffix = "csv" if form == "table" else form
            for name in ("layer_metrics", "spectra"):
                write(getattr(tables, name), Path(output) / f"{name}.{suffix}", suffix)
        if form == "table":
            click.echo(layer_table(tables.layer_metrics, options["threshold"]))
        elif output is None:
            click.echo(text(tables.layer_metrics, form), nl=False)


@main.command()
@reading()
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option("-o", "--output", metavar="FILE", help="Write the summary there, in the format of --format (or csv).")
def compare(paths: tuple[str, ...], form: str, output: str | None, **options: Any) -> None:
    """Adapters side by side: one row per adapter, then one per projection.

    Ranks are means over modules; parameters and energy are sums. Adapters with the same letter under "budget" train
    the same number of parameters to within 5 %.
    """
    if form == "parquet" and output is None:
        raise click.UsageError("parquet is no text: give a file with -o FILE")
    from .report import summary_table, text, write
    from .table import summary

    with results(paths, **options) as tables:
        frame = summary(tables.layer_metrics)
        if output is not None:
            write(frame, Path(output), "csv" if form == "table" else form)
        if form == "table":
            click.echo(summary_table(frame, options["threshold"]))
        elif output is None:
            click.echo(text(frame, form), nl=False)


@main.command()
@click.option("--model", default="all-minilm-l6-v2", show_default=True, help="Layer shapes of a known model.")
@click.option("--target", default="qv", show_default=True, help="Projections, as letters of QKVOGUD, or all.")
@click.option("--shape", metavar="OUTxIN", help="Instead of --model: one projection q of this shape per layer.")
@click.option("--layers", type=click.IntRange(min=1), help="Number of layers.  [default: the model's; 1 with --shape]")
@click.option(
    "--method",
    type=click.Choice(["lora", "rslora", "melora", "bora"]),
    default="bora",
    show_default=True,
)
@click.option("-r", "--rank", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--blocks", type=click.IntRange(min=1), help="b of BoRA, minis of MELoRA.  [default: 8; 1 for LoRA]")
@click.option("--alpha", type=float, help="α.  [default: 2r, as in the paper]")
@click.option(
    "--kind",
    type=click.Choice(["init", "gaussian", "decay"]),
    default="decay",
    show_default=True,
    help="init: B = 0; gaussian: a flat spectrum; decay: singular values falling as k^-p.",
)
@click.option("--decay", type=float, default=1.0, show_default=True, help="p of --kind decay.")
@click.option("--scale", type=float, default=0.1, show_default=True, help="Size of the largest singular values.")
@click.option("--activation", type=click.Choice(ACTIVATIONS), default="exp-norm", show_default=True, help=SIGMA_HELP)
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), default="float32", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("-o", "--output", required=True, metavar="DIR", help="The adapter's folder.")
def synth(
    model: str,
    target: str,
    shape: str | None,
    layers: int | None,
    method: str,
    rank: int,
    blocks: int | None,
    activation: str,
    dtype: str,
    output: str,
    **numbers: Any,
) -> None:
    """Write a random adapter, in the format of a trained one."""
    from .architectures import Architecture, architecture, targets
    from .synthetic import Synthetic, write_synthetic

    with usage():
        if shape is not None:
            match = re.fullmatch(r"(\d+)[x×](\d+)", shape)
            if match is None:
                raise click.BadParameter(f"{shape!r}; expected OUTxIN, e.g. 1024x4096", param_hint="--shape")
            size = int(match[1]), int(match[2])
            known = Architecture(layers or 1, "model.layers", {"q": ("self_attn.q_proj", *size)})
            chosen = ("q",)
        else:
            known = architecture(model)
            known = replace(known, layers=layers or known.layers)
            chosen = targets(target, known)
        if blocks is None:
            blocks = 8 if method in ("melora", "bora") else 1
        raw = Synthetic(method, known.modules(chosen), rank, blocks, **numbers)
        folder = write_synthetic(output, raw, activation=activation, dtype=dtype)
    click.echo(f"wrote {folder}: {len(raw)} modules", err=True)


@main.command()
@click.option("--list", "listing", is_flag=True, help="List the figures and exit.")
@click.option("-o", "--output", metavar="FILE", help="Where to write: .pdf, .svg or .png.")
@click.option("--metric", help="A column of the metrics table (heatmap, trajectory).")
@click.option("--projection", help="q, k, v … (figure4, spectra).")
@click.option("--width", help="Text width of a venue: neurips, iclr, icml, icml2.")
@click.argument("name", required=False)
@reading(required=False)
def figure(name: str | None, paths: tuple[str, ...], listing: bool, output: str | None, **options: Any) -> None:
    """Draw figure NAME of the adapters, ready for a paper, the same bytes each time."""
    from .figures import FIGURES, draw, save

    if listing:
        width = max(map(len, FIGURES))
        click.echo("\n".join(f"{key.ljust(width)}  {spec.description}" for key, spec in FIGURES.items()))
        return
    if name is None or not paths or output is None:
        raise click.UsageError("expected NAME PATH... -o FILE; `figure --list` names the figures")
    wished = {key: value for key in ("metric", "projection", "width") if (value := options.pop(key)) is not None}
    if name not in FIGURES:  # said before the analysis, which may take long
        raise click.UsageError(f"unknown figure {name!r}; there are {', '.join(FIGURES)}")
    if "threshold" in FIGURES[name].options:
        wished["threshold"] = options["threshold"]
    with results(paths, **options) as tables:
        drawn = draw(name, spectra=tables.spectra, layer_metrics=tables.layer_metrics, **wished)
        click.echo(f"wrote {save(drawn, output)}", err=True)


@contextmanager
def usage() -> Iterator[None]:
    """An impossible wish is wrong usage (2); an adapter that cannot be read or written is not (1)."""
    from .adapters import AdapterError

    try:
        yield
    except AdapterError as error:
        fail(error)
        raise click.exceptions.Exit(1) from None
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
        raise click.exceptions.Exit(1) from None


@contextmanager
def results(
    paths: tuple[str, ...],
    *,
    alpha: float | None,
    activation: str | None,
    modules: str | None,
    **options: Any,
) -> Iterator[Tables]:
    """The tables of all adapters that can be read; errors on stderr, and exit code 1 at the end if there were any."""
    from .adapters import AdapterError, checkpoints, read_adapter
    from .table import analyse, join, select

    failed = False
    adapters: list[Adapter] = []
    for path in paths:
        try:
            adapters += checkpoints(read_adapter(path, alpha=alpha, activation=activation))
        except AdapterError as error:
            failed = True
            fail(error)
    parts: list[Tables] = []
    with usage():
        chosen = []
        for adapter in named_apart(adapters):
            try:
                chosen.append(select(adapter, modules))
            except AdapterError as error:
                failed = True
                fail(error)
        total = sum(map(len, chosen))
        with click.progressbar(length=total, label="modules", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
            for adapter in chosen:
                try:
                    parts.append(analyse(adapter, on_module=lambda: bar.update(1), **options))
                except AdapterError as error:
                    failed = True
                    fail(error)
    notes = [f"{adapter.name}: {line}" for adapter in chosen for line in (*adapter.warnings, *_passed_over(adapter))]
    notes += [line for part in parts for line in part.provenance]
    for line in dict.fromkeys(notes):  # the checkpoints of one run would say the same again and again
        click.echo(f"note: {line}", err=True)
    if parts:
        with usage():
            yield join(parts)
    else:
        raise click.exceptions.Exit(1)
    if failed:
        raise click.exceptions.Exit(1)


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
