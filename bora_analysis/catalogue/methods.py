"""The methods, one row each: name, look, files, blocks, cost. Every list of methods is derived from these rows.

The row names the file with the method's code, which reads, writes and makes random factors (see
:mod:`bora_analysis.methods`). A new method needs one row and one file; :func:`bora_analysis.catalogue.register` adds
the row of a method from another package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import formulas as f
from .palette import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION


@dataclass(frozen=True)
class Blocks:
    """The blocks of a method.

    Attributes
    ----------
    word : name of one block: ``"block"``, ``"mini"``, ``"expert"`` …
    default : number of blocks of a random adapter.
    divides : whether the number must divide m and n. splits : whether it must also divide r.
    trained : default number for ``train`` (as in BoRA, arXiv 2508.06953, §4.1); None: ``default``.
    """

    word: str
    default: int
    divides: bool = True
    splits: bool = False
    trained: int | None = None


@dataclass(frozen=True)
class Training:
    """How ``train`` configures a method.

    Attributes
    ----------
    config : module and class of the configuration.
    fixed : settings of the configuration that select this method.
    passed : further settings of the configuration → the :class:`bora_analysis.training.Settings` they come from.
    """

    config: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    passed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Formula:
    """The cost of one adapted matrix, as a function and in words.

    Attributes
    ----------
    count : sizes → cost.
    parameters, macs, bound : the same in words, for one W ∈ R^{m×n}.
    note : assumptions of the formula. beside : remark to print wherever the parameters are shown.
    any_rank : whether r may exceed the full rank of the matrix.
    """

    count: Callable[[f.Sizes], f.Cost]
    parameters: str
    bound: str
    macs: str = "the same"
    note: str = ""
    beside: str = ""
    any_rank: bool = False


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes
    ----------
    name : in tables, in ``--method``, in Python.
    label, colour, marker : in figures and text; every method has its own pair of colour and marker. ``marker`` is in
        matplotlib's letters.
    module : the file with its code, relative to :mod:`bora_analysis.methods`; empty for a method whose files are those
        of another method (LoRA+ has LoRA's).
    peft_types : possible values of ``peft_type`` in its files; the first one is written.
    update, core : ΔW, and the smallest matrix with its singular values, in words.
    paper : its source.
    blocks : None for a method without blocks.
    ranked, scaled : whether it has an r, and an α.
    cost : None for a method of unknown cost.
    listed : False for a special case of another method; ``all`` leaves it out.
    made : whether its adapters can be written and made at random.
    training : None for a method that ``train`` does not accept.
    needs_base : whether ΔW depends on the base model's weights.
    initialises : beginning of PEFT's ``init_lora_weights``, for a method that changes the base model at the start.
    """

    name: str
    label: str
    colour: str
    marker: str
    module: str = ""
    peft_types: tuple[str, ...] = ()
    update: str = ""
    core: str = ""
    paper: str = ""
    blocks: Blocks | None = None
    ranked: bool = True
    scaled: bool = True
    cost: Formula | None = None
    listed: bool = True
    made: bool = False
    training: Training | None = None
    needs_base: bool = False
    initialises: str = ""

    @property
    def experts(self) -> bool:
        """Whether its blocks are experts, which a router mixes."""
        return self.blocks is not None and self.blocks.word == "expert"

    @property
    def cut(self) -> bool:
        """Whether it cuts the layer into blocks."""
        return self.blocks is not None and not self.experts

    @property
    def splits(self) -> bool:
        """Whether its blocks split r."""
        return self.blocks is not None and self.blocks.splits


LORA = Formula(f.lora, "(m+n)r", "min(m, n, r)")
CORE = "r×r"
OURS = "bora_analysis.peft_methods."
THROUGH = "ΔW"  # there is no smaller core

#: Name → row, in the order of menus. No method is yellow, which is hard to see on white paper.
METHODS: dict[str, Method] = {row.name: row for row in (
    Method(
        "lora", "LoRA", BLUE, "o", ".lora", ("LORA",), "s B A", CORE, "arXiv 2106.09685", cost=LORA,
        made=True, training=Training("peft.LoraConfig"),
    ),
    Method(
        "rslora", "rsLoRA", SKY, ">", ".lora", ("LORA",), "s B A, s = α/√r", CORE, "arXiv 2312.03732", cost=LORA,
        made=True,
    ),
    Method(
        "lora+", "LoRA+", SKY, "P", update="s B A; B has a higher learning rate, file and update are LoRA's", core=CORE,
        paper="arXiv 2402.12354", cost=LORA, listed=False,
    ),
    Method(
        "melora", "MELoRA", ORANGE, "s", ".melora", ("MELORA",), "blkdiag(s B₁ A₁, …, s B_N A_N)", "r×r, N times",
        "arXiv 2402.17263", Blocks("mini", 8, trained=4), cost=Formula(f.melora, "(m+n)r", "min(m, n, br)"),
        made=True, training=Training(OURS + "MeloraConfig", passed={"num_minis": "blocks"}),
    ),
    Method(
        "bora", "BoRA", VERMILLION, "D", ".bora", ("BORA",), "s B_i Σ_ij A_j in b×b blocks", "br×br",
        "arXiv 2508.06953", Blocks("block", 8, trained=16), cost=Formula(f.bora, "(m+n+b²)r", "min(m, n, br)"),
        made=True, training=Training(OURS + "BoraConfig", passed={"num_blocks": "blocks", "activation": "activation"}),
    ),
    Method(
        "dora", "DoRA", SKY, "^", ".dora", ("DORA",), "diag(g / ‖V‖_row) V − W0, V = W0 + s B A", THROUGH,
        "arXiv 2402.09353", training=Training("peft.LoraConfig", {"use_dora": True}), needs_base=True,
        cost=Formula(
            f.dora, "(m+n)r + m", "min(m, n)",
            note="The bound is for ΔW = W' − W with a full-rank W. W + sBA is formed once per pass.",
        ),
    ),
    Method(
        "hydralora", "HydraLoRA", PURPLE, "h", ".hydralora", ("HYDRALORA",), "Σ_k w_k s B_k A ²", CORE,
        "arXiv 2404.19245", Blocks("expert", 3, divides=False), made=True,
        training=Training(OURS + "HydraloraConfig", passed={"num_experts": "experts"}),
        cost=Formula(
            f.hydralora, "nr + K(mr + n)", "min(m, n, r)",
            note="A linear router n → K is counted, and all K experts process every token.",
        ),
    ),
    Method(
        "moelora", "MoELoRA", PURPLE, "p", ".moelora", ("MMOELORAS", "MMOELORA"), "Σ_k w_k s B_k A_k ²", "Kr×Kr",
        "arXiv 2310.18339", Blocks("expert", 8, divides=False), made=True,
        cost=Formula(f.moelora, "K((m+n)r + n)", "min(m, n, Kr)", note="r is the rank of one expert."),
    ),
    Method("sbora", "SBoRA", PURPLE, "d", ".sbora", ("SBORA",)),
    Method(
        "sbora-fa", "SBoRA-FA", PURPLE, ">", ".sbora", ("SBORA",), "s B A, A of standard basis vectors", CORE,
        "Po et al., ICONIP 2024", made=True, training=Training(OURS + "SboraConfig", {"variant": "fa"}),
        cost=Formula(
            f.sbora_fa, "mr", "min(m, n, r)", note="The frozen factor picks rows or columns and costs nothing."
        ),
    ),
    Method(
        "sbora-fb", "SBoRA-FB", PURPLE, "<", ".sbora", ("SBORA",), "s B A, B of standard basis vectors", CORE,
        "Po et al., ICONIP 2024", made=True, training=Training(OURS + "SboraConfig", {"variant": "fb"}),
        cost=Formula(f.sbora_fb, "nr", "min(m, n, r)"),
    ),
    Method(
        "adalora", "AdaLoRA", BLUE, "P", ".adalora", ("ADALORA",), "α/(init_r + 10⁻⁵) B diag(E) A", CORE,
        "arXiv 2303.10512", made=True,
        cost=Formula(
            f.adalora, "(m+n+1)r", "min(m, n, r)",
            note="PEFT trains ``init_r`` directions and prunes them later; r is ``init_r``, not the final rank.",
        ),
    ),
    Method(
        "vera", "VeRA", BLACK, "v", ".vera", ("VERA",), "diag(λ_b) B diag(λ_d) A, frozen A and B ¹", CORE,
        "arXiv 2310.11454", scaled=False, made=True,
        cost=Formula(
            f.vera, "m + r", "min(m, n, r)", "(m+n)r + m + r",
            "The frozen random A and B, shared by the layers, cost multiply-adds but are untrained.", any_rank=True,
        ),
    ),
    Method("pvera", "PVeRA", BLACK, ">", ".vera", ("PVERA",), "VeRA's, of the mean", CORE, scaled=False),
    Method(
        "loha", "LoHa", GREEN, "X", ".loha", ("LOHA",), "s (B₁ A₁) ⊙ (B₂ A₂)", "r²×r², Khatri–Rao factors",
        "arXiv 2108.06098", made=True,
        cost=Formula(
            f.loha, "2(m+n)r", "min(m, n, r²)", "min(mn, (m+n)r²)",
            "ΔW is formed once, or its r²-column (Khatri–Rao) factors if they are cheaper; PEFT always forms ΔW.",
        ),
    ),
    Method(
        "lokr", "LoKr", GREEN, "P", ".lokr", ("LOKR",), "s W₁ ⊗ W₂, whole or factored", "none: products of two spectra",
        "arXiv 2309.14859", made=True,
        cost=Formula(
            f.lokr, "pq + (u+v)r, or pq + uv", "rank w1 · rank w2", "(u+v)rq + mq, or nu + mq",
            "w1 ∈ R^{p×q}, w2 ∈ R^{u×v}, pu = m, qv = n, both pairs as square as possible (``decompose_factor=-1``); "
            "w2 = w2a w2b of rank r where 2r < max(u, v), as in PEFT (``decompose_both=False``). Multiply-adds are "
            "those of w1 x w2ᵀ; PEFT forms ΔW instead.", any_rank=True,
        ),
    ),
    Method(
        "krona", "KronA", GREEN, "p", ".lokr", ("LOKR",), "W₁ ⊗ W₂, both whole", "none: products of two spectra",
        "arXiv 2212.10650", ranked=False, scaled=False, listed=False, made=True,
        cost=Formula(f.krona, "pq + uv", "rank w1 · rank w2", "nu + mq", "LoKr with both factors whole, whatever r."),
    ),
    Method(
        "hira", "HiRA", GREEN, "^", ".hira", ("HIRA",), "W0 ⊙ (B A)", THROUGH, "ICLR 2025", scaled=False,
        needs_base=True,
        cost=Formula(
            f.hira, "(m+n)r", "min(m, n)", "mn",
            "The bound is for ΔW = W' − W with a full-rank W. W ⊙ BA is formed once per pass, as PEFT does.",
        ),
    ),
    Method(
        "gralora", "GraLoRA", ORANGE, "D", ".gralora", ("GRALORA",), "k×k blocks of rank r/k, and B A (hybrid)",
        "(kr + h)²", "arXiv 2505.20355", Blocks("block", 2, splits=True), made=True,
        cost=Formula(
            f.gralora, "(m+n)r", "min(m, n, kr)", note="Without the additional LoRA (PEFT's ``hybrid_r`` = 0)."
        ),
    ),
    Method(
        "delora", "DeLoRA", BLUE, "X", ".delora", ("DELORA",), "B diag(λ / (r ‖A_i‖ ‖B_i‖)) A diag(w)", CORE,
        "arXiv 2503.18225", scaled=False, made=True,
        cost=Formula(
            f.delora, "(m+n)r + 1", "min(m, n, r)", "(m+n)r + n + r",
            "One number λ bounds ‖ΔW‖; the frozen norms of W's columns multiply x.",
        ),
    ),
    Method("bdlora", "BD-LoRA", BLUE, "s", ".bdlora", ("LORA",), "s B A, one factor block-diagonal", CORE),
    Method(
        "bdlora-a", "BD-LoRA-A", BLUE, "<", ".bdlora", ("LORA",), "s B A, A block-diagonal", CORE,
        blocks=Blocks("block", 2, splits=True), made=True,
        cost=Formula(
            f.bdlora_a, "mr + nr/N", "min(m, n, r)",
            note="A or B block-diagonal, as PEFT's ``target_modules_bd_a`` and ``target_modules_bd_b`` say.",
        ),
    ),
    Method(
        "bdlora-b", "BD-LoRA-B", BLUE, ">", ".bdlora", ("LORA",), "s B A, B block-diagonal", CORE,
        blocks=Blocks("block", 2, splits=True), made=True, cost=Formula(f.bdlora_b, "mr/N + nr", "min(m, n, r)"),
    ),
    Method(
        "vblora", "VB-LoRA", BLACK, "<", ".vblora", ("VBLORA",), "B A, every piece a mixture of vectors of a bank",
        CORE, "arXiv 2405.15179", scaled=False, made=True,
        cost=Formula(
            f.vblora, "(m+n)r, and the bank once", "min(m, n, r)", "(m+n)r",
            "A bank of h vectors of length v with h = v, as in PEFT's defaults. Every v numbers of A and B are a "
            "mixture of two vectors, chosen by h logits and formed once per pass. All logits are trained, though a "
            "file may keep only the two largest.",
            f"VB-LoRA also trains a bank of {f.BANK:,} numbers, once for all matrices.",
        ),
    ),
    Method(
        "miss", "MiSS", ORANGE, "v", ".miss", ("MISS",), "one block on every r columns ¹", CORE, "arXiv 2409.15371",
        scaled=False, made=True, cost=Formula(f.miss, "mr", "min(m, n, r)"),
    ),
    Method(
        "c3a", "C³A", ORANGE, "^", ".c3a", ("C3A",), "circulant blocks", "one per frequency, m/b × n/b",
        "arXiv 2407.19342", Blocks("block", 8), ranked=False, scaled=False, made=True,
        cost=Formula(
            f.c3a, "mn/s", "min(m, n)",
            note="s = gcd(m, n)/b is the size of a circulant block; b = 1 gives the largest possible blocks, the "
            "paper's b = d/1. Multiply-adds count the transformed blocks without the Fourier transforms.",
        ),
    ),
    Method(
        "fourierft", "FourierFT", GREY, "X", ".fourierft", ("FOURIERFT",), "few entries of the Fourier transform ¹",
        "one per connected component", "arXiv 2405.03003", ranked=False, scaled=False, made=True,
        cost=Formula(
            f.fourierft, "min(1000, mn)", "min(m, n, 2000)", "mn",
            "PEFT's default of 1000 coefficients. A Fourier transform, not counted, forms ΔW once per pass.",
        ),
    ),
    Method(
        "shira", "SHiRA", GREY, "P", ".shira", ("SHIRA",), "few entries ¹", "one per connected component",
        "arXiv 2406.13175", ranked=False, scaled=False,
    ),
    Method(
        "pissa", "PiSSA", SKY, "v", update="s (B A − B₀ A₀) with `--initial`", core="2r×2r", paper="arXiv 2404.02948",
        initialises="pissa",
    ),
    Method(
        "lora-ga", "LoRA-GA", SKY, "<", update="s (B A − B₀ A₀) with `--initial`", core="2r×2r",
        paper="arXiv 2407.05000", initialises="lora_ga",
    ),
    Method(
        "olora", "OLoRA", SKY, "p", update="s (B A − B₀ A₀) with `--initial`", core="2r×2r", paper="arXiv 2406.01775",
        initialises="olora",
    ),
    Method(
        "corda", "CorDA", SKY, "h", update="s (B A − B₀ A₀) with `--initial`", core="2r×2r", paper="arXiv 2406.05223",
        initialises="corda",
    ),
    Method(
        "oft", "OFT", BLACK, "^", ".oft", ("OFT",), "W0 (Rᵀ − I), R block-diagonal", THROUGH, "arXiv 2306.07280",
        scaled=False, needs_base=True,
    ),
    Method(
        "boft", "BOFT", BLACK, "D", ".boft", ("BOFT",), "W0 (Rᵀ − I), R a butterfly, and a scale per output", THROUGH,
        "arXiv 2311.06243", scaled=False, needs_base=True,
    ),
    Method(
        "hra", "HRA", BLACK, "s", ".hra", ("HRA",), "W0 (H₁ … H_r − I), reflections", "r×r: −(W0 U T) Uᵀ",
        "arXiv 2405.17484", scaled=False, needs_base=True,
    ),
    Method(
        "ia3", "IA³", BLACK, "P", ".ia3", ("IA3",), "(l − 1) ⊙ W0", THROUGH, "arXiv 2205.05638", ranked=False,
        scaled=False, needs_base=True,
    ),
    Method(
        "full", "full fine-tuning", BLACK, "*", ".whole_difference",
        update="the difference of two models, or LyCORIS's `diff`", core=THROUGH, ranked=False, scaled=False,
    ),
)}  # fmt: skip
