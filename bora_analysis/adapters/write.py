"""Adapters to PEFT's file layout: ``adapter_model.safetensors`` and ``adapter_config.json``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import replacing
from ..catalogue import METHODS, made, may_pad, names
from ..files.adapter_file import SHAPES
from ..files.configuration import CONFIG_NAME
from ..files.errors import AdapterError
from ..files.keys import exactly
from ..files.tensors import Array, Raw
from ..files.tensors_out import DTYPES, TensorsOut
from ..methods import form as form_of
from ..methods.file_form import Form
from ..methods.lora import EMBEDDING
from ..updates.contract import FactorError


def write_adapter(
    folder: str | Path,
    method: str,
    modules: Mapping[str, Mapping[str, Any]] | Iterable[tuple[str, Mapping[str, Any]]],
    *,
    alpha: float | None,
    activation: str = "exp-norm",
    rslora: bool = False,
    base_model: str | None = None,
    dtype: str | None = None,
    extra_config: Mapping[str, Any] | None = None,
    others: Mapping[str, Raw] | None = None,
    pad: bool = False,
) -> Path:
    """Write an adapter; :func:`read_adapter` reads it back, and PEFT too where it has the method.

    The modules are taken one at a time, so a mapping or a generator that makes them when asked needs memory for one.

    Parameters
    ----------
    folder : where the two files go. Existing ones are replaced, once the new ones are complete.
    method : one of :func:`bora_analysis.catalogue.made`; ``FORMS`` of its file has the names of its parts.
    modules : module path → ``{"A": …, "B": …}``, for BoRA with ``"sigma"``, the raw σ. Shapes as for
        :func:`bora_analysis.updates.blocks.lora` and :func:`~bora_analysis.updates.blocks.bora`; for MELoRA A is
        (N, r, n/N) and B (N, m/N, r); for the others as in their readers. A LoRA on a convolution has A
        (r, channels, kernel…) and B (m, r, 1…), one on an embedding ``{"embedding_A": (r, V), "embedding_B": (d, r)}``.
        Methods on a base model have ``"W0"`` (m, n) among their parts, which they must fit and which is not written.
        Or pairs of module path and factors. Parts that all modules share (VeRA's projections, VB-LoRA's bank) stand in
        every one of them.
    alpha : α. The scaling is α/r with each module's own r, or α/√r. None, which a method without α must have: α = r in
        every module, so that the scaling is 1. The configuration's r is then the largest, so that a server which knows
        no patterns allots enough and scales by 1 too.
    activation : for BoRA, how Σ comes from σ.
    rslora : scale by α/√r; ``"rslora"`` implies it.
    dtype : ``"float64"``, ``"float32"``, ``"float16"`` or ``"bfloat16"`` (rounded to nearest even); by default that of
        the arrays.
    extra_config : more entries for ``adapter_config.json``.
    pad : for BoRA, with a b that need not divide the layers, see :func:`bora_analysis.updates.blocks.bora`.
    others : key → tensor that goes into the file as it is (heads, embeddings); needs ``dtype``.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    AdapterError
        Factors that do not fit together or are not finite, an unknown method or dtype, arrays of several dtypes, an α
        for a method without.

    Examples
    --------
    >>> import numpy as np
    >>> from tempfile import TemporaryDirectory
    >>> from bora_analysis import write_adapter
    >>> factors = {"B": np.ones((4, 1)), "A": np.ones((1, 3))}
    >>> with TemporaryDirectory() as folder:
    ...     sorted(file.name for file in write_adapter(folder, "lora", {"q": factors}, alpha=2).iterdir())
    ['adapter_config.json', 'adapter_model.safetensors']
    """
    folder = Path(folder)
    if others and dtype is None:
        raise AdapterError(f"{folder}: with others the factors' dtype must be given; pass dtype=")
    if method not in made():
        raise AdapterError(f"{folder}: method {method!r} cannot be written; expected one of {', '.join(made())}")
    if pad and not may_pad(METHODS[method]):
        raise AdapterError(f"{folder}: {method} cannot be padded; methods that can: {', '.join(names(may_pad))}")
    form = form_of(method, pad=pad)
    if form.alpha is None and alpha is not None:
        raise AdapterError(f"{folder}: got alpha = {alpha}; {method} has no α; expected None")
    with replacing(folder / CONFIG_NAME) as config_path, replacing(folder / "adapter_model.safetensors") as weights:
        # Both are written in full before either gets its name, the weights first.
        with TensorsOut(folder) as out:
            pairs: Any = modules.items() if isinstance(modules, Mapping) else modules
            written = _write_data(out, folder, form, pairs, activation, dtype, alpha)
            for key, raw in (others or {}).items():
                out.copy(key, raw)
            out.save(weights, {"format": "pt"})
        if not written.settings:
            raise AdapterError(f"{folder}: there are no modules to write")
        config = {
            **({"peft_type": types[0]} if (types := METHODS[method].peft_types) else {}),
            "base_model_name_or_path": base_model,
            "task_type": None,
            "inference_mode": True,
            "target_modules": list(written.settings),
            **_ranks(form, written.ranks, alpha, rslora or method == "rslora"),
            "bias": "none",
            **form.config(written.settings),
        }
        if method == "bora":
            config["activation"] = activation
        if written.shapes:
            config[SHAPES] = written.shapes
        config |= extra_config or {}
        config_path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder


@dataclass
class _Written:
    """What the configuration has to say of the modules, by their paths."""

    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, list[int]] = field(default_factory=dict)


def _ranks(form: Form, ranks: Mapping[str, int], alpha: float | None, rslora: bool) -> dict[str, Any]:
    """r and α of the configuration, with patterns for the modules that differ."""
    if not ranks:
        return {}
    r = Counter(ranks.values()).most_common(1)[0][0]
    if form.alpha is not None and alpha is None:
        r = max(ranks.values())
    pattern = {exactly(module): own for module, own in ranks.items() if own != r}
    if form.alpha is None:
        return {"r": r, **({"rank_pattern": pattern} if pattern else {})}
    return {
        "r": r,
        form.alpha: r if alpha is None else alpha if isinstance(alpha, int) else float(alpha),  # no NumPy scalar
        "use_rslora": rslora,
        "rank_pattern": pattern,
        "alpha_pattern": pattern if alpha is None else {},
    }


def _write_data(
    out: TensorsOut,
    folder: Path,
    form: Form,
    modules: Iterable[tuple[str, Mapping[str, Any]]],
    activation: str,
    dtype: str | None,
    alpha: float | None,
) -> _Written:
    """Write the tensors one after another; return what else the modules say."""
    written = _Written()
    shared: dict[str, Array] = {}
    stored = dtype  # one type for all factors
    for module, factors in modules:
        arrays = {part: _as_array(value) for part, value in factors.items()}
        own = EMBEDDING if set(form.keys) == {"A", "B"} and set(arrays) == set(EMBEDDING.keys) else form
        try:
            own.check(arrays, activation)
        except FactorError as error:
            raise AdapterError(f"{folder}: {module}: {error}") from None
        written.settings[module] = own.settings(arrays)
        if own.rank is not None:
            written.ranks[module] = own.rank(arrays)
        if own.alpha_key:
            each = written.ranks[module] if alpha is None else alpha
            out.add(f"{own.named(module)}.{own.alpha_key}", np.array(each, np.float32), "float32")
        if "shape" in own.told:
            written.shapes[module] = arrays["shape"].tolist()
        for part, key, array in own.tensors(module, arrays):
            if part in own.shared:
                first = shared.setdefault(key, array)
                if first is not array and not np.array_equal(first, array):
                    raise AdapterError(f"{folder}: {module}: {part} is not that of the modules before; it is shared")
                if key in out:
                    continue
            if array.dtype.kind in "iu":
                out.add(key, array, "int64")
                continue
            stored = stored or array.dtype.name
            if stored not in DTYPES:
                raise AdapterError(f"{folder}: dtype {stored} cannot be written; expected one of {', '.join(DTYPES)}")
            if not dtype and array.dtype.name != stored:
                raise AdapterError(f"{folder}: {module}: {part} is {array.dtype}, others are {stored}; pass dtype=")
            try:
                out.add(key, array, stored)
            except OverflowError as error:
                raise AdapterError(f"{folder}: {module}: {part} {error}") from None
    return written


def _as_array(value: Any) -> Array:
    if hasattr(value, "detach"):  # a torch tensor, without importing torch
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    return np.asarray(value)
