"""BoRA (arXiv 2508.06953): factors that are cut into blocks.

Ours: ``<module>.bora_A`` (r, n), ``.bora_B`` (m, r), ``.bora_sigma`` (b, b, r), σ raw as trained. A convolution's A is
(r, channels, kernel …), an embedding's is named ``.bora_embedding_A`` (r, V), as in PEFT's LoRA. The authors' likely
layout, a PEFT LoRA pair with one tensor (b, b, r) beside it, is read in :mod:`bora_analysis.methods.lora`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import numpy as np

from ..catalogue import ACTIVATIONS
from ..files.adapter_file import Found, Loader, Source, match_pattern, of_layer
from ..files.errors import AdapterError
from ..files.parts import collect, need
from ..linalg import Array
from ..linalg.gaussian import gaussian_triangle
from ..projections import Projection, Target, Wish, longer_side
from ..updates.blocks import activate, bora
from ..updates.checks import check_blocks
from ..updates.contract import FactorError, Facts, Update
from ..updates.sums import product
from .file_form import Form, columns
from .pairs import Pair, check_pair
from .random_factors import Bulk, NoNullError, Null, Parts, Recipe, Sizes, Spec, expect, kaiming, pair


def read(source: Source) -> Found | None:
    """BoRA in our own layout."""
    return read_blocks(source, "bora", ("B", "sigma"), bora_loader)


def read_blocks(
    source: Source, kind: str, parts: tuple[str, ...], make: Callable[[Source, str, Mapping[str, str]], Loader]
) -> Found | None:
    """A method's own layout: ``<module>.<kind>_A``, or ``_embedding_A``, and the other parts."""
    found, rest = collect(source, rf"{kind}_((embedding_)?A|{'|'.join(parts)})")
    if not found:
        return None
    loaders = {}
    for module, own in found.items():
        A = next((name for name in own if "embedding_A" in name), f"{kind}_A")
        keys = need(source, own, A, *(f"{kind}_{part}" for part in parts))
        loaders[module] = make(source, module, dict(zip(("A", *parts), keys, strict=True)))
    return Found(kind, loaders, rest, [])


def bora_loader(source: Source, module: str, keys: Mapping[str, str]) -> Loader:
    """Check the shapes of one BoRA module and return its loader."""
    A, B, sigma = (source.tensors.shape(keys[part]) for part in ("A", "B", "sigma"))
    if len(A) > 2:
        for key in (keys["A"], keys["B"]):
            source.check_factor(key)
        r = A[0]
        source.expect(len(B) == 2 and B[1] == r, keys["B"], f"(m, {r}): bora_A is a convolution of shape {A}")
        source.check_rank(module, keys["A"], r)
    else:
        r, _ = check_pair(source, module, Pair(keys["A"], keys["B"], False))
    source.check_factor(keys["sigma"])
    b = sigma[0] if sigma else 0
    source.expect(sigma == (b, b, r), keys["sigma"], f"(b, b, r) with r = {r}")
    pad = source.setting("pad", bool, False)
    try:
        if not pad:
            check_blocks(b, B[0], prod(A[1:]), "; that of a padded layer stands beside pad = true in the configuration")
    except FactorError as error:
        raise AdapterError(f"{source.path}: {keys['sigma']}: {error.message}") from None
    check_count(source, module, "num_blocks", keys["sigma"], b)
    build = partial(bora, scaling=source.scaling(module, r), activation=activation(source), pad=pad)
    return source.loader(keys, of_kind(build, keys["A"], kernel=A[2:]))


def of_kind(build: Callable[..., Update], key: str, *, kernel: tuple[int, ...]) -> Callable[..., Update]:
    """The builder for a layer that may be a convolution with that kernel, or an embedding, which the key of A tells."""

    def made(A: Array, **others: Any) -> Update:
        update: Any = build(A=A.reshape(*A.shape[: A.ndim - len(kernel) - 1], -1), **others)
        facts: Facts = update.facts
        if "embedding_A" in key:  # A is looked up, not multiplied
            m, b = facts.out_features, facts.blocks
            macs = facts.r * (m + b if facts.method == "bora" else m // b)
            return replace(update, facts=replace(facts, kind="embedding", macs_per_token=macs))
        return of_layer(update, kernel)

    return made


def activation(source: Source) -> str:
    """How Σ comes from the stored σ: as the caller says, else as the configuration says, else eq. 5."""
    name = source.activation or (source.config or {}).get("activation") or "exp-norm"
    if name not in ACTIVATIONS:
        raise AdapterError(f"{source.path}: activation {name!r} is unknown; expected one of {', '.join(ACTIVATIONS)}")
    return name


def check_count(source: Source, module: str, name: str, key: str, count: int) -> None:
    told: Any = (source.settings(module) or {}).get(name)
    if isinstance(told, Mapping):
        told = match_pattern(source, told, module)
    if isinstance(told, int) and told != count:
        raise AdapterError(
            f"{source.path}: {key} has {count} blocks (shape {source.tensors.shape(key)}) but the configuration says "
            f"{name} = {told} for {module}; correct one of them"
        )


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    b = spec.blocks
    if spec.kind == "decay":  # each block orthonormal, so that σ(ΔW) = σ(Σ') up to the slots' scales
        pairs = [pair(spec, rng, -(-m // b), -(-n // b)) for _ in range(b)]
        B, A = np.concatenate([B for B, _ in pairs])[:m], np.concatenate([A for _, A in pairs], axis=1)[:, :n]
    else:
        B, A = pair(spec, rng, m, n)
    return {"B": B, "A": A, "sigma": kaiming(rng, (b, b, spec.r), fan_in=b * spec.r)}


def nearest(target: Target, wish: Wish) -> tuple[Parts, float]:
    from ..projections.block_products import nearest  # here: reading does without

    return nearest(target, wish)


def _form(pad: bool) -> Form:
    return Form(
        {"A": "bora_A", "B": "bora_B", "sigma": "bora_sigma"},
        lambda a, scaling, how: bora(a["B"], a["A"], a["sigma"], scaling=scaling, activation=how, pad=pad),
        lambda a: columns(a["A"]),
        lambda a: {"num_blocks": a["sigma"].shape[0]} | ({"pad": True} if pad else {}),
    )


FORMS, PADDED = ({"bora": _form(pad)} for pad in (False, True))


def _check_whole(sizes: Sizes) -> None:
    expect(sizes, (sizes.m + sizes.n + sizes.blocks**2) * sizes.r)
    if sizes.m % sizes.blocks or sizes.n % sizes.blocks:
        raise NoNullError("is padded: its blocks differ in size")


def null_cores(sizes: Sizes, rng: np.random.Generator) -> list[Array]:
    """B and A Gaussian, σ as eq. 5 begins."""
    _check_whole(sizes)
    b, r = sizes.blocks, sizes.r
    sigma = activate(kaiming(rng, (b, b, r), fan_in=b * r), sizes.activation or "exp-norm")
    R, L = (gaussian_triangle(rng, size // b, r, b) for size in (sizes.m, sizes.n))
    return [product(R, sigma, L.transpose(0, 2, 1))[0][None]]


def moments(activation: str, fan_in: int) -> tuple[float, float]:
    """E[s] and E[s²] of Σ's numbers at the start, up to a common factor.

    σ is uniform up to ±1/√fan_in. Eq. 5 makes it uniform up to ±2, so that E[s] = sinh(2)/2 and E[s²] = sinh(4)/4.

    >>> [round(x, 3) for x in moments("exp-norm", 64)], moments("no-exp", 64)
    ([1.813, 6.822], (0.0, 0.3333333333333333))
    """
    if activation not in ("exp-norm", "no-norm"):
        return 0.0, 1 / 3
    c = 2.0 if activation == "exp-norm" else fan_in**-0.5
    return float(np.sinh(c) / c), float(np.sinh(2 * c) / (2 * c))


def bulk(sizes: Sizes) -> Bulk:
    """The S_k (b×b) of independent numbers: their variance makes a bulk, of ratio b/b, their mean one σ above it."""
    _check_whole(sizes)
    br = sizes.blocks * sizes.r
    mean, square = moments(sizes.activation or "exp-norm", br)
    return br, (br / sizes.m, br / sizes.n, 1.0), 1 - mean**2 / square


RECIPES = {"bora": Recipe(random)}
NULLS = {"bora": Null(null_cores, bulk)}
NEAREST = {"bora": Projection(nearest, kind="local", limit=longer_side)}
