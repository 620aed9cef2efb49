"""The methods, one row each: name, look, files, blocks, cost. Every list of methods is derived from these rows.

The row names the file with the method's code, which reads, writes and makes random factors (see
:mod:`bora_analysis.methods`). A new method needs one row and one file; :func:`bora_analysis.catalogue.register` adds
the row of a method from another package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import formulas as f
from .palette import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION
from .row import Blocks, Formula, Method, Training

LORA = Formula(f.lora, "(m+n)r", "min(m, n, r)")
MOVED = "min(m, n, 2r)"
CORE = "r×r"
OURS = "bora_analysis.peft_methods."
THROUGH = "ΔW"  # there is no smaller core
# An r from which on PEFT's LoKr leaves both factors whole, and α/r = 1.
WHOLE = 2**20
# Settings of LoraConfig, and of ours → options of ``train``.
FACTORS = {"r": "r", "lora_alpha": "alpha", "lora_dropout": "dropout"}
OF_LORA = {**FACTORS, "use_rslora": "rslora", "rank_pattern": "rank_pattern", "alpha_pattern": "alpha_pattern"}


def _lora(config: str = "peft.LoraConfig", fixed: Mapping[str, Any] | None = None, **passed: str) -> Training:
    """A method with all settings of a LoRA."""
    return Training(config, fixed or {}, OF_LORA | {key.replace("__", "."): value for key, value in passed.items()})


def _own(config: str, fixed: Mapping[str, Any] | None = None, procedure: str = "", **passed: str) -> Training:
    """A method whose defaults are those of its configuration in PEFT."""
    return Training(f"peft.{config}", fixed or {}, passed, own=True, procedure=procedure)


#: Name → row, in the order of menus. No method is yellow, which is hard to see on white paper.
METHODS: dict[str, Method] = {row.name: row for row in (
    Method(
        "lora", "LoRA", BLUE, "o", ".lora", ("LORA",), "s B A", CORE, "arXiv 2106.09685", cost=LORA,
        made=True,
        training=_lora(),
    ),
    Method(
        "rslora", "rsLoRA", SKY, ">", ".lora", ("LORA",), "s B A, s = α/√r", CORE, "arXiv 2312.03732", cost=LORA,
        made=True,
        training=_lora(fixed={"use_rslora": True}),
    ),
    Method(
        "lora+", "LoRA+", SKY, "P", update="s B A; B has a higher learning rate, file and update are LoRA's", core=CORE,
        paper="arXiv 2402.12354", cost=LORA, listed=False,
        training=Training("peft.LoraConfig", {}, OF_LORA, procedure="two rates", options=("b_learning_rate_ratio",)),
    ),
    Method(
        "melora", "MELoRA", ORANGE, "s", ".melora", ("MELORA",), "blkdiag(s B₁ A₁, …, s B_N A_N)", "r×r, N times",
        "arXiv 2402.17263", Blocks("mini", 8, trained=4), cost=Formula(f.melora, "(m+n)r", "min(m, n, br)"),
        made=True,
        training=_lora(OURS + "MeloraConfig", num_minis="blocks"),
    ),
    Method(
        "bora", "BoRA", VERMILLION, "D", ".bora", ("BORA",), "s B_i Σ_ij A_j in b×b blocks", "br×br",
        "arXiv 2508.06953", Blocks("block", 8, trained=16, pads=True),
        cost=Formula(f.bora, "(m+n+b²)r", "min(m, n, br)"), made=True,
        training=_lora(OURS + "BoraConfig", num_blocks="blocks", activation="activation"),
    ),
    Method(
        "dora", "DoRA", SKY, "^", ".dora", ("LORA", "DORA"), "diag(g / ‖V‖_row) V − W0, V = W0 + s B A", THROUGH,
        "arXiv 2402.09353", needs_base=True, made=True,
        cost=Formula(
            f.dora, "(m+n)r + m", "min(m, n)",
            note="The bound is for ΔW = W' − W with a full-rank W. W + sBA is formed once per pass.",
        ),
        training=_lora(fixed={"use_dora": True}),
    ),
    Method(
        "hydralora", "HydraLoRA", PURPLE, "h", ".hydralora", ("HYDRALORA",), "Σ_k w_k s B_k A ²", CORE,
        "arXiv 2404.19245", Blocks("expert", 3, divides=False), made=True,

        cost=Formula(
            f.hydralora, "nr + K(mr + n)", "min(m, n, r)",
            note="A linear router n → K is counted, and all K experts process every token.",
        ),
        training=_lora(OURS + "HydraloraConfig", num_experts="experts"),
    ),
    Method(
        "moelora", "MoELoRA", PURPLE, "p", ".moelora", ("MMOELORAS", "MMOELORA", "MOELORA"),
        "Σ_k w_k s B_k A_k ²", "Kr×Kr", "arXiv 2310.18339", Blocks("expert", 8, divides=False), made=True,
        cost=Formula(f.moelora, "K((m+n)r + n)", "min(m, n, Kr)", note="r is the rank of one expert."),
        training=_lora(OURS + "MoeloraConfig", num_experts="experts"),
    ),
    Method("sbora", "SBoRA", PURPLE, "d", ".sbora", ("SBORA",), untrained="name sbora-fa or sbora-fb"),
    Method(
        "sbora-fa", "SBoRA-FA", PURPLE, ">", ".sbora", ("SBORA",), "s B A, A of standard basis vectors", CORE,
        "Po et al., ICONIP 2024", made=True,
        cost=Formula(
            f.sbora_fa, "mr", "min(m, n, r)", note="The frozen factor picks rows or columns and costs nothing."
        ),
        training=_lora(OURS + "SboraConfig", {"variant": "fa"}),
    ),
    Method(
        "sbora-fb", "SBoRA-FB", PURPLE, "<", ".sbora", ("SBORA",), "s B A, B of standard basis vectors", CORE,
        "Po et al., ICONIP 2024", made=True,
        cost=Formula(f.sbora_fb, "nr", "min(m, n, r)"),
        training=_lora(OURS + "SboraConfig", {"variant": "fb"}),
    ),
    Method(
        "adalora", "AdaLoRA", BLUE, "P", ".adalora", ("ADALORA",), "α/(init_r + 10⁻⁵) B diag(E) A", CORE,
        "arXiv 2303.10512", made=True,
        cost=Formula(
            f.adalora, "(m+n+1)r", "min(m, n, r)",
            note="PEFT trains ``init_r`` directions and prunes them later; r is ``init_r``, not the final rank.",
        ),
        training=Training(
            "peft.AdaLoraConfig", {}, {
                "init_r": "r", "target_r": "kept_r", "lora_alpha": "alpha", "lora_dropout": "dropout",
                "total_step": "steps_in_all",
            }, procedure="allocation",
        ),
    ),
    Method(
        "vera", "VeRA", BLACK, "v", ".vera", ("VERA",), "diag(λ_b) B diag(λ_d) A, frozen A and B ¹", CORE,
        "arXiv 2310.11454", scaled=False, made=True,
        cost=Formula(
            f.vera, "m + r", "min(m, n, r)", "(m+n)r + m + r",
            "The frozen random A and B, shared by the layers, cost multiply-adds but are untrained.", any_rank=True,
        ),
        training=_own("VeraConfig", r="r", vera_dropout="dropout"),
    ),
    Method(
        "pvera", "PVeRA", BLACK, ">", ".vera", ("PVERA",), "VeRA's, of the mean", CORE, "arXiv 2512.07703",
        scaled=False, made=True,
        cost=Formula(
            f.pvera, "m + 2r", "min(m, n, r)", "(m+2n)r + m + 2r",
            "The frozen random A, 2r rows for mean and variance, and B are shared by the layers. A merged ΔW has the "
            "mean alone.", any_rank=True,
        ),
        training=_own("PveraConfig", r="r", pvera_dropout="dropout"),
    ),
    Method(
        "loha", "LoHa", GREEN, "X", ".loha", ("LOHA",), "s (B₁ A₁) ⊙ (B₂ A₂)", "r²×r², Khatri–Rao factors",
        "arXiv 2108.06098", made=True,
        cost=Formula(
            f.loha, "2(m+n)r", "min(m, n, r²)", "min(mn, (m+n)r²)",
            "ΔW is formed once, or its r²-column (Khatri–Rao) factors if they are cheaper; PEFT always forms ΔW.",
        ),
        training=_own(
            "LoHaConfig", r="r", alpha="alpha", rank_pattern="rank_pattern", alpha_pattern="alpha_pattern"
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
        training=_own(
            "LoKrConfig", r="r", alpha="alpha", rank_pattern="rank_pattern", alpha_pattern="alpha_pattern"
        ),
    ),
    Method(
        "krona", "KronA", GREEN, "p", ".lokr", ("LOKR",), "W₁ ⊗ W₂, both whole", "none: products of two spectra",
        "arXiv 2212.10650", ranked=False, scaled=False, listed=False, made=True,
        cost=Formula(f.krona, "pq + uv", "rank w1 · rank w2", "nu + mq", "LoKr with both factors whole, whatever r."),
        training=_own("LoKrConfig", {"r": WHOLE, "alpha": WHOLE}),
    ),
    Method(
        "hira", "HiRA", GREEN, "^", ".hira", ("HIRA",), "W0 ⊙ (B A)", THROUGH, "ICLR 2025", scaled=False,
        needs_base=True, made=True,
        cost=Formula(
            f.hira, "(m+n)r", "min(m, n)", "mn",
            "The bound is for ΔW = W' − W with a full-rank W. W ⊙ BA is formed once per pass, as PEFT does.",
        ),
        training=_own("HiraConfig", r="r", hira_dropout="dropout", rank_pattern="rank_pattern"),
    ),
    Method(
        "gralora", "GraLoRA", PURPLE, "D", ".gralora", ("GRALORA",), "k×k blocks of rank r/k, and B A (hybrid)",
        "(kr + h)²", "arXiv 2505.20355", Blocks("block", 2, splits=True), made=True,
        cost=Formula(
            f.gralora, "(m+n)r", "min(m, n, kr)", note="Without the additional LoRA (PEFT's ``hybrid_r`` = 0)."
        ),
        training=_own("GraloraConfig", r="r", alpha="alpha", gralora_dropout="dropout", gralora_k="blocks"),
    ),
    Method(
        "delora", "DeLoRA", BLUE, "X", ".delora", ("DELORA",), "B diag(λ / (r ‖A_i‖ ‖B_i‖)) A diag(w)", CORE,
        "arXiv 2503.18225", scaled=False, made=True,
        cost=Formula(
            f.delora, "(m+n)r + 1", "min(m, n, r)", "(m+n)r + n + r",
            "One number λ bounds ‖ΔW‖; the frozen norms of W's columns multiply x.",
        ),
        training=_own("DeloraConfig", r="r", rank_pattern="rank_pattern"),
    ),
    Method(
        "bdlora", "BD-LoRA", BLUE, "s", ".bdlora", ("LORA",), core=CORE, untrained="name bdlora-a or bdlora-b",
    ),
    Method(
        "bdlora-a", "BD-LoRA-A", BLUE, "<", ".bdlora", ("LORA",), "s B A, A block-diagonal", CORE,
        blocks=Blocks("block", 2, splits=True), made=True,
        cost=Formula(
            f.bdlora_a, "mr + nr/N", "min(m, n, r)",
            note="A or B block-diagonal, as PEFT's ``target_modules_bd_a`` and ``target_modules_bd_b`` say.",
        ),
        training=_lora(use_bdlora__target_modules_bd_a="targets", use_bdlora__nblocks="blocks"),
    ),
    Method(
        "bdlora-b", "BD-LoRA-B", BLUE, ">", ".bdlora", ("LORA",), "s B A, B block-diagonal", CORE,
        blocks=Blocks("block", 2, splits=True), made=True, cost=Formula(f.bdlora_b, "mr/N + nr", "min(m, n, r)"),
        training=_lora(use_bdlora__target_modules_bd_b="targets", use_bdlora__nblocks="blocks"),
    ),
    Method(
        "vblora", "VB-LoRA", BLACK, "<", ".vblora", ("VBLORA",), "B A, every piece a mixture of vectors of a bank",
        CORE, "arXiv 2405.15179", scaled=False, made=True,
        cost=Formula(
            f.vblora, "(m+n)r, and the bank once", "min(m, n, r)", "(m+n)r",
            "A bank of h vectors of length v with h = v, as in PEFT's defaults. Every v numbers of A and B are a "
            "mixture of two vectors, chosen by h logits and formed once per pass. All logits are trained, though a "
            "file may keep only the two largest.",
            f"VB-LoRA also trains a bank of {f.BANK:,} numbers, once for all matrices.", shared=f.BANK,
        ),
        training=_own("VBLoRAConfig", r="r", vblora_dropout="dropout"),
    ),
    Method(
        "miss", "MiSS", PURPLE, "v", ".miss", ("MISS",), "one block on every r columns ¹", CORE, "arXiv 2409.15371",
        scaled=False, made=True, cost=Formula(f.miss, "mr", "min(m, n, r)"),
        training=_own("MissConfig", r="r", miss_dropout="dropout"),
    ),
    Method(
        "c3a", "C³A", GREY, "v", ".c3a", ("C3A",), "circulant blocks", "one per frequency, m/b × n/b",
        "arXiv 2407.19342", Blocks("block", 8), ranked=False, scaled=False, made=True,
        cost=Formula(
            f.c3a, "mn/s", "min(m, n)",
            note="s = gcd(m, n)/b is the size of a circulant block; b = 1 gives the largest possible blocks, the "
            "paper's b = d/1. Multiply-adds count the transformed blocks without the Fourier transforms.",
        ),
        training=_own("C3AConfig"),
    ),
    Method(
        "fourierft", "FourierFT", GREY, "X", ".fourierft", ("FOURIERFT",), "few entries of the Fourier transform ¹",
        "one per connected component", "arXiv 2405.03003", ranked=False, scaled=False, made=True,
        cost=Formula(
            f.fourierft, "min(1000, mn)", "min(m, n, 2000)", "mn",
            "PEFT's default of 1000 coefficients. A Fourier transform, not counted, forms ΔW once per pass.",
        ),
        training=_own("FourierFTConfig"),
    ),
    Method(
        "shira", "SHiRA", GREY, "P", ".shira", ("SHIRA",), "few entries ¹", "one per connected component",
        "arXiv 2406.13175", ranked=False, scaled=False, made=True,
        cost=Formula(
            f.shira, "32(m+n)", "min(m, n)",
            note="PEFT's default of r = 32, as many entries as a LoRA of that r; PEFT refuses layers with fewer.",
        ),
        training=_own("ShiraConfig"),
    ),
    Method(
        "kasa", "KaSA", BLUE, "^", ".kasa", ("LORA",), "s B diag(d) A", CORE, "arXiv 2412.06071", made=True,
        cost=Formula(
            f.adalora, "(m+n+1)r", "min(m, n, r)",
            note="The bound is for the change of what KaSA leaves of the base model, not of the base model.",
        ),
        training=_lora(fixed={"kasa_config": {}}),
    ),
    Method(
        "qalora", "QALoRA", BLUE, "v", ".qalora", ("LORA",), "s n/g² B (A ⊗ 1ᵀ), groups of g inputs", CORE,
        "arXiv 2309.14717", made=True,
        cost=Formula(f.qalora, "(m + n/16)r", "min(m, n/16, r)", note="PEFT's default of g = 16 inputs in a group."),
        untrained="PEFT pools the groups on GPTQ layers alone, whose kernels need a GPU",
    ),
    Method(
        "tinylora", "TinyLoRA", BLACK, "p", ".tinylora", ("TINYLORA",), "B (Σ_i v_i P_i) A, only v trained", CORE,
        "arXiv 2602.04118", scaled=False, made=True,
        cost=Formula(
            f.tinylora, "64", "min(m, n, r)", "(m+n)r + r²", "PEFT's default of 64 numbers, for each layer.",
        ),
        training=_own("TinyLoraConfig", r="r", tinylora_dropout="dropout"),
    ),
    Method(
        "unilora", "Uni-LoRA", BLACK, "h", ".unilora", ("UNILORA",), "B A, every number one of a vector, scaled", CORE,
        "arXiv 2506.00799", scaled=False, made=True,
        cost=Formula(
            f.unilora, "256 for all matrices together", "min(m, n, r)", "(m+n)r",
            "PEFT's default of 256 numbers, of which every number of A and B is one, scaled.",
            f"Uni-LoRA trains {f.SHARED_VECTOR} numbers, once for all matrices.", shared=f.SHARED_VECTOR,
        ),
        training=_own("UniLoraConfig", {"save_indices": True}, r="r", unilora_dropout="dropout"),
    ),
    Method(
        "randlora", "RandLoRA", BLACK, "d", ".randlora", ("RANDLORA",), "s Σ_j B_j diag(λ_j) A diag(γ_j) ¹", THROUGH,
        "arXiv 2502.00987", scaled=False, made=True,
        cost=Formula(
            f.randlora, "N(r + min(m, n))", "min(m, n)", "(m+n)Nr",
            "N = ⌈min(m, n)/r⌉ frozen random products of rank r, which all layers share.",
        ),
        training=_own("RandLoraConfig", r="r", randlora_alpha="alpha", randlora_dropout="dropout"),
    ),
    Method(
        "poly", "Poly", PURPLE, "s", ".poly", ("POLY",), "B A / r, mixed for every task", CORE, "arXiv 2202.13914",
        scaled=False, made=True,
        cost=Formula(
            f.poly, "4(m+n)r + 4", "min(m, n, r)", "(m+n)r",
            "PEFT's defaults: 4 skills of rank r, one task, no splits. The skills are mixed once per pass.",
        ),
        training=_own("PolyConfig", {"n_tasks": 1}, "one task", r="r"),
    ),
    Method(
        "lily", "Lily", PURPLE, "^", ".lily", ("LILY",), "Σ_k w_k s B_k A ²", CORE, "arXiv 2407.09946",
        Blocks("expert", 2, divides=False), scaled=False, made=True,
        cost=Formula(
            f.lily, "nr + K(m+1)r", "min(m, n, r)", "(m+n+K)r",
            "A router r → K is counted. Layers that share A or B count it once each. The B_k are mixed once per pass.",
        ),
        training=_own("LilyConfig", r="r", num_B="experts"),
    ),
    Method(
        "supertuning", "Super-Tuning", GREY, "s", ".supertuning", ("SUPERTUNING",), "few entries, at W0's largest ¹",
        "one per connected component", "arXiv 2607.09287", ranked=False, scaled=False, made=True,
        cost=Formula(f.supertuning, "mn/100", "min(m, n, mn/100)", note="PEFT's default: a hundredth of the entries."),
        training=_own("SupertuningConfig"),
    ),
    Method(
        "supra", "Supra", GREY, "D", ".supertuning", ("SUPERTUNING",), "Super-Tuning's + s B A", THROUGH,
        "arXiv 2607.09287", made=True,
        cost=Formula(
            f.supra, "mn/100 + (m+n)r", "min(m, n, mn/100 + r)", note="PEFT's default: a hundredth of the entries."
        ),
        training=Training("peft.SupertuningConfig", {}, FACTORS),
    ),
    Method(
        "waveft", "WaveFT", GREY, "^", ".waveft", ("WAVEFT",), "few entries of a wavelet transform ¹",
        "one per connected component, or ΔW", "arXiv 2505.12532", ranked=False, scaled=False, made=True,
        cost=Formula(
            f.waveft, "min(2592, mn)", "min(m, n, 2592)", "mn",
            "PEFT's default of 2592 coefficients. A wavelet transform, not counted, forms ΔW once per pass.",
        ),
        training=_own("WaveFTConfig"),
    ),
    Method(
        "deft", "DEFT", GREEN, "s", ".deft", ("DEFT",), "Q (s R − Pᵀ W0)", CORE, "NeurIPS 2025", scaled=False,
        needs_base=True, made=True, cost=Formula(f.deft, "(m+n)r", "min(m, n, r)", "(2m+n)r", "Pᵀ sees W0 x."),
        training=_own("DeftConfig", r="r", alpha="alpha", deft_dropout="dropout"),
    ),
    Method(
        "psoft", "PSOFT", GREEN, "v", ".psoft", ("PSOFT",), "U S (R − I) Vᵀ, U S Vᵀ of W0, R r×r", CORE, "ICLR 2026",
        scaled=False, needs_base=True, made=True,
        cost=Formula(f.psoft, "r(r−1)/2 + 2r", "min(m, n, r)", "(m+n)r + r²", "With PEFT's two vectors of scales."),
        training=_own("PsoftConfig", r="r", psoft_alpha="alpha", psoft_dropout="dropout"),
    ),
    Method(
        "frod", "FRoD", GREEN, "D", ".frod", ("FROD",), "U (S + diag(λ)) Vᵀ − W0", THROUGH, "AAAI 2026", ranked=False,
        scaled=False, needs_base=True, made=True,
        cost=Formula(
            f.frod, "n + n²/100", "min(m, n)", "n² + n + n²/100",
            "PEFT's default of a hundredth of the entries of S. V x replaces x, and W0 x is not needed.",
        ),
        training=_own("FrodConfig", {"progressbar": False}, frod_dropout="dropout"),
    ),
    Method(
        "osf", "OSF", GREEN, "h", ".osf", ("OSF",), "U S V − U₀ S₀ V₀, the smaller part of W0", THROUGH,
        "arXiv 2504.07097", ranked=False, scaled=False, needs_base=True, made=True,
        cost=Formula(
            f.osf, "(m+n+1)q", "min(m, n)", "2(m+n)q",
            "PEFT's default: q = ⌈min(m, n)/2⌉, the smaller half of the singular values.",
        ),
        training=_own("OSFConfig"),
    ),
    Method(
        "glora", "GLoRA", GREEN, "<", ".glora", ("GLORA",), "W0 ⊙ A + B", THROUGH, "arXiv 2306.07967", scaled=False,
        needs_base=True, made=True,
        cost=Formula(
            f.glora, "2(m+n)r", "min(m, n)", "mn",
            "PEFT's default of two products; what it trains of a bias is not counted. ΔW is formed once per pass.",
        ),
        training=_own("GloraConfig", r="r"),
    ),
    Method(
        "peanut", "PEANuT", GREEN, "d", ".peanut", ("PEANUT",), "s B h(A W0), h an activation", CORE,
        "arXiv 2410.01870", scaled=False, needs_base=True, made=True,
        cost=Formula(
            f.peanut, "2mr", "min(m, n, r)", "(m+n)r",
            "PEFT's default without further layers. h(A W0) is formed once per pass.",
        ),
        training=_own("PeanutConfig", r="r"),
    ),
    Method(
        "adamss", "AdaMSS", GREEN, "8", ".adamss", ("ADAMSS",), "B_k A_k V in cluster k of the rows", CORE,
        scaled=False, needs_base=True, made=True,
        cost=Formula(
            f.adamss, "m + 5r", "min(m, n, r, 5)", "nr + m + 5r",
            "PEFT's defaults: 5 clusters of rows, each of rank 1, in r frozen directions; r up to min(m, n) counts.",
            any_rank=True,
        ),
        training=_own("AdamssConfig", {}, "allocation", r="r"),
    ),
    Method(
        "road", "RoAd", GREEN, ">", ".road", ("ROAD",), "(R − I) W0, R rotates and scales pairs of outputs", THROUGH,
        "arXiv 2409.00119", ranked=False, scaled=False, needs_base=True, made=True,
        cost=Formula(f.road, "m", "min(m, n)", "2m", "RoAd₁, PEFT's default: an angle and a scale for two outputs."),
        training=_own("RoadConfig"),
    ),
    Method(
        "pissa", "PiSSA", SKY, "v", ".staged", ("LORA",), update="s (B A − B₀ A₀) with `--initial`",
        core="2r×2r", paper="arXiv 2404.02948",
        initialises="pissa", listed=False, made=True,
        training=_lora(fixed={"init_lora_weights": "pissa"}),
        cost=Formula(
            f.moved, "(m+n)r", MOVED,
            stages="two: an SVD of every adapted W0, which loses its part of rank r, then training",
        ),
    ),
    Method(
        "lora-ga", "LoRA-GA", SKY, "<", ".staged", ("LORA",), update="s (B A − B₀ A₀) with `--initial`", core="2r×2r",
        paper="arXiv 2407.05000", initialises="lora_ga", listed=False, made=True,
        training=_lora(fixed={"init_lora_weights": "lora_ga", "lora_ga_config": {}}),
        cost=Formula(
            f.moved, "(m+n)r", MOVED,
            stages="two: a gradient of every adapted W0 and its SVD, then training",
        ),
    ),
    Method(
        "olora", "OLoRA", SKY, "p", ".staged", ("LORA",), update="s (B A − B₀ A₀) with `--initial`",
        core="2r×2r", paper="arXiv 2406.01775",
        initialises="olora", listed=False, made=True,
        training=_lora(fixed={"init_lora_weights": "olora"}),
        cost=Formula(
            f.moved, "(m+n)r", MOVED,
            stages="two: a QR of every adapted W0, then training",
        ),
    ),
    Method(
        "corda", "CorDA", SKY, "h", ".staged", ("LORA",), update="s (B A − B₀ A₀) with `--initial`",
        core="2r×2r", paper="arXiv 2406.05223",
        initialises="corda", listed=False, made=True,
        training=_lora(fixed={"init_lora_weights": "corda", "corda_config": {}}),
        cost=Formula(
            f.moved, "(m+n)r", MOVED,
            stages="two: the covariance of every layer's inputs and an SVD, then training",
        ),
    ),
    Method(
        "relora", "ReLoRA", BLUE, "h", ".staged", ("LORA",), update="Σ_k s B_k A_k, each merged before the next begins",
        core="Kr×Kr", paper="arXiv 2307.05695", blocks=Blocks("stage", 4, divides=False), listed=False, made=True,
        training=Training(
            "peft.LoraConfig", {},
            {"r": "r_of_stages", "lora_alpha": "alpha_of_stages", "lora_dropout": "dropout", "use_rslora": "rslora"},
            procedure="restarts", options=("r", "alpha", "blocks"),
        ),
        cost=Formula(
            f.relora, "(m+n)r", "min(m, n, Kr)", note="Trained at a time, in K stages.",
            stages="one for each of --blocks: training from B = 0, then merging into W0",
        ),
    ),
    Method(
        "oft", "OFT", BLACK, "^", ".oft", ("OFT",), "W0 (Rᵀ − I), R block-diagonal", THROUGH, "arXiv 2306.07280",
        scaled=False, needs_base=True, made=True,
        cost=Formula(
            f.oft, "n(r−1)/2", "min(m, n)", "nr", "r is the size of a block, as near to it as n allows.",
        ),
        training=_own("OFTConfig"),
    ),
    Method(
        "boft", "BOFT", BLACK, "D", ".boft", ("BOFT",), "W0 (Rᵀ − I), R a butterfly, and a scale per output", THROUGH,
        "arXiv 2311.06243", scaled=False, needs_base=True, made=True,
        cost=Formula(
            f.boft, "nr + m", "min(m, n)", note="r is the size of a block, with PEFT's default of one factor.",
        ),
        training=_own("BOFTConfig", boft_dropout="dropout"),
    ),
    Method(
        "hra", "HRA", BLACK, "s", ".hra", ("HRA",), "W0 (H₁ … H_r − I), reflections", "r×r: −(W0 U T) Uᵀ",
        "arXiv 2405.17484", scaled=False, needs_base=True, made=True,
        cost=Formula(f.hra, "nr", "min(m, n, r)", "2nr + r²"),
        training=_own("HRAConfig", r="r"),
    ),
    Method(
        "tlora", "T-LoRA", GREY, "h", ".tlora", (), "s (P diag(λ) Q − W0's first r singular directions)", "2r×2r",
        "arXiv 2507.05964", needs_base=True, made=True,
        cost=Formula(
            f.tlora, "(m+n+1)r", MOVED, "2(m+n+1)r", "A frozen copy of the start, r directions of W0, is subtracted."
        ),
        untrained="LyCORIS has it for images; PEFT does not",
    ),
    Method(
        "ia3", "IA³", BLACK, "P", ".ia3", ("IA3",), "(l − 1) ⊙ W0", THROUGH, "arXiv 2205.05638", ranked=False,
        scaled=False, needs_base=True, made=True,
        cost=Formula(f.ia3, "m", "min(m, n)", note="On outputs; n on inputs (feed-forward)."),
        training=_own("IA3Config"),
    ),
    Method(
        "full", "full fine-tuning", BLACK, "*", ".whole_difference",
        update="the difference of two models, or LyCORIS's `diff`", core=THROUGH, ranked=False, scaled=False,
        training=Training(""), cost=Formula(f.full, "mn", "min(m, n)", "0"),
    ),
)}  # fmt: skip
