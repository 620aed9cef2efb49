"""The gallery: every figure, drawn from bundled data, with its command."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from click.testing import CliRunner
from PIL import Image

from bora_analysis.cli import main
from bora_analysis.cli.help import PROGRAM, folded
from bora_analysis.figures import FIGURES

ROOT = Path(__file__).parents[2]
_TWO = "data/trained-lora-r8 data/trained-bora-r8-b8"
_FOUR = "data/trained-lora-r8 data/trained-melora-r8-n4 data/trained-bora-r8-b8 data/trained-bora-r8-b16"
_RUNS = "data/runs/lora-r8 data/runs/melora-r8-n4 data/runs/bora-r8-b8 data/runs/bora-r8-b16"
#: Name of a picture → what follows ``bora-analysis figure``, but for ``-o``. The first of a figure has its name.
COMMANDS = {
    "spectra": f"spectra {_FOUR}",
    "spectra-null": f"spectra {_TWO} --null --projection q",
    "heatmap": f"heatmap {_TWO} --metric entropy_rank",
    "threshold_sweep": f"threshold_sweep {_FOUR}",
    "trajectory": f"trajectory {_RUNS} --metric effective_rank --projection q",
    "similarity": f"similarity {_TWO} --modules layer.3",
    "pareto": f"pareto {_FOUR}",
    "capture": "capture data/trained-lora-r32 --modules layer.5",
    "accuracy_by_rank": "accuracy_by_rank data/accuracy_by_rank.csv",
    "figure1": "figure1",
    "figure2": "figure2",
    "figure3": "figure3",
    "figure3-own": "figure3 data/experiments.csv --paper",
    "figure4": f"figure4 {_FOUR}",
    "optimal_blocks": "optimal_blocks",
}
#: Pictures of other commands: name → what follows ``bora-analysis``, but for ``-o``, and what they show.
OTHERS = {
    "card": (
        "card data/trained-bora-r8-b8",
        "one picture of an adapter: the rank allowed and used, where, the spectrum",
    ),
}
#: Figures that need what is not bundled.
NOT_SHOWN = {"accuracy_by_measured_rank"}


def page() -> str:
    """One section a figure: what it shows, the picture, the command."""
    parts = []
    for name, (command, words) in _commands().items():
        figure = next(word for word in command.split() if word != "figure")
        if name == figure:
            parts += [f"## {figure}", f"{words[0].upper()}{words[1:]}."]
        picture = f"![{figure}: {words}](gallery/{name}.png)" + "{ loading=lazy }"
        shown = "\n".join(folded(f"{PROGRAM} {command} -o {name}.pdf", 78))
        parts += [picture, f"```sh\n{shown}\n```"]
    return "\n\n".join(parts)


def drawn(folder: Path) -> list[Path]:
    """Draw the pictures, in so far as they are older than the code."""
    folder.mkdir(parents=True, exist_ok=True)
    newest = max(path.stat().st_mtime for path in [Path(__file__), *(ROOT / "bora_analysis").rglob("*.py")])
    pictures = []
    here = Path.cwd()
    os.chdir(ROOT)
    try:
        for name, (command, _) in _commands().items():
            picture = folder / f"{name}.png"
            if not picture.exists() or picture.stat().st_mtime < newest:
                _draw(command, picture)
            pictures.append(picture)
    finally:
        os.chdir(here)
    return pictures


def _commands() -> dict[str, tuple[str, str]]:
    """Name of a picture → the command that draws it, and what it shows."""
    figures = {name: (f"figure {own}", FIGURES[own.split()[0]].description) for name, own in COMMANDS.items()}
    return OTHERS | figures


def _draw(command: str, picture: Path) -> None:
    result = CliRunner().invoke(main, [*shlex.split(command), "-o", str(picture)])
    if result.exit_code:
        raise RuntimeError(f"bora-analysis {command}: {result.output}")
    with Image.open(picture) as image:
        small = image.convert("RGB").resize((image.width * 2 // 3, image.height * 2 // 3), Image.Resampling.LANCZOS)
    small.quantize(256).save(picture, optimize=True)
