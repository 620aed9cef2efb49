"""LoRA and rsLoRA, as PEFT and loralib save them; MELoRA and BoRA as their authors do, a LoRA pair with something
beside it."""

from __future__ import annotations

import numpy as np

from ..files.adapter_file import Found, Source, peft_type
from ..projections import Projection, Target, Wish, longer_side
from ..updates.blocks import lora
from ..updates.contract import FactorError, Update
from .bora import bora_loader
from .file_form import Arrays, Form
from .lora_modules import lora_loaders
from .melora import minis_loader
from .pairs import single, sort_keys
from .random_factors import Parts, Recipe, Spec, pair, pair_null


def method_name(source: Source) -> str:
    """rsLoRA differs from LoRA by its scaling alone, but has a name of its own."""
    return "rslora" if any(map(source.is_rslora, source.all_settings or [None])) else "lora"


def read(source: Source) -> Found:
    """LoRA and rsLoRA; MELoRA and BoRA as their authors save them, a LoRA pair with something beside it."""
    parts = sort_keys(source, source.tensors.keys())
    names = {name for pairs in parts.pairs.values() for name in pairs}
    minis = names and all(name.isdecimal() for name in names)
    if minis and (len(names) > 1 or "melora" in (source.method, peft_type(source.config).lower())):
        loaders = {module: minis_loader(source, module, minis) for module, minis in parts.pairs.items()}
        return Found("melora", loaders, parts.passed_over, [])
    pairs = single(source, parts)
    method = method_name(source)
    blocks = {
        module: bora_loader(source, module, {"A": pairs[module].A, "B": pairs[module].B, "sigma": sigma})
        for module, sigma in parts.sigmas.items()
    }
    plain = {module: pair for module, pair in pairs.items() if module not in blocks}
    loaders, notes = lora_loaders(source, plain, method)
    if blocks:
        method = "bora"
        if source.activation is None and "activation" not in (source.config or {}):
            key = next(iter(parts.sigmas.values()))
            notes.append(
                f"{key} is read as BoRA's raw σ (exp-norm); if it is Σ, set activation (--activation) to identity"
            )
    return Found(method, loaders | blocks, parts.passed_over, notes)


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    B, A = pair(spec, rng, m, n)
    return {"B": B, "A": A}


def _form(method: str) -> Form:
    def build(a: Arrays, scaling: float, _: str) -> Update:
        A, B = a["A"], a["B"]
        if A.ndim > 2:  # a convolution, its kernel in A
            if B.shape[2:] != (1,) * (A.ndim - 2):
                raise FactorError(
                    "B", f"has shape {B.shape}; expected (m, r, 1…): A is a convolution of shape {A.shape}"
                )
            A, B = A.reshape(len(A), -1), B.reshape(B.shape[:2])
        return lora(B, A, scaling=scaling, method=method)

    return Form({"A": "lora_A.weight", "B": "lora_B.weight"}, build, lambda a: len(a["A"]))


#: A LoRA on an embedding, in place of the LoRA of a linear layer.
EMBEDDING = Form(
    {"embedding_A": "lora_embedding_A", "embedding_B": "lora_embedding_B"},
    lambda a, scaling, _: lora(a["embedding_B"], a["embedding_A"], scaling=scaling),
    lambda a: len(a["embedding_A"]),
)


def nearest(target: Target, wish: Wish) -> tuple[Parts, float]:
    B, A, captured = target.pair(wish.r)
    return {"B": B, "A": A}, captured


FORMS = {"lora": _form("lora"), "rslora": _form("rslora")}
RECIPES = {"lora": Recipe(random), "rslora": Recipe(random)}
NULLS = dict.fromkeys(("lora", "rslora"), pair_null(lambda sizes: (sizes.m + sizes.n) * sizes.r))
NEAREST = {
    "lora": Projection(nearest, limit=longer_side),
    "rslora": Projection(nearest, same="lora", limit=longer_side),
}
