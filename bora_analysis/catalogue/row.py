"""What a row of the catalogue says of a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import formulas as f


@dataclass(frozen=True)
class Blocks:
    """The blocks of a method.

    Attributes
    ----------
    word : name of one block: ``"block"``, ``"mini"``, ``"expert"`` …
    default : number of blocks of a random adapter.
    divides : whether the number must divide m and n. splits : whether it must also divide r.
    pads : whether a layer may be padded where the number does not divide m or n.
    trained : default number for ``train`` (as in BoRA, arXiv 2508.06953, §4.1); None: ``default``.
    """

    word: str
    default: int
    divides: bool = True
    splits: bool = False
    trained: int | None = None
    pads: bool = False


@dataclass(frozen=True)
class Training:
    """How ``train`` configures a method.

    Attributes
    ----------
    config : module and class of PEFT's configuration; empty: the matrices themselves are trained, without PEFT.
    fixed : settings of the configuration that select this method.
    passed : further settings of the configuration → the option of ``train`` that they come from, or what follows from
        options (see :func:`bora_analysis.training.peft_configs.peft_config`). ``"a.b"`` is b of the configuration in a.
    own : whether an option that is not given has the configuration's own default. Else it has that of ``train``, the
        paper's: for LoRA and its relatives.
    procedure : what the loop does besides, a name of :data:`bora_analysis.training.procedures.PROCEDURES`.
    options : options of ``train`` that the procedure uses.
    """

    config: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    passed: Mapping[str, str] = field(default_factory=dict)
    own: bool = False
    procedure: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Formula:
    """The cost of one adapted matrix, as a function and in words.

    Attributes
    ----------
    count : sizes → cost.
    parameters, macs, bound : the same in words, for one W ∈ R^{m×n}.
    note : assumptions of the formula. beside : remark to print wherever the parameters are shown.
    shared : numbers trained once for all matrices, which ``count`` leaves out.
    any_rank : whether r may exceed the full rank of the matrix.
    stages : what is done besides one training run, and how often, for a method of several stages.
    """

    count: Callable[[f.Sizes], f.Cost]
    parameters: str
    bound: str
    macs: str = "the same"
    note: str = ""
    beside: str = ""
    any_rank: bool = False
    stages: str = ""
    shared: int = 0


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
    training : None for a method that ``train`` does not accept. untrained : why it does not.
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
    untrained: str = ""
    needs_base: bool = False
    initialises: str = ""

    @property
    def experts(self) -> bool:
        """Whether its blocks are experts, which a router mixes."""
        return self.blocks is not None and self.blocks.word == "expert"

    @property
    def staged(self) -> bool:
        """Whether its blocks are trained one after another, and each is merged before the next."""
        return self.blocks is not None and self.blocks.word == "stage"

    @property
    def accompanied(self) -> bool:
        """Whether its adapters are read beside another file: the base model's, or that of their start."""
        return self.needs_base or bool(self.initialises)

    @property
    def cut(self) -> bool:
        """Whether it cuts the layer into blocks."""
        return self.blocks is not None and not self.experts and not self.staged

    @property
    def splits(self) -> bool:
        """Whether its blocks split r."""
        return self.blocks is not None and self.blocks.splits
