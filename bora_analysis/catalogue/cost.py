"""The cost of a low-rank adapter from its sizes alone: parameters, multiply-adds, memory, rank bound.

One adapted matrix is W ∈ R^{m×n}, m = out_features, n = in_features.

**Conventions.** ``macs_per_token`` counts multiply-adds for one token beyond the m·n of the frozen layer, as the paper
(BoRA, arXiv 2508.06953, §3.4) does under the name "FLOPs"; :attr:`Cost.flops_per_token` counts two for each. The
scaling α/r, sums, gates' weights, softmax and dropout are not counted. ``macs_per_pass`` counts the work of a forward
pass that is done once for all tokens (DoRA's row norms, ΔW of HiRA). All counts are for an unmerged adapter. A merged
adapter costs nothing; HydraLoRA, MoELoRA and Lily cannot be merged, because their ΔW depends on the tokens.

**Errata of the paper.** §3.3 gives LoRA (m+n)(b²r) parameters at rank br: it is (m+n)·br. §3.4 calls mn + (m+n)r the
number of trainable parameters: mn is frozen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from . import METHODS, Formula, costed, may_pad, names
from .formulas import Cost, Sizes
from .products import PRODUCTS, Products
from .sizes import PADS, check_blocks, listed, padded_bound

__all__ = [
    "BASES", "BYTES", "OPTIMIZERS", "Cost", "Memory", "Products", "cost", "frozen_bytes", "memory", "step_products",
]  # fmt: skip


def cost(
    method: str, m: int, n: int, r: int, *, blocks: int = 1, experts: int | None = None, pad: bool = False
) -> Cost:
    """Cost of one adapted matrix W ∈ R^{m×n}.

    The method's row in :data:`bora_analysis.catalogue.METHODS` has the formulas, in words and as functions. For PEFT's
    methods the parameters equal those of PEFT's ``print_trainable_parameters`` without heads and biases.

    Parameters
    ----------
    method : a name in :func:`bora_analysis.catalogue.costed`.
    m, n : out_features and in_features.
    r : rank of one factor pair, or of one expert. A method without r ignores it.
    blocks : b, minis, k or N of a method that cuts the layer into blocks. It must divide m and n, and for some r.
    experts : K of a method with a router; default as in the catalogue (HydraLoRA's 3 as in BoRA, §4.1).
    pad : BoRA with a b that need not divide m and n, see :func:`bora_analysis.updates.blocks.bora`. What is cut off is
        not trained, so the parameters stay (m+n+b²)r; the rank bound is Σ_i min(p_i, r) of the shorter side.

    Raises
    ------
    ValueError
        Unknown method, a size below 1, b that does not divide m and n, blocks or experts for a method without them, pad
        for another method. The message states the possible values.

    Examples
    --------
    >>> cost("bora", 4096, 4096, 8, blocks=16)
    Cost(parameters=67584, macs_per_token=67584, rank_bound=128, macs_per_pass=0)
    >>> cost("lora", 4096, 4096, 128).parameters  # the same bound
    1048576
    """
    formula, sizes = _checked(method, m, n, r, blocks, experts, pad)
    found = formula.count(sizes)
    return replace(found, rank_bound=padded_bound(m, n, r, blocks)) if pad else found


def step_products(
    method: str, m: int, n: int, r: int, *, blocks: int = 1, experts: int | None = None, pad: bool = False
) -> Products | None:
    """Multiply-adds of the matrix products of a training step, forwards and backwards, as PEFT computes them.

    Unlike :func:`cost`, which counts what the method needs at least, these are the products that the layers of PEFT
    (of :mod:`bora_analysis.peft_methods` for ours) carry out, to the last one, and nothing that goes element by
    element. Parameters and errors as for :func:`cost`; None for a method whose layers are not known that well.

    Examples
    --------
    >>> step_products("lora", 4096, 4096, 8)
    Products(forward=65536, backward=98304, inputs=32768, forward_once=0, backward_once=0, through=False)
    """
    _, sizes = _checked(method, m, n, r, blocks, experts, pad)
    return PRODUCTS[method](sizes) if method in PRODUCTS else None


def _checked(method: str, m: int, n: int, r: int, blocks: int, experts: int | None, pad: bool) -> tuple[Formula, Sizes]:
    row = METHODS.get(method)
    if row is None or row.cost is None:
        raise ValueError(f"method {method!r} is unknown; known: {', '.join(costed())}")
    for name, value in (("m", m), ("n", n), ("r", r)):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")
    if pad and not may_pad(row):
        raise ValueError(f"{method} cannot be padded; methods that can: {listed(names(may_pad))}")
    if row.cut and not pad:
        check_blocks(blocks, [(m, n)], PADS if may_pad(row) else "")
    elif blocks < 1:
        raise ValueError(f"blocks is {blocks}; expected at least 1")
    elif blocks != 1 and not row.staged and not row.cut:
        have = listed(names(lambda row: row.cost and row.cut))
        raise ValueError(f"blocks is {blocks}, but {method} has no blocks; methods with blocks: {have}")
    if row.splits and r % blocks:
        raise ValueError(f"{method} splits r among the blocks: r = {r} is not a multiple of {blocks}")
    if experts is None:
        experts = row.blocks.default if row.experts and row.blocks else 1
    elif not row.experts:
        have = listed(names(lambda row: row.cost and row.experts))
        raise ValueError(f"experts is {experts}, but {method} has no experts; methods with experts: {have}")
    elif experts < 1:
        raise ValueError(f"experts is {experts}; expected at least 1")
    return row.cost, Sizes(m, n, r, blocks, experts)


#: Bytes per number, for the dtypes of training.
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
#: Optimiser → the numbers that it keeps for each trained one.
OPTIMIZERS = {"adamw": 2, "adamw-8bit": 2, "sgd-momentum": 1, "sgd": 0}
#: Numbers of an 8-bit state that share a float32 scale, and the size below which a tensor's state stays as it is, in
#: bitsandbytes and torchao.
STATE_BLOCK, SMALLEST = 256, 4096
#: In which a frozen matrix is kept.
BASES = (*BYTES, "int8", "nf4", "nf4-double")


@dataclass(frozen=True)
class Memory:
    """Bytes for training an adapter, without activations and the frozen model."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def memory(parameters: int, dtype: str = "float32", *, master: bool = False, optimizer: str = "adamw") -> Memory:
    """Memory for training ``parameters`` numbers.

    Parameters
    ----------
    parameters : trained numbers; of one tensor where the optimiser is an 8-bit one and it matters that a small tensor
        (below 4,096 numbers) keeps its state in the dtype of the weights.
    dtype : dtype of weights, gradients and, as in PyTorch's AdamW, the optimiser's state.
    master : keep a float32 copy of the weights and a float32 state in the optimiser, as mixed-precision trainers do
        (with AdamW 16 bytes for a 16-bit weight: ZeRO, arXiv 1910.02054, §3.1).
    optimizer : a name in ``OPTIMIZERS``: AdamW keeps two moments, SGD with momentum one, SGD none; 8-bit AdamW
        (arXiv 2110.02861) keeps a byte for each, and a float32 for every 256 of them.

    Raises
    ------
    ValueError
        Unknown dtype or optimiser; the message lists the known ones.

    Examples
    --------
    >>> memory(1000), memory(1000).total
    (Memory(weights=4000, gradients=4000, optimizer=8000), 16000)
    >>> memory(1000, "bfloat16", master=True)
    Memory(weights=2000, gradients=2000, optimizer=12000)
    >>> memory(2**20, optimizer="adamw-8bit").optimizer / 2**20
    2.03125
    """
    if dtype not in BYTES:
        raise ValueError(f"dtype {dtype!r} is unknown; known: {listed(BYTES)}")
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer {optimizer!r} is unknown; known: {listed(OPTIMIZERS)}")
    size, kept = BYTES[dtype], OPTIMIZERS[optimizer]
    copy = parameters * BYTES["float32"] if master else 0
    if optimizer == "adamw-8bit" and parameters >= SMALLEST:
        state = kept * (parameters + BYTES["float32"] * -(-parameters // STATE_BLOCK))
    else:
        state = kept * parameters * (BYTES["float32"] if master else size)
    return Memory(parameters * size, parameters * size, copy + state)


def frozen_bytes(m: int, n: int, base: str) -> int:
    """Bytes of a frozen matrix W ∈ R^{m×n}, with the constants that a quantised one needs.

    Parameters
    ----------
    base : a name in ``BASES``. ``"int8"``: a byte for each number and a float32 for each row (LLM.int8, arXiv
        2208.07339). ``"nf4"``: half a byte, and a float32 for every 64 numbers (QLoRA, arXiv 2305.14314).
        ``"nf4-double"``: these constants in a byte each, a float32 for every 256 of them, and one for their mean.

    Raises
    ------
    ValueError
        Unknown ``base``; the message lists the known ones.

    Examples
    --------
    >>> [frozen_bytes(4096, 4096, base) / 2**24 for base in ("bfloat16", "nf4")]
    [2.0, 0.5625]
    >>> round(8 * frozen_bytes(4096, 4096, "nf4-double") / 2**24, 3)  # bits, as in §3 of QLoRA
    4.127
    """
    numbers = m * n
    if base in BYTES:
        return numbers * BYTES[base]
    if base == "int8":
        return numbers + 4 * m
    if base not in BASES:
        raise ValueError(f"base {base!r} is unknown; known: {listed(BASES)}")
    constants = -(-numbers // 64)
    half = -(-numbers // 2)
    return half + (constants * 4 if base == "nf4" else constants + 4 * -(-constants // 256) + 4)
