"""Paper figures, each one function that returns a :class:`matplotlib.figure.Figure`.

They are registered in :data:`FIGURES`; :func:`draw` calls one by name and :func:`save` writes it; a notebook shows it.
A figure is drawn from tables or factors. In their place it takes adapters, paths and whatever else the tables can be
made from.

Options of several figures: ``width``, a venue of :data:`bora_analysis.style.VENUES`; ``height`` in inches, where the
panels have no shape of their own; ``font``, a family such as "Times New Roman" or "STIXGeneral" (as Times, and always
there), by default DejaVu Sans; ``title``, off by default because captions belong to LaTeX; ``labels``, adapter → label,
or the labels in the adapters' order, or ``"adapter=label"`` for some; ``ax``, axes to draw into, whose figure is
returned and for which ``width``, ``height`` and ``font`` do not count.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic import replacing
from . import backend  # noqa: F401  before anything else imports matplotlib
from .accuracy import figure3
from .block_products import figure1
from .capture import capture
from .cost import optimal_blocks, pareto
from .evaluation import accuracy_by_measured_rank, accuracy_by_rank
from .forward_pass import figure2
from .of_layers import figure4, heatmap
from .page import font_of, in_style, settle
from .spectra import spectra, threshold_sweep
from .subspaces import similarity
from .trajectory import trajectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "FIGURES", "Spec", "accuracy_by_measured_rank", "accuracy_by_rank", "capture", "draw", "figure1", "figure2",
    "figure3", "figure4", "heatmap", "optimal_blocks", "pareto", "save", "similarity", "spectra",
    "threshold_sweep", "trajectory",
]  # fmt: skip

# Source of a figure → whether adapters have to be given for it.
_ADAPTERS = {
    "spectra": "required",
    "layer_metrics": "required",
    "similarity": "required",
    "capture": "required",
    "evaluation": "required",
    "runs": "required",
    "updates": "optional",
    "accuracy": "optional",
}
_SOURCES = tuple(_ADAPTERS)

# Metadata that would hold the time or the version of the machine at hand: without it the bytes repeat.
_METADATA: dict[str, dict[str, None]] = {
    ".pdf": {"CreationDate": None},
    ".svg": {"Date": None},
    ".png": {"Software": None},
}


@dataclass(frozen=True)
class Spec:
    """What a caller needs to know of a figure.

    Attributes
    ----------
    function : source → figure.
    description : one line.
    source : what it is drawn from, the keyword under which :func:`draw` takes it, and the function's first parameter:

        * ``"spectra"``, ``"layer_metrics"``: a tidy table of adapters, or what it can be made from;
        * ``"capture"``: the table of :func:`bora_analysis.capture`, or its file, or an adapter;
        * ``"evaluation"``: the table of :func:`bora_analysis.evaluate`, or its file;
        * ``"runs"``: the table of :func:`bora_analysis.analysis.runs.run_table`, or folders of runs;
        * ``"similarity"``: the grid of two adapters, or these;
        * ``"updates"``: label → the factors of one module, or adapters; synthetic ones where none are given;
        * ``"accuracy"``: the paper's tables as one frame, or folders of runs, or their table;
        * ``None``: nothing but its options.
    """

    function: Callable[..., Figure]
    description: str
    source: str | None

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the keyword options of the function."""
        return tuple(inspect.signature(self.function).parameters)[self.source is not None :]

    @property
    def adapters(self) -> str:
        """Whether adapters have to be given: ``"required"``, ``"optional"`` or ``"none"``."""
        return _ADAPTERS.get(self.source or "", "none")


#: Name → figure, in the order in which they are listed.
FIGURES: dict[str, Spec] = {
    "figure1": Spec(figure1, "LoRA, MELoRA and BoRA as block products: |ΔW| and Σ'", "updates"),
    "figure2": Spec(figure2, "the forward pass of BoRA, block by block", None),
    "figure3": Spec(figure3, "the paper's ablations, ranks and blocks, tuning granularity", "accuracy"),
    "figure4": Spec(figure4, "energy and effective rank over the layers, as BoRA's figure 4", "spectra"),
    "spectra": Spec(spectra, "singular values against their index, with bound and threshold", "spectra"),
    "heatmap": Spec(heatmap, "a metric over layers and projections, one panel per adapter", "layer_metrics"),
    "threshold_sweep": Spec(threshold_sweep, "effective rank against the threshold", "spectra"),
    "trajectory": Spec(trajectory, "a metric against the training step, from checkpoints", "layer_metrics"),
    "similarity": Spec(similarity, "subspace similarity of two adapters, as LoRA's figure 3", "similarity"),
    "pareto": Spec(pareto, "ranks, or an outcome with its front, against trained parameters", "layer_metrics"),
    "capture": Spec(capture, "share of ΔW that each method can represent, against parameters", "capture"),
    "accuracy_by_rank": Spec(
        accuracy_by_rank, "what the task loses: its metric against the directions kept of each ΔW", "evaluation"
    ),
    "accuracy_by_measured_rank": Spec(
        accuracy_by_measured_rank, "what runs reached against their rank, one point for all seeds", "runs"
    ),
    "optimal_blocks": Spec(optimal_blocks, "parameters per unit of rank against the number of blocks", None),
}


def draw(name: str, source: Any = None, /, **options: Any) -> Figure:
    """Draw the figure of that name. An option that is None keeps its default.

    Parameters
    ----------
    source : what the figure is drawn from, see :class:`Spec`: its table, or adapters or paths to make it from.
    options : keyword options of the figure; also ``spectra``, ``layer_metrics``, ``similarity``, ``capture``,
        ``evaluation``, ``runs``, ``updates`` and ``accuracy``, the sources by name, several at once: the figure takes
        its own and leaves the others.

    Raises
    ------
    ValueError
        Unknown figure, option, metric, projection, module, model, width or label (the text lists those that exist); a
        source that is needed and missing, or without rows; a threshold that is not above 0; a trajectory of fewer
        than two steps.
    """
    if name not in FIGURES:
        raise ValueError(f"unknown figure {name!r}; there are {', '.join(FIGURES)}")
    spec = FIGURES[name]
    named = {each: options.pop(each, None) for each in _SOURCES}
    for option in options:
        if option not in spec.options:
            raise ValueError(f"figure {name} has no option {option!r}; it has {', '.join(spec.options)}")
    chosen = {option: value for option, value in options.items() if value is not None}
    if spec.source is None:
        if source is not None:
            raise ValueError(f"figure {name} is drawn from its options alone; leave out the {type(source).__name__}")
        return spec.function(**chosen)
    if source is None:
        source = named[spec.source]
    if source is None and spec.source != "updates":
        raise ValueError(f"figure {name} is drawn from {spec.source}, and none was given")
    return spec.function(source, **chosen)


@in_style
def save(figure: Figure, path: str | Path, *, dpi: float = 300) -> Path:
    """Write a figure as .pdf, .svg or .png (300 dpi, unless told otherwise). The same figure gives the same bytes.

    The layout of the figure is settled by this; what is added to it later moves nothing.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in _METADATA:
        raise ValueError(f"cannot write a figure as {target.name!r}; the suffix must be one of {', '.join(_METADATA)}")
    with font_of(figure):
        settle(figure)
        with replacing(target) as temporary:
            figure.savefig(temporary, format=suffix[1:], metadata=_METADATA[suffix], dpi=dpi)
    return target
