"""Tables to draw, and what a figure shows, for several tests."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from bora_analysis import metrics
from bora_analysis.updates.contract import Facts

ADAPTERS = (("lora-r4", "lora", 4, 1), ("melora-r2", "melora", 2, 4), ("bora-b4", "bora", 4, 4), ("mine", "bora", 4, 6))


def tables(
    adapters=ADAPTERS, layers=(0, 1, 2), projections=("q", "v"), steps=(None,), seed=0, zero=()
) -> dict[str, Any]:
    """Both tidy tables of random updates. An adapter is (name, method, r, blocks); its bound is r·blocks."""
    rng = np.random.default_rng(seed)
    spectra, rows = [], []
    for name, method, r, b in adapters:
        bound = r * b
        for step in steps:
            for layer in layers:
                for projection in projections:
                    module = f"model.layers.{layer}.{projection}_proj"
                    s = np.linalg.svd(rng.normal(size=(bound, bound)) / 10, compute_uv=False) ** 3
                    s = np.zeros(bound) if name in zero else s
                    key = {"adapter": name, "method": method, "step": step, "module": module, "layer": layer}
                    key["projection"] = projection
                    spectra += [{**key, "index": i, "singular_value": x} for i, x in enumerate(s, 1)]
                    facts = Facts(method, 64, 64, r, b, 1.0, 128 * r, 128 * r, bound, "float32")
                    values = {
                        column: metric.value(s, facts.rank_bound, 0.005) for column, metric in metrics.METRICS.items()
                    }
                    rows.append({**key, "parameters": facts.parameters, "threshold": 0.005, **values})
    types = {"step": "Int64", "layer": "Int64"}
    return {"spectra": pd.DataFrame(spectra).astype(types), "layer_metrics": pd.DataFrame(rows).astype(types)}


def artist(figure: Figure, gid: str) -> Any:
    found = [each for axes in figure.axes for each in axes.get_children() if each.get_gid() == gid]
    assert len(found) == 1, (gid, [each.get_gid() for axes in figure.axes for each in axes.get_children()])
    return found[0]


def gids(figure: Figure, prefix: str) -> list[str]:
    all_gids = [str(each.get_gid()) for axes in figure.axes for each in axes.get_children()]
    return [gid for gid in all_gids if gid.startswith(prefix)]


def ydata(figure: Figure, gid: str) -> list[float]:
    return np.asarray(artist(figure, gid).get_ydata()).tolist()


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def cut_texts(figure: Figure) -> list[str]:
    """Texts that reach beyond the paper."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    drawn = {id(text) for text in drawn_text(figure)}  # ticks beyond the limits exist but are not drawn
    page = figure.bbox.padded(1.0)
    result = []
    for text in figure.findobj(lambda each: id(each) in drawn):
        assert isinstance(text, Text)
        if not text.get_text().strip() or not text.get_visible():
            continue
        box = text.get_window_extent(renderer)
        if not (page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1):
            result.append(text.get_text())
    return result


def drawn_text(figure: Figure) -> list[Text]:
    drawn = [text for legend in figure.legends for text in legend.get_texts()]
    for axes in filter(lambda axes: axes.get_visible(), figure.axes):
        drawn += [axes.xaxis.label, axes.yaxis.label, axes.title, axes._left_title, *axes.texts]  # type: ignore
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            drawn += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return drawn
