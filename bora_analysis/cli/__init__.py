"""The command line: a thin skin over the library.

Results on stdout, everything else on stderr. Exit codes: 0 ok, 1 an adapter could not be read (the others are still
reported), 2 wrong usage. Only click is imported here; the rest inside the commands, so that ``--help`` is instant.
"""

from __future__ import annotations

import click

from .. import __version__
from .analyze import analyze, compare, factors
from .convert import convert, merge
from .cost import cost
from .dashboard import dashboard
from .figure import figure
from .paper import paper
from .recommend import recommend
from .relative import relative
from .similarity import similarity
from .synth import synth
from .train import train


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="bora-analysis")
def main() -> None:
    """What rank does a low-rank adapter really use?

    Exact singular values of LoRA, MELoRA and BoRA (arXiv 2508.06953) adapters from the adapter file alone, in
    seconds. A PATH is a PEFT folder, a weights file, a folder of checkpoints, or a Hub id such as org/name.
    """


for command in (
    analyze,
    compare,
    factors,
    recommend,
    similarity,
    relative,
    convert,
    merge,
    figure,
    synth,
    cost,
    train,
    paper,
    dashboard,
):
    main.add_command(command)
