"""How each method that can be written lies in a file, and the update that its tensors are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import delta
from ..delta import FactorError, Update
from ..experts import mixed
from ..structures import c3a
from . import adalora, bdlora, delora, gralora, lycoris, miss, sbora, sparse, vblora, vera
from .tensors import Array

Arrays = Mapping[str, Array]
Settings = Mapping[str, Mapping[str, Any]]  # module → what the configuration should say of it


def same(settings: Settings) -> dict[str, Any]:
    """The settings that all modules share; None stays where they differ."""
    names = dict.fromkeys(name for own in settings.values() for name in own)
    values = {name: [own.get(name) for own in settings.values()] for name in names}
    return {name: all_of[0] if all(v == all_of[0] for v in all_of) else None for name, all_of in values.items()}


def exactly(module: str) -> str:
    """The pattern, for PEFT's rule, of one module."""
    return f"^{re.escape(module)}"


def _patterned(name: str) -> Callable[[Settings], dict[str, Any]]:
    """The commonest value, and the paths of the modules that differ from it.

    PEFT's C³A and FourierFT look for whole paths, other than :func:`exactly` suits.
    """

    def config(settings: Settings) -> dict[str, Any]:
        usual = Counter(own[name] for own in settings.values()).most_common(1)[0][0]
        others = {module: own[name] for module, own in settings.items() if own[name] != usual}
        return same(settings) | {name: usual, f"{name}_pattern": others}

    return config


@dataclass(frozen=True)
class Form:
    """The layout of one method.

    Attributes
    ----------
    keys : part → end of its key; with ``{k}`` in it the part has a leading axis of experts, each a tensor of its own.
    build : arrays, scaling and BoRA's activation → the update; FactorError where they do not fit.
    rank : arrays → r; None for a method that has none.
    settings : arrays → what else the configuration says of a module.
    config : those of all modules → what the configuration says.
    peft_type : of the configuration.
    alpha : its name there; None for a method without α, whose scaling is 1.
    shared : part → key of a tensor that all modules have in common and that is stored once.
    told : parts that are no tensors: ``shape``, (m, n), goes into the configuration, because no tensor of the method
        tells it; ``settings`` sees to others.
    """

    keys: Mapping[str, str]
    build: Callable[[Arrays, float, str], Update]
    rank: Callable[[Arrays], int] | None
    settings: Callable[[Arrays], dict[str, Any]] = lambda _: {}
    peft_type: str = "LORA"
    alpha: str | None = "lora_alpha"
    config: Callable[[Settings], dict[str, Any]] = same
    shared: Mapping[str, str] = field(default_factory=dict)
    told: tuple[str, ...] = ()

    def check(self, arrays: Arrays, activation: str) -> None:
        """Build the update once: its constructor says what does not fit."""
        parts = [*self.keys, *self.shared, *self.told]
        if set(arrays) != set(parts):
            raise FactorError("factors", f"are {', '.join(arrays)}; expected {', '.join(parts)}")
        try:
            self.build(arrays, 1.0, activation)
        except FactorError:
            raise
        except (ValueError, IndexError):  # a reader looks at the shapes before it builds
            shapes = ", ".join(f"{part} {array.shape}" for part, array in arrays.items())
            raise FactorError("factors", f"do not fit together: {shapes}") from None


def _columns(array: Array) -> int:
    return array.shape[-2]


def _lora(method: str) -> Form:
    def build(a: Arrays, scaling: float, _: str) -> Update:
        A, B = a["A"], a["B"]
        if A.ndim > 2:  # a convolution, its kernel in A
            if B.shape[2:] != (1,) * (A.ndim - 2):
                raise FactorError(
                    "B", f"has shape {B.shape}; expected (m, r, 1…): A is a convolution of shape {A.shape}"
                )
            A, B = A.reshape(len(A), -1), B.reshape(B.shape[:2])
        return delta.lora(B, A, scaling=scaling, method=method)

    return Form({"A": "lora_A.weight", "B": "lora_B.weight"}, build, lambda a: len(a["A"]))


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


def _size(a: Arrays, part: str, axis: int) -> tuple[int, int]:
    """(m, n) of ``shape``; the named part's axis must be m."""
    m, n = a["shape"].tolist()
    if a[part].shape[axis] != m:
        raise FactorError(part, f"has shape {a[part].shape}; expected m = {m} as in shape")
    return m, n


def _vera(a: Arrays, _: float, __: str) -> Update:
    _, n = _size(a, "lambda_b", 0)
    dtype = delta.coarsest(a[part].dtype.name for part in ("lambda_b", "lambda_d"))
    return vera.build(a["lambda_b"], a["lambda_d"], a["A"], a["B"], n=n, kind="vera", dtype=dtype)


def _vblora(a: Arrays, _: float, __: str) -> Update:
    (r, _, h), (_, columns, other) = a["A"].shape, a["B"].shape
    if columns != r or not h == other == len(a["bank"]):
        raise FactorError("B", f"has shape {a['B'].shape}; expected (m/v, {r}, {len(a['bank'])}) from A and the bank")
    dtype = delta.coarsest(a[part].dtype.name for part in "AB")
    return vblora.build([a["A"]], [a["B"]], a["bank"].astype(np.float64), topk=vblora.TOPK, dtype=dtype)


def _miss(a: Arrays, _: float, __: str) -> Update:
    _, n = _size(a, "block", 1)
    return miss.build(a["block"], repeats=1, n=n, dtype=a["block"].dtype.name)


def _bdlora(side: str) -> Form:
    """``side`` is that of the block-diagonal factor."""

    def build(a: Arrays, scaling: float, _: str) -> Update:
        cut, count = {"A": side == "A", "B": side == "B"}, int(a["nblocks"][0])
        return bdlora.build(a["B"], a["A"], cut=cut, count=count, scaling=scaling, dtype=_stored(a))

    def config(settings: Settings) -> dict[str, Any]:
        lists = {f"target_modules_bd_{name}": list(settings) if name == side.lower() else [] for name in "ab"}
        return {"use_bdlora": same(settings) | lists}

    keys = {"A": "lora_A.weight", "B": "lora_B.weight"}
    told = ("nblocks",)
    return Form(
        keys, build, lambda a: len(a["A"]), lambda a: {"nblocks": int(a["nblocks"][0])}, config=config, told=told
    )


def _moelora(a: Arrays, scaling: float, _: str) -> Update:
    return mixed(list(a["B"]), list(a["A"]), "mean", method="moelora", scaling=scaling, router=a["gate"].size)


def _hydralora(a: Arrays, scaling: float, _: str) -> Update:
    return mixed(list(a["B"]), [a["A"]], "mean", method="hydralora", scaling=scaling, router=a["route"].size)


#: A LoRA on an embedding, in place of the LoRA of a linear layer.
EMBEDDING = Form(
    {"embedding_A": "lora_embedding_A", "embedding_B": "lora_embedding_B"},
    lambda a, scaling, _: delta.lora(a["embedding_B"], a["embedding_A"], scaling=scaling),
    lambda a: len(a["embedding_A"]),
)


def _stored(a: Arrays) -> str:
    return delta.coarsest(array.dtype.name for array in a.values() if array.dtype.kind == "f")


FORMS: dict[str, Form] = {
    "lora": _lora("lora"),
    "rslora": _lora("rslora"),
    "melora": Form(
        {"A": "melora_A", "B": "melora_B"},
        _melora,
        lambda a: _columns(a["A"]),
        lambda a: {"num_minis": a["A"].shape[0]},
        "MELORA",
    ),
    "bora": Form(
        {"A": "bora_A", "B": "bora_B", "sigma": "bora_sigma"},
        lambda a, scaling, how: delta.bora(a["B"], a["A"], a["sigma"], scaling=scaling, activation=how),
        lambda a: _columns(a["A"]),
        lambda a: {"num_blocks": a["sigma"].shape[0]},
        "BORA",
    ),
    "sbora-fa": _sbora("fa"),
    "sbora-fb": _sbora("fb"),
    "hydralora": Form(
        {"A": "hydralora_A", "B": "hydralora_B", "route": "hydralora_route"},
        _hydralora,
        lambda a: _columns(a["A"]),
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
    "krona": Form(  # LoKr with both factors whole; PEFT keeps w2 so from r = max(u, v) / 2 on
        {part: f"lokr_{part}" for part in ("w1", "w2")},
        lambda a, s, _: lycoris.build_lokr(**a, r=max(a["w2"].shape), scaling=s, dtype=_stored(a)),
        lambda a: max(a["w2"].shape),
        peft_type="LOKR",
        alpha="alpha",
    ),
    "delora": Form(
        {"A": "delora_A", "B": "delora_B", "bound": "delora_lambda", "norm": "delora_w_norm"},
        lambda a, _, __: delora.build(**a, dtype=_stored(a)),
        lambda a: len(a["A"]),
        peft_type="DELORA",
        alpha=None,
    ),
    "vera": Form(
        {part: f"vera_{part}" for part in ("lambda_b", "lambda_d")},
        _vera,
        lambda a: len(a["lambda_d"]),
        lambda _: {"save_projection": True},
        "VERA",
        None,
        shared={"A": "base_model.vera_A", "B": "base_model.vera_B"},
        told=("shape",),
    ),
    "vblora": Form(
        {"A": "vblora_logits_A", "B": "vblora_logits_B"},
        _vblora,
        lambda a: len(a["A"]),
        lambda a: {"num_vectors": len(a["bank"]), "vector_length": a["bank"].shape[1], "topk": vblora.TOPK},
        "VBLORA",
        None,
        shared={"bank": "base_model.vblora_vector_bank"},
    ),
    "miss": Form(
        {"block": "miss_block"},
        _miss,
        lambda a: len(a["block"]),
        lambda _: {"init_weights": True},
        "MISS",
        None,
        told=("shape",),
    ),
    "c3a": Form(
        {"kernel": "c3a_kernel"},
        lambda a, _, __: c3a(a["kernel"]),
        None,
        lambda a: {"block_size": a["kernel"].shape[2]},
        "C3A",
        None,
        _patterned("block_size"),
    ),
    "fourierft": Form(
        {"spectrum": "fourierft_spectrum"},
        lambda a, _, __: sparse.build_fourierft(
            a["spectrum"],
            size=tuple(a["shape"].tolist()),
            seed=sparse.SEED,
            scaling=sparse.SCALING,
            dtype=a["spectrum"].dtype.name,
        ),
        None,
        lambda a: {"n_frequency": len(a["spectrum"]), "scaling": sparse.SCALING, "random_loc_seed": sparse.SEED},
        "FOURIERFT",
        None,
        _patterned("n_frequency"),
        told=("shape",),
    ),
    "bdlora-a": _bdlora("A"),
    "bdlora-b": _bdlora("B"),
    "moelora": Form(  # the layout of its authors; the gate sees the layer's input
        {"A": "lora_A.loraA.{k}.mlp.weight", "B": "lora_B.loraB.{k}.mlp.weight", "gate": "lora_gate.GateL.weight"},
        _moelora,
        lambda a: a["A"].shape[0] * a["A"].shape[1],
        lambda a: {"expert_num": a["A"].shape[0]},
        "MMOELORAS",
    ),
}
