"""How each method that can be written lies in a file, and the update that its tensors are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .. import delta
from ..delta import FactorError, Update
from ..experts import mixed
from . import adalora, gralora, lycoris, sbora
from .tensors import Array

Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Form:
    """The layout of one method.

    Attributes
    ----------
    keys : part → end of its key.
    build : arrays, scaling and BoRA's activation → the update; FactorError where they do not fit.
    rank : arrays → r.
    settings : arrays → what else the configuration says; None stays where modules differ.
    peft_type : of the configuration.
    alpha : its name there.
    """

    keys: Mapping[str, str]
    build: Callable[[Arrays, float, str], Update]
    rank: Callable[[Arrays], int]
    settings: Callable[[Arrays], dict[str, Any]] = lambda _: {}
    peft_type: str = "LORA"
    alpha: str = "lora_alpha"

    def of(self, arrays: Arrays) -> Form:
        """The form of one module: LoRA on an embedding has keys of its own."""
        return _EMBEDDING if self.keys == _PAIR and set(arrays) == set(_EMBEDDING.keys) else self

    def check(self, arrays: Arrays, activation: str) -> None:
        """Build the update once: its constructor says what does not fit."""
        if set(arrays) != set(self.keys):
            raise FactorError("factors", f"are {', '.join(arrays)}; expected {', '.join(self.keys)}")
        self.build(arrays, 1.0, activation)


_PAIR = {"A": "lora_A.weight", "B": "lora_B.weight"}


def _lora(method: str) -> Form:
    def build(a: Arrays, scaling: float, _: str) -> Update:
        A, B = a["A"], a["B"]
        if A.ndim > 2:
            if B.shape[2:] != (1,) * (A.ndim - 2):
                raise FactorError(
                    "B", f"has shape {B.shape}; expected (m, r, 1…): A is a convolution of shape {A.shape}"
                )
            A, B = A.reshape(len(A), -1), B.reshape(B.shape[:2])
        return delta.lora(B, A, scaling=scaling, method=method)

    return Form(_PAIR, build, lambda a: len(a["A"]))


_EMBEDDING = Form(
    {"embedding_A": "lora_embedding_A", "embedding_B": "lora_embedding_B"},
    lambda a, scaling, _: delta.lora(a["embedding_B"], a["embedding_A"], scaling=scaling),
    lambda a: len(a["embedding_A"]),
)


def _melora(a: Arrays, scaling: float, _: str) -> Update:
    for part, array in a.items():
        if array.ndim != 3:
            raise FactorError(part, f"has shape {array.shape}; expected three dimensions, the minis first")
    if a["A"].shape[1] != a["B"].shape[2]:
        raise FactorError("A", "and B differ in r")
    return delta.melora(list(a["B"]), list(a["A"]), scaling=scaling)


def _sbora(variant: str) -> Form:
    side = "B" if variant == "fa" else "A"

    def build(a: Arrays, scaling: float, _: str) -> Update:
        index, size = a["index"], int(a["size"][0])
        dtype = a[side].dtype.name
        return sbora.build(a[side], side=side, index=index, size=size, scaling=scaling, dtype=dtype)

    keys = {part: f"sbora_{part}" for part in (side, "index", "size")}
    return Form(keys, build, lambda a: len(a["index"]), lambda _: {"variant": variant}, "SBORA")


def _hydralora(a: Arrays, scaling: float, _: str) -> Update:
    return mixed(list(a["B"]), [a["A"]], "mean", method="hydralora", scaling=scaling, router=a["route"].size)


def _stored(a: Arrays) -> str:
    return delta.coarsest(array.dtype.name for array in a.values())


FORMS: dict[str, Form] = {
    "lora": _lora("lora"),
    "rslora": _lora("rslora"),
    "melora": Form(
        {"A": "melora_A", "B": "melora_B"},
        _melora,
        lambda a: a["A"].shape[1],
        lambda a: {"num_minis": a["A"].shape[0]},
        "MELORA",
    ),
    "bora": Form(
        {"A": "bora_A", "B": "bora_B", "sigma": "bora_sigma"},
        lambda a, scaling, how: delta.bora(a["B"], a["A"], a["sigma"], scaling=scaling, activation=how),
        lambda a: len(a["A"]),
        lambda a: {"num_blocks": a["sigma"].shape[0]},
        "BORA",
    ),
    "sbora-fa": _sbora("fa"),
    "sbora-fb": _sbora("fb"),
    "hydralora": Form(
        {"A": "hydralora_A", "B": "hydralora_B", "route": "hydralora_route"},
        _hydralora,
        lambda a: len(a["A"]),
        lambda a: {"num_experts": a["B"].shape[0]},
        "HYDRALORA",
    ),
    "adalora": Form(
        {"A": "lora_A", "B": "lora_B", "E": "lora_E"},
        # PEFT adds 1e-5 to the r that it divides by.
        lambda a, s, _: adalora.build(
            a["B"], a["E"], a["A"], scaling=s * len(a["E"]) / (len(a["E"]) + 1e-5), dtype=_stored(a)
        ),
        lambda a: len(a["E"]),
        lambda a: {"init_r": len(a["E"]), "target_r": len(a["E"]), "total_step": 1},
        "ADALORA",
    ),
    "loha": Form(
        {part: f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b")},
        lambda a, s, _: lycoris.build_loha(**a, scaling=s, dtype=_stored(a)),  # pyright: ignore[reportCallIssue]
        lambda a: len(a["w1_b"]),
        peft_type="LOHA",
        alpha="alpha",
    ),
    "lokr": Form(
        {part: f"lokr_{part}" for part in ("w1", "w2_a", "w2_b")},
        lambda a, s, _: lycoris.build_lokr(**a, r=len(a["w2_b"]), scaling=s, dtype=_stored(a)),
        lambda a: len(a["w2_b"]),
        peft_type="LOKR",
        alpha="alpha",
    ),
    "gralora": Form(
        {"A": "gralora_A", "B": "gralora_B"},
        lambda a, s, _: gralora.build(a["A"], a["B"], scaling=s, dtype=_stored(a)),
        lambda a: a["A"].shape[2],
        lambda a: {"gralora_k": a["A"].shape[0], "hybrid_r": 0},
        "GRALORA",
        "alpha",
    ),
}
