"""The command that trains an adapter."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import click
from click.core import ParameterSource

from ..catalogue import ACTIVATIONS, METHODS, trained
from .common import command, print_listed, set_values, stop
from .names import Named

# As in training.settings, which is imported when the command runs.
_TASKS = ("classification", "regression", "causal-lm")


def _steps(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value in (None, "none", ""):
        return None if value is None else ()
    try:
        return tuple(map(int, value.split(",")))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of steps; expected e.g. 0,100,400, or none") from None


# PEFT's settings that `recommend --pattern` prints → ours, and what they hold.
_RANKS: dict[str, tuple[str, type | tuple[type, ...], str]] = {
    "r": ("r", int, "a whole number"),
    "lora_alpha": ("alpha", (int, float), "a number"),
    "use_rslora": ("rslora", bool, "true or false"),
    "rank_pattern": ("rank_pattern", dict, "patterns"),
    "alpha_pattern": ("alpha_pattern", dict, "patterns"),
    "num_blocks": ("blocks", int, "one number for all modules"),
    "num_minis": ("blocks", int, "one number for all modules"),
    "pad": ("pad", bool, "true or false"),
}


def _json(path: str, expected: str) -> Any:
    """What a file holds, or stdin for ``-``."""
    try:
        with click.open_file(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise click.BadParameter(f"{path}: {error.strerror}; expected a file") from None
    except ValueError as error:
        raise click.BadParameter(f"{path}: is no JSON ({error}); expected {expected}") from None


def _ranks(context: click.Context, option: click.Parameter, value: str | None) -> dict[str, Any]:
    """Settings of a run, from PEFT's settings as ``recommend --pattern`` prints them."""
    if value is None:
        return {}
    told = _json(value, "what `recommend --pattern` prints")
    if not isinstance(told, dict) or "r" not in told or not set(told) <= set(_RANKS):
        found = ", ".join(map(str, told)) if isinstance(told, dict) else type(told).__name__
        raise click.BadParameter(f"{value}: holds {found}; expected r and some of {', '.join(list(_RANKS)[1:])}")
    for key, entry in told.items():
        _, kind, expected = _RANKS[key]
        if not isinstance(entry, kind) or (isinstance(entry, bool) and kind is not bool):
            raise click.BadParameter(f"{value}: {key} is {entry!r}; expected {expected}")
    return {_RANKS[key][0]: entry for key, entry in told.items()}


class _Trained(Named):
    """A method that is trained; one that is not has its reason in the message."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        row = METHODS.get(value)
        if value not in self.choices and row is not None and row.untrained:
            self.fail(f"{value!r} is not trained here: {row.untrained}", param, ctx)
        return super().convert(value, param, ctx)


def _configuration(context: click.Context, option: click.Parameter, value: str | None) -> dict[str, Any]:
    """Settings of a method's configuration, from a file."""
    if value is None:
        return {}
    told = _json(value, "a table of settings")
    if not isinstance(told, dict):
        raise click.BadParameter(f"{value}: holds a {type(told).__name__}; expected a table of settings")
    return told


def _columns(context: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",")) if value is not None else ()


@command(
    "train --model roberta-base --data reviews.csv --method bora -r 8 --blocks 16 -o my-bora",
    "train --model roberta-base --data reviews.csv --method fourierft --set n_frequency=500 -o my-fourierft",
    "train --recipe glue-rte -o rte",
)
@click.option("--recipe", metavar="NAME", help="An experiment of the paper; other options change it.")
@click.option("--recipes", "listing", is_flag=True, help="List the recipes and exit.")
@click.option("--model", metavar="DIR_OR_HUB_ID", help="The base model.")
@click.option(
    "--data",
    metavar="FILE_OR_HUB_ID",
    help="A table, a folder with train.* and validation.* files, or a Hub data set org/name[:config].",
)
@click.option("--task", type=click.Choice(_TASKS), default="classification")
@click.option("--method", type=_Trained(trained()), default="bora")
@click.option("-r", "--rank", "r", type=int, help="[default: 8; far relatives of LoRA: PEFT's]")
@click.option(
    "--blocks",
    type=int,
    help="Blocks of BoRA (16), GraLoRA and BD-LoRA (2), minis of MELoRA (4), stages of ReLoRA (4).  [default: these]",
)
@click.option(
    "--ranks", metavar="FILE", callback=_ranks, help="r and α by module: the JSON of `recommend --pattern`, or - ."
)
@click.option("--experts", type=int, help="Of HydraLoRA, MoELoRA and Lily.  [default: 3; Lily: PEFT's]")
@click.option("--alpha", type=float, help="α.  [default: 2r; far relatives of LoRA: PEFT's]")
@click.option("--rslora", is_flag=True, default=None, help="Scale by α/√r.")
@click.option("--activation", type=click.Choice(ACTIVATIONS), help="Of BoRA.  [default: exp-norm]")
@click.option("--dropout", type=float, help="[default: 0.05; far relatives of LoRA: PEFT's]")
@click.option(
    "--b-learning-rate-ratio", type=float, metavar="X", help="Of LoRA+: the rate of B over that of A.  [default: 16]"
)
@click.option(
    "--set",
    "changes",
    metavar="KEY=VALUE",
    multiple=True,
    callback=set_values,
    help="A further setting of the method's configuration in PEFT.",
)
@click.option(
    "--config", "configuration", metavar="FILE", callback=_configuration, help="A JSON file of such settings, or - ."
)
@click.option("--target", default="QV", help="Letters of QKVOGUD, or names: query,value.")
@click.option("--text", callback=_columns, metavar="COLUMN[,COLUMN]", help="Column of the text, or of a pair of texts.")
@click.option("--label", metavar="COLUMN", help="Column of the class or number.")
@click.option(
    "--metric",
    metavar="NAME",
    help="accuracy or matthews (classification), pearson (regression), perplexity (causal-lm).",
)
@click.option("--encoding", default="utf-8", help="Encoding of csv, tsv and json files.")
@click.option("--validation", metavar="FILE", help="A file of held-out examples.  [default: a share of the data]")
@click.option("--validation-share", type=float, default=0.1)
@click.option("--split-seed", type=int, default=0, help="Seed that selects the held-out share.")
@click.option("--limit", type=int, help="Use at most this many examples.")
@click.option("--steps", type=int, help="Number of optimiser steps, instead of --epochs.")
@click.option("--epochs", type=float, default=1.0)
@click.option("--batch-size", type=int, default=32)
@click.option("--accumulate", type=int, default=1, help="Batches per step.")
@click.option("--learning-rate", type=float, default=3e-4, help="Peak rate; it decays linearly.")
@click.option("--warmup", type=float, default=0.03, help="Share of the steps (below 1) or number of steps.")
@click.option("--max-length", type=int, default=512, help="Tokens per example.")
@click.option("--group-by-length", is_flag=True, help="Batches of similar length: less padding.")
@click.option("--gradient-checkpointing", is_flag=True, help="Less memory, more time.")
@click.option(
    "--quantize",
    type=click.Choice(["int8", "nf4"]),
    help="The frozen base model in 8 bits (torchao) or in 4 (bitsandbytes); extra `quantize`.",
)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32")
@click.option(
    "--checkpoints",
    callback=_steps,
    metavar="N,N,...",
    help="Steps whose adapter is kept.  [default: ten, more of them early]",
)
@click.option("--evaluate-every", type=int, metavar="STEPS", help="[default: at the end]")
@click.option("--log-every", type=int, metavar="STEPS", help="[default: 20 lines in all]")
@click.option(
    "--resume-every", type=int, default=500, metavar="STEPS", help="How often to save the state for --resume."
)
@click.option("--seed", type=int, default=0)
@click.option("--model-name", metavar="NAME", help="Name of the base model in the adapter's files.  [default: --model]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--resume", is_flag=True, help="Continue a run that did not finish.")
@click.option("-o", "--output", metavar="DIR", help="A new folder: the adapter, checkpoint-N, run.json.")
@click.pass_context
def train(
    context: click.Context,
    recipe: str | None,
    listing: bool,
    device: str,
    resume: bool,
    output: str | None,
    ranks: dict[str, Any],
    changes: dict[str, Any],
    configuration: dict[str, Any],
    **given: Any,
) -> None:
    """Train an adapter with transformers and PEFT (extra `train`).

    Defaults are the paper's for RoBERTa-Base: AdamW, linear decay, α = 2r, no weight decay. Progress goes to stderr,
    the last metric to stdout. DIR can be given to every other command; DIR/run.json records the run. A method that is
    no close relative of LoRA has PEFT's own defaults, and what no option sets is set by PEFT's names with --set.
    """
    try:
        from ..training import RECIPES, Settings, TrainingError
        from ..training import train as run
        from ..training.recipes import without_options
    except ImportError as error:
        stop(error)
    if listing:
        print_listed(
            [(name, f"{made['data'].rpartition('/')[2]} on {made['model']}") for name, made in RECIPES.items()]
        )
        return
    settings: dict[str, Any] = {}
    if recipe is not None:
        if recipe not in RECIPES:
            raise click.UsageError(f"unknown recipe {recipe!r}; `train --recipes` lists them")
        settings = dict(RECIPES[recipe])
    chosen = {
        key: value for key, value in given.items() if context.get_parameter_source(key) != ParameterSource.DEFAULT
    }
    if "method" in chosen:
        settings = without_options(settings, chosen["method"])
    own = {"pad": ranks.pop("pad")} if "pad" in ranks else {}  # no option of its own
    if own or changes or configuration:
        chosen["peft"] = own | configuration | changes
    if twice := sorted(ranks.keys() & chosen.keys()):
        raise click.UsageError(f"got --ranks and {', '.join(f'--{name}' for name in twice)}; expected one of them")
    settings |= chosen | ranks
    missing = [f"--{name}" for name in ("model", "data") if not settings.get(name)] + ([] if output else ["-o DIR"])
    if missing:
        raise click.UsageError(f"missing {', '.join(missing)}")
    try:
        report = partial(click.echo, err=True)
        record = run(Settings(**settings), str(output), resume=resume, device=device, report=report)
    except (TrainingError, ImportError, OSError) as error:
        stop(error)
    ((metric, value),) = record["metric"].items()
    click.echo(f"{metric} {value:.4f} on {record['examples']['held_out']:,} held-out examples; wrote {output}")
