"""How a method's tensors lie in a file that we write, and the update that they make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..files.tensors import Array
from ..updates.checks import coarsest
from ..updates.contract import FactorError, Update

Arrays = Mapping[str, Array]
Settings = Mapping[str, Mapping[str, Any]]  # module → what the configuration should say of it


def same(settings: Settings) -> dict[str, Any]:
    """The settings that all modules share; None stays where they differ."""
    names = dict.fromkeys(name for own in settings.values() for name in own)
    values = {name: [own.get(name) for own in settings.values()] for name in names}
    return {name: all_of[0] if all(v == all_of[0] for v in all_of) else None for name, all_of in values.items()}


def patterned(name: str) -> Callable[[Settings], dict[str, Any]]:
    """The commonest value, and the paths of the modules that differ from it.

    PEFT's C³A and FourierFT look for whole paths, other than :func:`exactly` suits.
    """

    def config(settings: Settings) -> dict[str, Any]:
        usual = Counter(own[name] for own in settings.values()).most_common(1)[0][0]
        others = {module: own[name] for module, own in settings.items() if own[name] != usual}
        return same(settings) | {name: usual, f"{name}_pattern": others}

    return config


@dataclass(frozen=True)
class Form:
    """The layout of one method.

    Attributes
    ----------
    keys : part → end of its key; with ``{k}`` in it the part has a leading axis of experts, each a tensor of its own.
    build : arrays, scaling and BoRA's activation → the update; FactorError where they do not fit.
    rank : arrays → r; None for a method that has none.
    settings : arrays → what else the configuration says of a module.
    config : those of all modules → what the configuration says.
    alpha : its name there; None for a method without α, whose scaling is 1.
    shared : part → key of a tensor that all modules have in common and that is stored once; with ``{layer}`` in it,
        one for each module; with ``{kind}``, one for each kind of module.
    told : parts that are no tensors: ``shape``, (m, n), goes into the configuration, because no tensor of the method
        tells it; ``layer`` is the module's place among all, for what PEFT numbers; ``kind`` is the name of the modules
        that share a tensor; ``settings`` sees to others.
    split : part with ``{k}`` in its key → the told part with the number of rows of each of its tensors, which then lie
        one below another instead of on an axis of their own.
    named : module path → what stands before the end of a key.
    alpha_key : end of the key of the α of each module, for a layout that has it in the weight file.
    """

    keys: Mapping[str, str]
    build: Callable[[Arrays, float, str], Update]
    rank: Callable[[Arrays], int] | None
    settings: Callable[[Arrays], dict[str, Any]] = lambda _: {}
    alpha: str | None = "lora_alpha"
    config: Callable[[Settings], dict[str, Any]] = same
    shared: Mapping[str, str] = field(default_factory=dict)
    told: tuple[str, ...] = ()
    split: Mapping[str, str] = field(default_factory=dict)
    named: Callable[[str], str] = "base_model.model.{}".format
    alpha_key: str = ""

    def tensors(self, module: str, arrays: Arrays) -> Iterator[tuple[str, str, Array]]:
        """Part, key and numbers of every tensor of a module."""
        for part, key in self.shared.items():
            yield part, key.format(**arrays), arrays[part]
        for part, suffix in self.keys.items():
            array: Any = arrays[part]
            if part in self.split:
                array = np.split(array, np.cumsum(arrays[self.split[part]])[:-1])
            each = enumerate(array) if "{k}" in suffix else [(0, array)]
            yield from ((part, f"{self.named(module)}.{suffix.format(k=k)}", own) for k, own in each)

    def check(self, arrays: Arrays, activation: str) -> None:
        """Build the update once: its constructor raises what does not fit."""
        parts = [*self.keys, *self.shared, *self.told]
        if set(arrays) != set(parts):
            raise FactorError("factors", f"are {', '.join(arrays)}; expected {', '.join(parts)}")
        try:
            self.build(arrays, 1.0, activation)
        except FactorError:
            raise
        except (ValueError, IndexError):  # a reader looks at the shapes before it builds
            shapes = ", ".join(f"{part} {array.shape}" for part, array in arrays.items())
            raise FactorError("factors", f"do not fit together: {shapes}") from None


def columns(array: Array) -> int:
    return array.shape[-2]


def size(a: Arrays, part: str, axis: int) -> tuple[int, int]:
    """(m, n) of ``shape``; the named part's axis must be m."""
    m, n = a["shape"].tolist()
    if a[part].shape[axis] != m:
        raise FactorError(part, f"has shape {a[part].shape}; expected m = {m} as in shape")
    return m, n


def stored(a: Arrays) -> str:
    return coarsest(array.dtype.name for array in a.values() if array.dtype.kind == "f")
