"""PEANuT (arXiv 2410.01870): ΔW = s B h(A W0), h an activation, and more layers of r × r with residuals between.

PEFT: ``<module>.peanut_A.weight`` (r, m), ``.peanut_B.weight`` (m, r), ``.peanut_encoders.K.weight`` and
``.peanut_decoders.K.weight`` (r, r) (``peanut/layer.py``). It is not linear in W0, but in the layer's input.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from ..extras import require
from ..files.adapter_file import Found, Loader, Source
from ..files.base_model import BaseMatrix
from ..files.parts import fitted, need, read_parts
from ..files.tensors import Array
from ..updates.blocks import lora
from ..updates.contract import FactorError, Update
from .on_base_model import base_matrix, product
from .random_base import ROOT_MEAN_SQUARE, form_on_base, on_base
from .random_factors import Parts, Spec, pair


def read(source: Source) -> Found | None:
    """PEANuT as PEFT saves it."""
    return read_parts(source, r"peanut_(A|B|(encoders|decoders)\.\d+)", "peanut", _loader)


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    base = base_matrix(source, "PEANuT", module, next(iter(parts.values())))
    known = {"m": base.shape[0]}
    keys, sizes = fitted(source, parts, known, base.key, A="peanut_A (r, m)", B="peanut_B (m, r)")
    r = sizes["r"]
    names = [f"peanut_{kind}.{k}" for kind in ("encoders", "decoders") for k in range((len(parts) - 2) // 2)]
    inner = need(source, parts, *names)
    for key in inner:
        source.check_factor(key)
        source.expect(source.tensors.shape(key) == (r, r), key, f"({r}, {r}) from peanut_A")
    source.check_rank(module, keys["A"], r)
    scaling = float(source.setting("scaling", (int, float), 1.0))
    activation = source.setting("act_fn", str, "relu")
    named = keys | ({"inner": inner} if inner else {})
    return source.loader(named, partial(_build, base=base, scaling=scaling, activation=activation))


def _build(
    A: Array,
    B: Array,
    inner: list[Array] | None = None,
    *,
    base: BaseMatrix,
    scaling: float,
    activation: str,
    dtype: str,
) -> Update:
    h = _activation(activation)
    state = h(product(base, A.T.astype(np.float64), transposed=True))
    layers = [X.T.astype(np.float64) for X in inner or []]
    before = []
    for layer in layers[: len(layers) // 2]:
        before.append(state)
        state = h(state @ layer)
    for layer in layers[len(layers) // 2 :]:
        state = h(state @ layer) + before.pop()
    update = lora(B, state.T, scaling=scaling, method="peanut", dtype=dtype, any_rank=True)
    trained = A.size + B.size + sum(X.size for X in layers)
    return update.with_facts(parameters=trained)


def _activation(name: str) -> Callable[[Array], Array]:
    if name == "relu":
        return lambda X: np.maximum(X, 0)
    require(
        "train", f"has the activation {name}, which transformers has", "transformers", error=partial(FactorError, "A")
    )
    import torch  # here: only rare activations need them
    from transformers.activations import ACT2FN

    if name not in ACT2FN:
        raise FactorError("A", f"has the activation {name!r}, which transformers does not have")

    def apply(X: Array) -> Array:
        with torch.no_grad():
            return ACT2FN[name](torch.from_numpy(X)).numpy()

    return apply


def random(spec: Spec, rng: np.random.Generator, W0: Array) -> Parts:
    """One layer, PEFT's default, which starts with B = 0. Of the entries of A W0 h leaves half."""
    m, n = W0.shape
    B, A = pair(spec, rng, m, m)
    return {"A": A, "B": B * (np.sqrt(2 / n) / ROOT_MEAN_SQUARE)}


FORMS = {
    "peanut": form_on_base(
        read,
        {"A": "peanut_A.weight", "B": "peanut_B.weight"},
        lambda a: len(a["A"]),
        lambda _: {"depth": 0, "act_fn": "relu", "scaling": 1.0},
    )
}
RECIPES = {"peanut": on_base(random)}
