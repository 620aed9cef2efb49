"""The configurations: names and defaults of PEFT's ``LoraConfig``, with each method's own settings."""

from __future__ import annotations

import math
from dataclasses import InitVar, dataclass, field
from typing import Any, Literal

from peft.config import PeftConfig
from peft.utils import PeftType

from ..catalogue import ACTIVATIONS


@dataclass
class AdapterConfig(PeftConfig):
    """Settings that all methods here share with ``LoraConfig``.

    Attributes
    ----------
    r : rank of one factor pair (the rank of ΔW is at most br for BoRA, N·r for MELoRA).
    target_modules, exclude_modules : names, or one regular expression; ``"all-linear"``. By default PEFT's choice for
        LoRA on that architecture.
    lora_alpha : α. The scaling is α/r.
    lora_dropout : probability with which an input of the adapter is dropped in training.
    use_rslora : scale by α/√r instead.
    fan_in_fan_out : for readers of ``LoraConfig``; the layers set it, to true for GPT-2's Conv1D.
    bias : the biases to train: ``"none"``, ``"all"``, or ``"<method>_only"`` for those of the adapted layers.
    modules_to_save : modules to train in full and to save beside the adapter.
    init_lora_weights : false starts from ΔW ≠ 0, for tests.
    layers_to_transform, layers_pattern : as in ``LoraConfig``.
    rank_pattern, alpha_pattern : regular expression of a module's path → its own r or α.
    trainable_token_indices, ensure_weight_tying : as in ``LoraConfig``, for new tokens and for ``modules_to_save``.
    target_parameters : refused: parameters that are not layers take a LoRA only.
    """

    r: int = 8
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    bias: str = "none"
    modules_to_save: list[str] | None = None
    init_lora_weights: bool = True
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    ensure_weight_tying: bool = False
    target_parameters: list[str] | None = None

    def _check(self, name: str) -> None:
        self.peft_type = PeftType(name)
        for setting in ("target_modules", "exclude_modules"):
            value = getattr(self, setting)
            setattr(self, setting, set(value) if isinstance(value, list | tuple) else value)
        if isinstance(self.target_modules, str):
            for setting in ("layers_to_transform", "layers_pattern"):
                value = getattr(self, setting)
                _expect(value is None, setting, value, "None, because target_modules is a regular expression")
        parameters = self.target_parameters
        _expect(not parameters, "target_parameters", parameters, f"None: {name} adapts layers; a LoRA can adapt these")
        ranks = {f"rank_pattern[{pattern!r}]": r for pattern, r in self.rank_pattern.items()}
        for setting, r in {"r": self.r, **ranks}.items():
            _expect(_is_count(r), setting, r, "a positive integer")
        alphas = {f"alpha_pattern[{pattern!r}]": alpha for pattern, alpha in self.alpha_pattern.items()}
        for setting, alpha in {"lora_alpha": self.lora_alpha, **alphas}.items():
            number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
            _expect(number and math.isfinite(alpha), setting, alpha, "a number")
        _expect(0 <= self.lora_dropout < 1, "lora_dropout", self.lora_dropout, "a probability below 1")
        only = f"{name.lower()}_only"
        _expect(self.bias in ("none", "all", only), "bias", self.bias, f"'none', 'all' or '{only}'")


@dataclass
class BoraConfig(AdapterConfig):
    """BoRA (arXiv 2508.06953, eq. 4 and 5): ΔW_ij = (α/r) B_i Exp(σ_ij / Mav(σ)) A_j.

    A saved adapter has, for each module, ``bora_A`` (r, n), ``bora_B`` (m, r) and the raw σ ``bora_sigma`` (b, b, r),
    output block first. At the start A and σ are Kaiming-uniform and B is zero (§3.2).

    Attributes
    ----------
    num_blocks : b, a common divisor of m and n; or ``"auto"``, the common divisor with the fewest parameters per unit
        of rank, near √(m+n) (the smaller of two that tie, see
        :func:`bora_analysis.analysis.optimal_blocks.optimal_blocks`); or a dictionary regular expression → either
        (``"auto"`` for other modules). The paper trains with 8 and 16.
    pad : accept a b that does not divide m or n (``"auto"`` takes a divisor all the same). The blocks have ⌈m/b⌉ rows
        and ⌈n/b⌉ columns, and ΔW is the first m rows and n columns of their product, so that the last blocks are
        smaller, or empty. The factors keep their sizes. The rank of ΔW is then at most Σ_i min(p_i, r) over the rows
        p_i (or columns) of the blocks of the shorter side, which may lie below br and min(m, n).
    activation : how Σ follows from σ: ``"exp-norm"`` (eq. 5), its ablations ``"no-exp"`` (σ/Mav(σ)) and ``"no-norm"``
        (Exp(σ)) of §4.3, or ``"identity"`` (σ is Σ).

    Other Parameters
    ----------------
    init, target : ``init="svd"`` starts at the member of BoRA's set that is nearest to a known update, what PiSSA is to
        LoRA: ``target`` is an adapter, its path, or a mapping module → update or matrix (m, n), such as the ΔW of full
        fine-tuning. The base weight stays as it is, and training starts at W0 + X, with X near to the target
        (:func:`bora_analysis.capture` says how near). Neither is saved.

    Raises
    ------
    ValueError
        A setting out of range; b that does not divide m and n without pad, or a target without a module, once the model
        is known.

    Examples
    --------
    >>> config = BoraConfig(r=8, lora_alpha=16, num_blocks={"q_proj": 16, "down_proj": "auto"})
    >>> config.peft_type.value, config.activation
    ('BORA', 'exp-norm')
    """

    num_blocks: int | str | dict[str, int | str] = "auto"
    pad: bool = False
    activation: Literal["exp-norm", "no-exp", "no-norm", "identity"] = "exp-norm"
    init: InitVar[str] = "default"  # not upstream
    target: InitVar[Any] = None  # not upstream

    def __post_init__(self, init: str, target: Any) -> None:
        super().__post_init__()
        self._check("BORA")
        self.near = _near(init, target, self.init_lora_weights)  # not upstream
        for b in _values(self.num_blocks):
            _expect(_is_count(b) or b == "auto", "num_blocks", b, "a positive integer, 'auto', or a pattern of them")
        _expect(isinstance(self.pad, bool), "pad", self.pad, "True or False")
        _expect(self.activation in ACTIVATIONS, "activation", self.activation, f"one of {', '.join(ACTIVATIONS)}")


@dataclass
class MeloraConfig(AdapterConfig):
    """MELoRA (arXiv 2402.17263): ΔW = (α/r) blkdiag(B_1 A_1, …, B_N A_N), N mini-LoRAs of rank r each.

    A saved adapter has, for each module, ``melora_A`` (N, r, n/N) and ``melora_B`` (N, m/N, r).

    Attributes
    ----------
    num_minis : N, a common divisor of m and n; or a dictionary regular expression → N that covers every target.

    Examples
    --------
    >>> MeloraConfig(r=8, num_minis=4).peft_type.value
    'MELORA'
    """

    num_minis: int | dict[str, int] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("MELORA")
        for count in _values(self.num_minis):
            _expect(_is_count(count), "num_minis", count, "a positive integer, or a pattern of them")


@dataclass
class SboraConfig(AdapterConfig):
    """SBoRA (Po et al., ICONIP 2024): LoRA with one factor of r standard basis vectors, chosen at random and frozen.

    ``"fa"``: A picks r inputs, B (m, r) is trained, and ΔW has r columns that are not zero. ``"fb"``: A (r, n) is
    trained, B places it in r rows. The trained factor starts at zero.

    A saved adapter has, for each module, ``sbora_B`` (m, r) or ``sbora_A`` (r, n), ``sbora_index`` (r,) int64, the
    columns or rows, and ``sbora_size`` (1,) int64, n or m, which cannot be derived from the factors.

    Examples
    --------
    >>> SboraConfig(r=8, variant="fb").peft_type.value
    'SBORA'
    """

    variant: Literal["fa", "fb"] = "fa"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("SBORA")
        _expect(self.variant in ("fa", "fb"), "variant", self.variant, "'fa' or 'fb'")


@dataclass
class HydraloraConfig(AdapterConfig):
    """HydraLoRA (arXiv 2404.19245, eq. 5 and 6): y = W x + (α/r) Σ_k softmax(G x)_k B_k A x.

    One A (r, n), K matrices B_k (m, r) and a linear router G (K, n). ΔW depends on the token, so it can be neither
    merged nor converted. BoRA's tables use r = 4 and three B (§4.1).

    A saved adapter has, for each module, ``hydralora_A`` (r, n), ``hydralora_B`` (K, m, r) and ``hydralora_route``
    (K, n). A and G start Kaiming-uniform, the B_k at zero.

    Attributes
    ----------
    num_experts : K.

    Examples
    --------
    >>> HydraloraConfig(r=4).num_experts
    3
    """

    num_experts: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("HYDRALORA")
        _expect(_is_count(self.num_experts), "num_experts", self.num_experts, "a positive integer")


@dataclass
class MoeloraConfig(AdapterConfig):
    """MoELoRA (arXiv 2310.18339, eq. 4 and 5): y = W x + (α/r) Σ_k softmax(G x)_k B_k A_k x.

    K LoRAs and a linear router G (K, n), which sees the layer's input, as HydraLoRA's does; the authors' sees the
    number of the task, for data of several tasks. ΔW depends on the token, so it can be neither merged nor converted.

    A saved adapter has, for each module, ``moelora_A`` (K, r, n), ``moelora_B`` (K, m, r) and ``moelora_route`` (K, n).
    A and G start Kaiming-uniform, the B_k at zero.

    Attributes
    ----------
    num_experts : K. r is the rank of one expert.

    Examples
    --------
    >>> MoeloraConfig(r=4).num_experts
    3
    """

    num_experts: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("MOELORA")
        _expect(_is_count(self.num_experts), "num_experts", self.num_experts, "a positive integer")


def _expect(condition: bool, name: str, value: Any, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {value!r}; expected {expected}")


def _near(init: str, target: Any, trained: bool) -> Any:
    """What the factors start near to; None for the usual start."""
    if init == "default" and target is None:
        return None
    from .initial import target_of  # here: the analysis is a slow import

    return target_of(init, target, trained)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _values(setting: Any) -> list[Any]:
    return list(setting.values()) if isinstance(setting, dict) else [setting]
