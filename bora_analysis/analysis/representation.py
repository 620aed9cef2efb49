"""Any adapter as the nearest adapter of another method, in a file of that method.

What PiSSA is to LoRA, an initial adapter that is near to a known update, this is to every method whose projection is
known; see :mod:`bora_analysis.analysis.capture`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from ..adapters import AdapterError, write_adapter
from ..adapters.given import one_of
from ..adapters.reading import Options
from ..catalogue import METHODS
from ..catalogue.module_names import layer, projection
from ..linalg import norm
from ..linalg.threads import in_order
from ..methods import form
from ..updates.contract import FactorError
from .capture import nearest, room_of
from .conversion import kept_others, refuse_biases, refuse_held, refuse_own_folder, shared_settings
from .members import member_of, with_default
from .progress import progress

if TYPE_CHECKING:
    import pandas as pd


def represent(
    source: Any,
    folder: str | Path,
    member: tuple[Any, ...] | str,
    *,
    bora_activation: str = "exp-norm",
    starts: int = 3,
    dtype: str = "float32",
    force: bool = False,
    on_module: Callable[[], object] | None = None,
    **reading: Unpack[Options],
) -> pd.DataFrame:
    """Write the nearest adapter of a method.

    Parameters
    ----------
    source : one adapter, or what :func:`bora_analysis.read_adapter` takes.
    folder : where ``adapter_config.json`` and the weights are written; not the adapter's own.
    member : method, r, blocks; for example ``("bora", 8, 16)``.
    bora_activation, starts : as for :func:`bora_analysis.capture`.
    dtype : of the factors, see :func:`bora_analysis.write_adapter`.
    force : replace the adapter that the folder holds already.
    on_module, reading : as for :func:`bora_analysis.analyse`.

    Returns
    -------
    DataFrame
        module, layer, projection, out_features, in_features, method, r, blocks, captured and error_relative: the share
        of Σσ² that the file keeps, rounding included, and ‖ΔW − X‖_F / ‖ΔW‖_F; parameters_before, parameters.

    Raises
    ------
    ValueError
        An unknown method, a method without an r that was given none, sizes that do not fit a module.
    AdapterError
        An adapter that cannot be read; several checkpoints; trained biases; ``folder`` is the adapter's own, or holds
        another.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from bora_analysis import read_adapter, synthetic_adapter
    >>> target = synthetic_adapter("lora", {"layers.0.q_proj": (64, 32)}, r=4)
    >>> with TemporaryDirectory() as folder:
    ...     table = represent(target, folder, ("bora", 4, 4))
    ...     read_adapter(folder).method, table["captured"].round(6).tolist()
    ('bora', [1.0])
    """
    import pandas as pd

    asked = member_of(member)
    row = METHODS[asked.method]
    if not asked.r:
        raise ValueError(f"{row.label} has an r, and none was given; expected for example r = 8")
    given = one_of(source, **reading)
    wished = with_default(asked, [given[module].shape for module in given])
    for module in given:
        if reason := wished.misfit(*given[module].shape):
            raise ValueError(f"{given.name}: {module}: {reason}")
    room = room_of(given)
    folder = Path(folder)
    refuse_own_folder(folder, [given])
    refuse_held(folder, "peft", force)
    kept = kept_others(given, "peft", same=False)
    refuse_biases(given, kept)
    settings = shared_settings([given], heads=True)
    rows: list[dict[str, Any]] = []

    def work(module: str) -> tuple[dict[str, Any], dict[str, Any]]:
        update = given[module]
        (m, n), facts = update.shape, update.facts
        parts = nearest(update, wished, bora_activation=bora_activation, starts=starts, room=room)
        if dtype != "float64":  # what the file holds; narrower types round once more
            parts = {name: part.astype(np.float32) if part.dtype.kind == "f" else part for name, part in parts.items()}
        written = form(wished.method).build(parts, 1.0, bora_activation)
        size, lost = (norm(np.array([norm(core) for core in each.cores()])) for each in (update, update - written))
        error = lost / size if size else 0.0
        told = {"module": module, "layer": layer(module), "projection": projection(module)}
        told |= {"out_features": m, "in_features": n, **wished._asdict(), "captured": 1 - error**2}
        told |= {"error_relative": error, "parameters_before": facts.parameters, "parameters": wished.parameters(m, n)}
        return parts, told

    def modules() -> Iterator[tuple[str, dict[str, Any]]]:
        for module, (parts, told) in in_order(work, given):
            rows.append(told)
            step()
            yield module, parts

    # α/√r is 1 for this α; for the others no α says α = r.
    alpha = wished.r**0.5 if wished.method == "rslora" else None
    try:
        with progress(len(given), on_module) as step:
            write_adapter(
                folder, wished.method, modules(), alpha=alpha, activation=bora_activation, dtype=dtype,
                extra_config=settings, others=dict(kept.values()),
            )  # fmt: skip
    except FactorError as error:
        raise AdapterError(f"{given.path or given.name}: {error}") from None
    return pd.DataFrame(rows).astype({"layer": "Int64"})
