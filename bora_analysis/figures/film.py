"""How a spectrum grows over the steps of a training run, as the frames of a film."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from .. import style
from ..analysis.views import sigma_limits
from . import drawing as layout
from . import page

#: Frames of a film, at most: of more steps some are left out.
FRAMES = 120


@page.in_style
def film(
    curves: Any,
    *,
    threshold: float | None = None,
    label: str = "singular value σ",
    seconds: float = 0.4,
    width: str = "neurips",
    dpi: int = 150,
    on_frame: Callable[[int, int], object] | None = None,
) -> bytes:
    """An animated GIF: a frame for each step on axes that stay, with all other steps thin behind.

    Parameters
    ----------
    curves : columns step, index (1 is σ₁) and singular_value.
    threshold : a line across, where there is one for all steps.
    label : of the y axis.
    seconds : of one frame; the last stays three times as long.
    width : see :mod:`bora_analysis.figures`. dpi : pixels per inch of it.
    on_frame : called with the frames done and all of them; what it raises ends the film.

    Raises
    ------
    ValueError
        Fewer than two steps, or no singular value above 0.

    Examples
    --------
    >>> import pandas as pd
    >>> curves = pd.DataFrame({"step": [0, 0, 9, 9], "index": [1, 2, 1, 2], "singular_value": [0.0, 0.0, 2.0, 1.0]})
    >>> film(curves, dpi=50)[:6]
    b'GIF89a'
    """
    steps = sorted(int(step) for step in curves["step"].unique())
    values = curves["singular_value"].to_numpy(float)
    if len(steps) < 2:
        raise ValueError(f"a film has two steps or more; got {len(steps)}")
    if not (values > 0).any():
        raise ValueError("nothing to draw: every singular value is 0")
    if len(steps) > FRAMES:
        steps = [steps[round(k * (len(steps) - 1) / (FRAMES - 1))] for k in range(FRAMES)]
    floor, ceiling = sigma_limits(values, values, *([] if threshold is None else [threshold]))
    figure = page.blank(width, 2.6)
    axes = figure.subplots()
    axes.set_yscale("log")
    axes.set_ylim(floor, ceiling)
    layout.index_axis(axes, [int(curves["index"].max())])
    axes.set_xlabel("index of the singular value")
    axes.set_ylabel(label)
    lines = {}
    for step, part in curves[curves["step"].isin(steps)].groupby("step"):
        lines[int(step)] = part["index"].to_numpy(), np.fmax(part["singular_value"].to_numpy(float), floor)
        axes.plot(*lines[int(step)], color="0.8", lw=0.5, zorder=1)
    if threshold is not None:
        layout.threshold_line(axes, threshold, "y")
    (bold,) = axes.plot([], [], color=style.BLUE, lw=1.4, marker="o", ms=2.5, zorder=3)
    title = axes.set_title("", loc="left", size=8)
    frames = []
    for done, step in enumerate(steps, 1):
        bold.set_data(*lines[step])
        title.set_text(f"step {step:,}")
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi)
        frames.append(Image.open(buffer).convert("RGB").quantize(64))
        if on_frame is not None:
            on_frame(done, len(steps))
    out, each = BytesIO(), round(1000 * seconds)
    durations = [each] * (len(frames) - 1) + [3 * each]
    frames[0].save(out, "gif", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return out.getvalue()
