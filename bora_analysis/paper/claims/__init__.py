"""The checkable claims of the BoRA paper (arXiv 2508.06953), each judged by a computation made on the spot.

No verdict is stored. The function of each claim computes numbers and derives the verdict from them: "holds", "holds
under a condition" (true in some of the cases that the claim covers; the evidence names them) or "erratum". Random
factors come from fixed seeds. Gains in accuracy are percentage points of the Avg columns, as in the paper.

Claims that need a trained adapter are left out: figure 4, and that "the effective rank of BoRA approaches br".
"""

from __future__ import annotations

from functools import partial

import pandas as pd

from .accuracy import (
    best_accuracy,
    best_baseline,
    deviations,
    four_times_fewer,
    granularity,
    mean_gain,
    more_blocks,
    norm_matters_more,
    two_blocks,
    two_to_four,
)
from .common import BORA, LORA32, Claim
from .construction import forward, lora_is_bora, melora_is_bora, row_from_row, three_factors
from .costs import (
    best_blocks,
    count_with_frozen,
    extra_parameters,
    lora_for_rank_br,
    multiply_adds,
    rule_of_thumb,
    sixty_four_blocks,
)
from .rank import bound, full_rank_factors, generic_factors, rank_at_start, slots
from .sigma import exponential, normalisation


def claims() -> pd.DataFrame:
    """Judge every claim.

    Returns
    -------
    DataFrame, one row per claim: ``id``, ``where``, ``claim``, ``verdict``, ``evidence``.

    Raises
    ------
    FileNotFoundError
        The bundled tables of the paper were not installed.

    Examples
    --------
    >>> from bora_analysis.paper.claims import CLAIMS
    >>> [claim.judge().verdict for claim in CLAIMS if claim.id in ("C10", "C11", "C12")]  # three of them
    ['erratum', 'holds', 'holds under a condition']
    """
    rows = [(claim.id, claim.where, claim.text, *claim.judge()) for claim in CLAIMS]
    return pd.DataFrame(rows, columns=["id", "where", "claim", "verdict", "evidence"])


CLAIMS: tuple[Claim, ...] = (
    Claim("C1", "§3.5, fig. 1", "LoRA is BoRA with every Σ_ij = I, for any b", lora_is_bora),
    Claim("C2", "§3.5, fig. 1", "MELoRA is BoRA with Σ_ij = I for i = j and 0 otherwise", melora_is_bora),
    Claim("C3", "eq. 4, eq. 6", "ΔW = B' Σ' A' is the same matrix as ΔW_ij = B_i Σ_ij A_j", three_factors),
    Claim("C4", "eq. 8", "Y_j = B_j Σ_k Σ_jk A_k X_k is ΔW X", forward),
    Claim("C5", "§3.3, eq. 7", "rank(ΔW) ≤ min(m, n, br)", bound),
    Claim(
        "C6",
        "§3.3, App. F",
        "Σ breaks the correlation of the blocks: rank Σ' = Σ_k rank S_k, S_k = [Σ_ij[k]]_ij; r for LoRA, br for "
        "MELoRA and a random σ",
        slots,
    ),
    Claim(
        "C7",
        "§3.3, Prop. 1",
        "the bound is achieved when B', Σ' and A' have full rank",
        full_rank_factors,
    ),
    Claim("C8", "App. F", "random (generic) factors reach the bound, as trained ones typically do", generic_factors),
    Claim("C9", "abstract, §3.3", "b times the rank for only b²r more parameters", extra_parameters),
    Claim("C10", "§3.3", "for rank br LoRA needs (m+n)(b²r) parameters", lora_for_rank_br),
    Claim("C11", "§3.3", "N(b) = R((m+n)/b + b), for rank R = br, is least at b = √(m+n)", best_blocks),
    Claim("C12", "§3.4", "a forward pass takes mn + (m+n)r + b²r FLOPs per token", multiply_adds),
    Claim("C13", "§3.4", "mn + (m+n)r (+ b²r) is also the number of trainable parameters", count_with_frozen),
    Claim("C14", "App. F", "at the start B = 0 and rank(ΔW) = 0, while Σ' and A' have full rank", rank_at_start),
    Claim("C15", "§4.3", "without normalisation most entries of Σ remain close to 1", normalisation),
    Claim("C16", "§3.2", "Exp keeps Σ positive and away from zero", exponential),
    Claim("C17", "§4.4", "with b = 64 BoRA trains approximately 1.6 times LoRA's parameters", sixty_four_blocks),
    Claim("C18", "§1, §5", "2–4 % more accuracy than LoRA at similar parameters", two_to_four),
    Claim("C19", "§3.3", "in practice one can simply set b = ⌊√n⌋", rule_of_thumb),
    Claim(
        "C20",
        "§3.1",
        "if rank(B_1) = r, B_1⁻¹ exists, and B_2 B_1⁻¹ makes the second block row of the first",
        row_from_row,
    ),
    Claim("C21", "§4.2", "GLUE: 2 % over LoRA at the same rank", partial(mean_gain, 1, BORA, "2")),
    Claim(
        "C22",
        "§4.2",
        "GLUE, similar parameters: up to 1 % (Base) and 2 % (Large) over the best baseline",
        best_baseline,
    ),
    Claim("C23", "§4.2", "mathematical reasoning: on average 2.4 % over LoRA", partial(mean_gain, 2, BORA, "2.4")),
    Claim("C24", "§4.2", "four times LoRA's rank gains only 1.9 % there", partial(mean_gain, 2, LORA32, "1.9")),
    Claim("C25", "§4.2", "commonsense reasoning: on average 0.95 % over LoRA", partial(mean_gain, 3, BORA, "0.95")),
    Claim("C26", "§4.2", "four times LoRA's rank gains only 0.77 % there", partial(mean_gain, 3, LORA32, "0.77")),
    Claim("C27", "§4.2", "similar accuracy with more than four times fewer parameters", four_times_fewer),
    Claim("C28", "§4.2", "the best accuracy on GLUE and on commonsense reasoning", best_accuracy),
    Claim("C29", "§4.3", "leaving out the normalisation hurts more than leaving out Exp", norm_matters_more),
    Claim("C30", "§4.4", "BoRA outperforms LoRA at every rank, even with b = 2", two_blocks),
    Claim("C31", "§4.4", "accuracy rises with b, and falls past a threshold where r is large", more_blocks),
    Claim("C32", "§4.4", "BoRA outperforms LoRA whatever the target modules", granularity),
    Claim("C33", "App. C.1", "standard deviations are much smaller than BoRA's gain", deviations),
)
