"""What the layouts out share: the LoRA of one layer, and the task of writing a file of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...atomic import replacing
from ..configuration import CONFIG_NAME
from ..errors import AdapterError
from ..keys import exactly
from ..tensors import Array, Raw
from ..tensors_out import TensorsOut


@dataclass(frozen=True)
class Layer:
    """The LoRA of one layer, ΔW = scaling · B A.

    Attributes
    ----------
    module : its path in the layout that is written.
    B, A : (m, r) and (r, n); of all experts (E, m, r) and (E, r, n); of a grouped convolution B is (m, r/groups).
    nesting : of a module's parameter in PEFT's layout, ``.base_layer`` for each that is wrapped around it.
    kind, kernel, groups : of its :class:`bora_analysis.updates.contract.Facts`.
    """

    module: str
    B: Array
    A: Array
    scaling: float = 1.0
    kind: str = "linear"
    kernel: tuple[int, ...] = ()
    groups: int = 1
    nesting: str = ""

    @property
    def r(self) -> int:
        return self.A.shape[-2]

    def padded(self, r: int) -> Layer:
        """With zeros up to rank r; the scaling stays."""
        if r == self.r:
            return self
        more = (r - self.r) // self.groups
        A = self.A.reshape(*self.A.shape[:-2], self.groups, -1, self.A.shape[-1])
        A = np.pad(A, [(0, 0)] * (A.ndim - 2) + [(0, more), (0, 0)]).reshape(*self.A.shape[:-2], r, -1)
        return replace(self, A=A, B=np.pad(self.B, [(0, 0)] * (self.B.ndim - 1) + [(0, more)]))

    @property
    def shaped(self) -> tuple[Array, Array]:
        """B and A in the shapes of a convolution's layers, (m, r, 1…) and (r, channels, kernel…), where it is one."""
        if not self.kernel:
            return self.B, self.A
        return self.B.reshape(*self.B.shape, *(1 for _ in self.kernel)), self.A.reshape(self.r, -1, *self.kernel)


class Told(NamedTuple):
    """What a configuration says of a module."""

    r: int
    scaling: float


@dataclass
class Job:
    """What is written, and where.

    Attributes
    ----------
    place : the folder, or the file of a layout that is one file.
    layers : taken one at a time.
    dtype : of the factors.
    settings : of the base model and its layers, for a configuration.
    metadata : of the file whose layout is kept; empty for others.
    base : the base model's config.json; empty where it was not given.
    others : key → tensor that goes into the file as it is.
    told : module → r and scaling, once it is written.
    """

    place: Path
    layers: Iterable[Layer]
    dtype: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    base: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Raw] = field(default_factory=dict)
    told: dict[str, Told] = field(default_factory=dict)

    def save(
        self,
        name: str,
        tensors: Callable[[Layer], Mapping[str, Array]],
        *,
        config: Callable[[], Mapping[str, Any]] | None = None,
        metadata: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """Write the weights, and the configuration beside them, both complete before either has its name.

        Parameters
        ----------
        name : of the weights' file.
        tensors : the tensors of a layer, by key.
        config, metadata : asked when all layers are written. An empty entry of the metadata takes one away.
        """
        alone = config is None and self.place.suffix == Path(name).suffix and not self.place.is_dir()
        place = self.place if alone else self.place / name
        with replacing(place) as weights, TensorsOut(place.parent) as out:
            for layer in self.layers:
                self.told[layer.module] = Told(layer.r, layer.scaling)
                for key, array in tensors(layer).items():
                    narrow = array.ndim == 0 and self.dtype in ("float16", "bfloat16")  # an α, of which all depends
                    try:
                        out.add(key, array, "float32" if narrow else self.dtype)
                    except OverflowError as error:
                        raise AdapterError(f"{place}: {key} {error}") from None
            if not self.told:
                raise AdapterError(f"{place}: there are no modules to write")
            for key, raw in self.others.items():
                out.copy(key, raw)
            told = {"format": "pt"} | dict(self.metadata) | dict(metadata())
            out.save(weights, {key: value for key, value in told.items() if value})
            if config is not None:
                with replacing(place.with_name(CONFIG_NAME)) as path:
                    text = json.dumps(config(), indent=2, ensure_ascii=False)
                    path.write_text(text + "\n", encoding="utf-8")


class Out(NamedTuple):
    """One layout out: a row of the table.

    Attributes
    ----------
    write : writes the layers.
    name : the path of a module in this layout, from its part of the model, its path there, and the name it had.
    claims : whether keys are of this layout.
    file : of the weights.
    kinds : of layers that it can hold.
    experts : how it holds those of a mixture: ``"fused"`` as they are, ``"single"``, each a module; ``"stacked"``, all
        in a tensor; None for not at all.
    one_rank : whether all modules must have one rank.
    configured : whether a configuration stands beside the weights.
    """

    write: Callable[[Job], None]
    name: Callable[[str, str, str], str]
    claims: Callable[[list[str]], bool]
    file: str
    kinds: tuple[str, ...] = ("linear", "conv")
    experts: str | None = None
    one_rank: bool = False
    configured: bool = False


def lora_settings(told: Mapping[str, Told]) -> dict[str, Any]:
    """r and α of PEFT's configuration, with patterns for the modules that differ.

    r is the largest, so that a server which knows no patterns allots enough, and scales as most modules are.
    """
    r = max(own.r for own in told.values())
    scaling = Counter(own.scaling for own in told.values()).most_common(1)[0][0]
    alphas = {module: _number(own.r * own.scaling) for module, own in told.items()}
    alpha = _number(r * scaling)
    return {
        "r": r,
        "lora_alpha": alpha,
        "use_rslora": False,
        "rank_pattern": {exactly(module): own.r for module, own in told.items() if own.r != r},
        "alpha_pattern": {exactly(module): own for module, own in alphas.items() if own != alpha},
    }


def _number(value: float) -> float | int:
    value = float(value)
    return int(value) if value.is_integer() else value


def together(layers: Iterable[Layer], group: Callable[[Layer], str | None]) -> Iterator[list[Layer]]:
    """Neighbours of one group as a list; a layer of no group, None, alone."""
    held: list[Layer] = []
    of: str | None = None
    for layer in layers:
        own = group(layer)
        if held and (own is None or own != of):
            yield held
            held = []
        held, of = [*held, layer], own
    if held:
        yield held
