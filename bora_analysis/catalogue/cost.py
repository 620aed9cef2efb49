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

from dataclasses import dataclass

from . import METHODS, costed, names
from .formulas import Cost, Sizes
from .sizes import check_blocks, listed

__all__ = ["BYTES", "Cost", "Memory", "cost", "memory"]


def cost(method: str, m: int, n: int, r: int, *, blocks: int = 1, experts: int | None = None) -> Cost:
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

    Raises
    ------
    ValueError
        Unknown method, a size below 1, b that does not divide m and n, blocks or experts for a method without them.
        The message states the possible values.

    Examples
    --------
    >>> cost("bora", 4096, 4096, 8, blocks=16)
    Cost(parameters=67584, macs_per_token=67584, rank_bound=128, macs_per_pass=0)
    >>> cost("lora", 4096, 4096, 128).parameters  # the same bound
    1048576
    """
    row = METHODS.get(method)
    if row is None or row.cost is None:
        raise ValueError(f"method {method!r} is unknown; known: {', '.join(costed())}")
    for name, value in (("m", m), ("n", n), ("r", r)):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")
    if row.cut:
        check_blocks(blocks, [(m, n)])
    elif blocks != 1:
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
    return row.cost.count(Sizes(m, n, r, blocks, experts))


#: Bytes per number, for the dtypes of training.
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Memory:
    """Bytes for training an adapter, without activations and the frozen model."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def memory(parameters: int, dtype: str = "float32", *, master: bool = False) -> Memory:
    """Memory for training ``parameters`` numbers with AdamW.

    Parameters
    ----------
    parameters : trained numbers.
    dtype : dtype of weights, gradients and, as in PyTorch's AdamW, the two moments.
    master : keep a float32 copy of the weights and float32 moments in the optimizer, as mixed-precision trainers do
        (16 bytes for a 16-bit weight: ZeRO, arXiv 1910.02054, §3.1).

    Raises
    ------
    ValueError
        Unknown dtype; the message lists the known ones.

    Examples
    --------
    >>> memory(1000), memory(1000).total
    (Memory(weights=4000, gradients=4000, optimizer=8000), 16000)
    >>> memory(1000, "bfloat16", master=True)
    Memory(weights=2000, gradients=2000, optimizer=12000)
    """
    if dtype not in BYTES:
        raise ValueError(f"dtype {dtype!r} is unknown; known: {listed(BYTES)}")
    size = BYTES[dtype]
    state = 3 * BYTES["float32"] if master else 2 * size
    return Memory(parameters * size, parameters * size, parameters * state)
