"""Random adapters from a seed, in the same form as trained ones.

Three kinds:

* ``"init"``: as the method starts training: A and σ Kaiming-uniform (a = √5), B = 0, so ΔW = 0.
* ``"gaussian"``: independent normal factors: a flat spectrum, the shape that training has not touched.
* ``"decay"``: orthonormal factors with slot k scaled by k^−p. For LoRA and MELoRA the singular values are exactly
  scaling · scale · k^−p (LoKr: each as often as w1 has them, SBoRA: the roots of scale and k^−p, AdaLoRA: 10⁻⁵/r less);
  for BoRA they are those times the singular values of the S_k (if r ≤ m/b and r ≤ n/b), for the others they only fall.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from zlib import crc32

import numpy as np

from .adapters import Adapter, write_adapter
from .adapters.forms import FORMS
from .cost import kronecker_factors
from .delta import Array, FactorError, Update, check_blocks

METHODS = tuple(FORMS)
#: What ``blocks`` is: b, minis, experts, and k of the k × k blocks.
BLOCK_METHODS = ("melora", "bora", "hydralora", "gralora")
KINDS = ("init", "gaussian", "decay")


@dataclass(frozen=True)
class Synthetic(Mapping[str, dict[str, Array]]):
    """Module → its raw tensors, made when asked for, so that any size streams.

    Attributes
    ----------
    method : one of ``METHODS``.
    shapes : module path → (out_features, in_features).
    r : rank of one factor pair. blocks : b of BoRA, the number of minis of MELoRA, of experts of HydraLoRA, k of
        GraLoRA; 1 for the others.
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
        if self.method not in BLOCK_METHODS and self.blocks != 1:
            raise ValueError(f"{self.method} has one block; got blocks = {self.blocks}")
        if self.r < 1 or self.blocks < 1 or self.seed < 0 or not self.shapes:
            raise ValueError(
                f"got r = {self.r}, blocks = {self.blocks}, seed = {self.seed}, {len(self.shapes)} modules; expected "
                "r ≥ 1, blocks ≥ 1, seed ≥ 0, at least one module"
            )
        if self.method == "gralora" and self.r % self.blocks:
            raise ValueError(f"gralora gives each block the rank r/k; got r = {self.r}, k = {self.blocks}")
        for module, (m, n) in self.shapes.items():
            try:
                if self.method != "hydralora":
                    check_blocks(self.blocks, m, n)
            except FactorError as error:
                raise ValueError(f"{module}: {error}") from None
            u, v = kronecker_factors(m)[1], kronecker_factors(n)[1]
            # From max(u, v) / 2 on PEFT keeps w2 whole.
            most = {"sbora-fa": n, "sbora-fb": m, "lokr": min(u, v, (max(u, v) - 1) // 2)}
            if self.r > most.get(self.method, self.r):
                raise ValueError(f"{module}: got r = {self.r}; expected up to {most[self.method]} for {self.method}")

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
        if self.method in _OTHERS:
            return _OTHERS[self.method](self, rng, m, n)
        if self.method == "melora":
            minis = [self.pair(rng, m // self.blocks, n // self.blocks) for _ in range(self.blocks)]
            return {"B": np.stack([B for B, _ in minis]), "A": np.stack([A for _, A in minis])}
        if self.method != "bora":
            B, A = self.pair(rng, m, n)
            return {"B": B, "A": A}
        if self.kind == "decay":  # each block orthonormal, so that σ(ΔW) = σ(Σ') up to the slots' scales
            pairs = [self.pair(rng, m // self.blocks, n // self.blocks) for _ in range(self.blocks)]
            B, A = np.concatenate([B for B, _ in pairs]), np.concatenate([A for _, A in pairs], axis=1)
        else:
            B, A = self.pair(rng, m, n)
        bound = 1 / math.sqrt(self.blocks * self.r)  # Kaiming-uniform with a = √5; fan-in of a (b, b, r) tensor is b·r
        sigma = rng.uniform(-bound, bound, (self.blocks, self.blocks, self.r)).astype(np.float32)
        return {"B": B, "A": A, "sigma": sigma}

    def pair(self, rng: np.random.Generator, m: int, n: int) -> tuple[Array, Array]:
        """B (m, r) and A (r, n) of the kind."""
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


def _adalora(raw: Synthetic, rng: np.random.Generator, m: int, n: int) -> dict[str, Array]:
    """PEFT starts with normal factors (0.02) and E = 0."""
    if raw.kind == "init":
        B, A = (0.02 * rng.standard_normal(shape, dtype=np.float32) for shape in ((m, raw.r), (raw.r, n)))
        return {"B": B, "A": A, "E": np.zeros((raw.r, 1), np.float32)}
    B, A = raw.pair(rng, m, n)
    return {"B": B, "A": A, "E": np.ones((raw.r, 1), np.float32)}


def _sbora(raw: Synthetic, rng: np.random.Generator, m: int, n: int) -> dict[str, Array]:
    """One factor, and different indices at random for the other."""
    B, A = raw.pair(rng, m, n)
    side, factor, size = ("B", B, n) if raw.method == "sbora-fa" else ("A", A, m)
    if raw.kind == "init":  # the trained factor starts at zero, or ΔW would not
        factor = np.zeros_like(factor)
    return {side: factor, "index": np.sort(rng.choice(size, raw.r, replace=False)), "size": np.array([size])}


def _hydralora(raw: Synthetic, rng: np.random.Generator, m: int, n: int) -> dict[str, Array]:
    pairs = [raw.pair(rng, m, n) for _ in range(raw.blocks)]
    bound = 1 / math.sqrt(n)
    route = rng.uniform(-bound, bound, (raw.blocks, n)).astype(np.float32)
    return {"A": pairs[0][1], "B": np.stack([B for B, _ in pairs]), "route": route}


def _loha(raw: Synthetic, rng: np.random.Generator, m: int, n: int) -> dict[str, Array]:
    """Entries of the second product are about 1, so that the update has the size of the first."""
    first, second = raw.pair(rng, m, n), (rng.standard_normal((m, raw.r)), rng.standard_normal((raw.r, n)))
    w2_a, w2_b = (factor.astype(np.float32) / np.float32(raw.r**0.25) for factor in second)
    return {"w1_a": first[0], "w1_b": first[1], "w2_a": w2_a, "w2_b": w2_b}


def _lokr(raw: Synthetic, rng: np.random.Generator, m: int, n: int) -> dict[str, Array]:
    """w1 orthonormal, so that each singular value of w2 appears once for each of its own."""
    (p, u), (q, v) = kronecker_factors(m), kronecker_factors(n)
    w2_a, w2_b = raw.pair(rng, u, v)
    return {"w1": _orthonormal(rng.standard_normal((p, q))).astype(np.float32), "w2_a": w2_a, "w2_b": w2_b}


def _gralora(raw: Synthetic, rng: np.random.Generator, m: int, n: int) -> dict[str, Array]:
    k = raw.blocks
    pairs = [raw.pair(rng, m // k, n // k) for _ in range(k)]
    return {"A": np.stack([A.T for _, A in pairs]), "B": np.stack([B.T for B, _ in pairs])}


_OTHERS: dict[str, Callable[[Synthetic, np.random.Generator, int, int], dict[str, Array]]] = {
    "adalora": _adalora,
    "sbora-fa": _sbora,
    "sbora-fb": _sbora,
    "hydralora": _hydralora,
    "loha": _loha,
    "lokr": _lokr,
    "gralora": _gralora,
}


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
        return FORMS[method].build(raw[module], raw.scaling, activation)

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
