"""Random adapters from a seed, in the same form as trained ones.

Three kinds:

* ``"init"``: as the method starts training: A and σ Kaiming-uniform (a = √5), B = 0, so ΔW = 0.
* ``"gaussian"``: independent normal factors: a flat spectrum, the shape that training has not touched.
* ``"decay"``: orthonormal factors with slot k scaled by k^−p. For LoRA and MELoRA the singular values are exactly
  scaling · scale · k^−p; for BoRA they are those times the singular values of the S_k (if r ≤ m/b and r ≤ n/b).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from zlib import crc32

import numpy as np

from .adapters import Adapter, write_adapter
from .delta import Array, FactorError, Update, bora, check_blocks, lora, melora

METHODS = ("lora", "rslora", "melora", "bora")
KINDS = ("init", "gaussian", "decay")


@dataclass(frozen=True)
class Synthetic(Mapping[str, dict[str, Array]]):
    """Module → its raw tensors, made when asked for, so that any size streams.

    Attributes
    ----------
    method : one of ``METHODS``.
    shapes : module path → (out_features, in_features).
    r : rank of one factor pair. blocks : b of BoRA, the number of minis of MELoRA; 1 for LoRA.
    alpha : α; default 2r as in the paper (Appendix B). The scaling is α/r, α/√r for rsLoRA.
    kind : one of ``KINDS``. seed : a module's numbers depend on it and on the module's path alone.
    scale : size of ΔW's largest singular values before the scaling. decay : p of kind ``"decay"``.
    """

    method: str
    shapes: Mapping[str, tuple[int, int]]
    r: int
    blocks: int = 1
    alpha: float | None = None
    kind: str = "gaussian"
    seed: int = 0
    scale: float = 0.1
    decay: float = 1.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method {self.method!r} is unknown; expected one of {', '.join(METHODS)}")
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} is unknown; expected one of {', '.join(KINDS)}")
        if self.method in ("lora", "rslora") and self.blocks != 1:
            raise ValueError(f"{self.method} has one block; got blocks = {self.blocks}")
        if self.r < 1 or self.blocks < 1 or self.seed < 0 or not self.shapes:
            raise ValueError(
                f"got r = {self.r}, blocks = {self.blocks}, seed = {self.seed}, {len(self.shapes)} modules; expected "
                "r ≥ 1, blocks ≥ 1, seed ≥ 0, at least one module"
            )
        for module, (m, n) in self.shapes.items():
            try:
                check_blocks(self.blocks, m, n)
            except FactorError as error:
                raise ValueError(f"{module}: {error}") from None

    @property
    def lora_alpha(self) -> float:
        return 2.0 * self.r if self.alpha is None else float(self.alpha)

    @property
    def scaling(self) -> float:
        return self.lora_alpha / (math.sqrt(self.r) if self.method == "rslora" else self.r)

    def __len__(self) -> int:
        return len(self.shapes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __getitem__(self, module: str) -> dict[str, Array]:
        """float32 tensors: ``A`` and ``B``, for BoRA ``sigma`` too; MELoRA's have a leading axis of minis."""
        m, n = self.shapes[module]
        rng = np.random.default_rng([self.seed, crc32(module.encode())])
        if self.method == "melora":
            minis = [self._pair(rng, m // self.blocks, n // self.blocks) for _ in range(self.blocks)]
            return {"B": np.stack([B for B, _ in minis]), "A": np.stack([A for _, A in minis])}
        if self.method != "bora":
            B, A = self._pair(rng, m, n)
            return {"B": B, "A": A}
        if self.kind == "decay":  # each block orthonormal, so that σ(ΔW) = σ(Σ') up to the slots' scales
            pairs = [self._pair(rng, m // self.blocks, n // self.blocks) for _ in range(self.blocks)]
            B, A = np.concatenate([B for B, _ in pairs]), np.concatenate([A for _, A in pairs], axis=1)
        else:
            B, A = self._pair(rng, m, n)
        bound = 1 / math.sqrt(self.blocks * self.r)  # Kaiming-uniform with a = √5; fan-in of a (b, b, r) tensor is b·r
        sigma = rng.uniform(-bound, bound, (self.blocks, self.blocks, self.r)).astype(np.float32)
        return {"B": B, "A": A, "sigma": sigma}

    def _pair(self, rng: np.random.Generator, m: int, n: int) -> tuple[Array, Array]:
        r, size = self.r, math.sqrt(self.scale)
        if self.kind == "init":
            bound = 1 / math.sqrt(n)
            return np.zeros((m, r), np.float32), rng.uniform(-bound, bound, (r, n)).astype(np.float32)
        B = rng.standard_normal((m, r), dtype=np.float32)
        A = rng.standard_normal((r, n), dtype=np.float32)
        if self.kind == "gaussian":
            return B * np.float32(size / math.sqrt(m)), A * np.float32(size / math.sqrt(n))
        slots = np.arange(1, r + 1) ** (-self.decay / 2)
        return (
            (_orthonormal(B) * (size * slots)).astype(np.float32),
            (_orthonormal(A.T) * (size * slots)).T.astype(np.float32),
        )


def synthetic_adapter(
    method: str,
    shapes: Mapping[str, tuple[int, int]],
    r: int,
    blocks: int = 1,
    *,
    alpha: float | None = None,
    kind: str = "gaussian",
    seed: int = 0,
    scale: float = 0.1,
    decay: float = 1.0,
    activation: str = "exp-norm",
    name: str | None = None,
) -> Adapter:
    """A synthetic adapter in memory, as :func:`read_adapter` would give it. Parameters as in :class:`Synthetic`.

    Raises
    ------
    ValueError
        Unknown method or kind, sizes that do not fit.

    Examples
    --------
    >>> from bora_analysis import singular_values, synthetic_adapter
    >>> adapter = synthetic_adapter("lora", {"layers.0.q_proj": (64, 32)}, r=4, kind="decay", scale=1.0)
    >>> singular_values(adapter["layers.0.q_proj"]).values.round(6).tolist()
    [2.0, 1.0, 0.666667, 0.5]
    """
    raw = Synthetic(method, shapes, r, blocks, alpha, kind, seed, scale, decay)

    def load(module: str) -> Update:
        tensors = raw[module]
        if method == "melora":
            return melora(list(tensors["B"]), list(tensors["A"]), scaling=raw.scaling)
        if method == "bora":
            return bora(tensors["B"], tensors["A"], tensors["sigma"], scaling=raw.scaling, activation=activation)
        return lora(tensors["B"], tensors["A"], scaling=raw.scaling, method=method)

    title = name or f"{method}-r{r}" + (f"-b{blocks}" if blocks > 1 else "")
    return Adapter(title, method, None, None, {module: partial(load, module) for module in shapes})


def write_synthetic(
    folder: str | Path, raw: Synthetic, *, activation: str = "exp-norm", dtype: str = "float32"
) -> Path:
    """Write a synthetic adapter in the format of a trained one; its config says how it was made."""
    made = {key: getattr(raw, key) for key in ("kind", "seed", "scale", "decay")}
    return write_adapter(
        folder,
        raw.method,
        raw,
        alpha=raw.lora_alpha,
        activation=activation,
        rslora=raw.method == "rslora",
        dtype=dtype,
        extra_config={"bora_analysis_synthetic": made},
    )


def _orthonormal(X: Array) -> Array:
    """Orthonormal columns (rows, where there are more columns than rows), float64."""
    tall = X.shape[0] >= X.shape[1]
    Q = np.linalg.qr(X.astype(np.float64) if tall else X.T.astype(np.float64)).Q
    return Q if tall else Q.T
