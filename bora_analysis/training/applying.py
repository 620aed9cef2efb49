"""A cut of an adapter in a model in memory: into the weights, or as a pair of factors beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..adapters import Adapter
from ..files.base_model import BaseWeights
from ..files.errors import AdapterError
from ..files.keys import module_path
from ..files.tensors import open_tensors
from ..linalg import Array
from ..patterns import late

# What PEFT puts into the path of a module that it trains whole, or whose bias it trains.
_WRAPPED = late(r"\.(modules_to_save(\.default)?|base_layer)(?=\.)")
# The bias of LoRA's factor B, which is scaled like ΔW.
_BIAS_OF_B = late(r"\.lora_B(\.default)?\.bias$")
#: How a cut is applied. A weight of half the precision would round most of ΔW away, so there the pair is used.
WAYS = ("auto", "merged", "pair")


class AdaptedModel:
    """A base model that takes the cuts of one adapter after another, and is itself again after :meth:`restore`.

    Merged, W0 + L R replaces the weight, and W0 is kept. That costs m·n·k once instead of (m+n)·k for every token,
    which is less from some hundred tokens on. As a pair, L (R x) is added to the layer's output, in float32.

    Parameters
    ----------
    model : of transformers, with its own weights.
    missing : names of parameters that its files lacked. An adapter must bring them.
    way : one of :data:`WAYS`.
    """

    def __init__(self, model: Any, missing: tuple[str, ...] = (), way: str = "auto"):
        self.model, self.missing, self.way = model, missing, way
        self._own: dict[tuple[int, str], tuple[Any, str, Any]] = {}  # what was replaced: module, attribute, value
        self._hooks: list[Any] = []
        self._named = dict(model.named_modules())

    def restore(self) -> None:
        """Undo everything."""
        self._drop_hooks()
        for module, attribute, value in self._own.values():
            setattr(module, attribute, value)
        self._own.clear()

    def take_over(self, adapter: Adapter) -> None:
        """What the adapter's file holds beside ΔW: heads that were trained whole, and biases.

        Raises
        ------
        AdapterError
            A tensor that has no place in the model, or another shape there; a head that neither of them has.
        """
        brought = set[str]()
        keys = [key for key in adapter.passed_over if ".original_module." not in key]
        keys.sort(key=lambda key: ".lora_B." in key)  # these are added to the biases
        if keys and adapter.path is None:
            raise AdapterError(
                f"{adapter.name}: is in memory, where {keys[0]} beside ΔW cannot be found; name the folder that it was "
                "saved to"
            )
        tensors: Any = None
        for key in keys:
            if tensors is None:
                assert adapter.path is not None
                tensors = BaseWeights(adapter.path) if adapter.method == "full" else open_tensors(adapter.path)
            path = _WRAPPED.sub("", module_path(key))
            scaling = None
            if _BIAS_OF_B.search(path):
                path = _BIAS_OF_B.sub(".bias", path)
                scaling = adapter[path.removesuffix(".bias")].facts.scaling
            place = f"{adapter.path}: {key}"
            name, module = self._module(path.rpartition(".")[0], place)
            brought.add(f"{name}.{path.rpartition('.')[2]}")
            self._set(place, module, path.rpartition(".")[2], tensors.read(key), scaling)
        lacking = [name for name in self.missing if name not in brought]
        if lacking:
            raise AdapterError(
                f"{adapter.path or adapter.name}: neither it nor the base model has {', '.join(lacking[:3])}; "
                "expected an adapter that was trained with the head of this task"
            )

    def apply(self, adapter: Adapter, pairs: Mapping[str, tuple[Array, Array]]) -> None:
        """Put L R of each module into the model, in place of what was there of the last cut.

        Parameters
        ----------
        pairs : module → (m, k) and (k, n), k may be 0.

        Raises
        ------
        AdapterError
            A module that the model lacks, of another shape, or of a kind into which no ΔW can be put.
        """
        self._drop_hooks()
        for path, (left, right) in pairs.items():
            place = f"{adapter.path or adapter.name}: {path}"
            _, module = self._module(path, place)
            if adapter_kind(module) is None:
                raise AdapterError(
                    f"{place}: is a {type(module).__name__} in the model; expected a linear layer, an embedding or a "
                    "convolution with weights that are not quantised"
                )
            self._put(place, module, left, right)

    def _put(self, place: str, module: Any, left: Array, right: Array) -> None:
        import torch

        kind = adapter_kind(module)
        own = self._of_base(module, "weight")
        shape = _matrix(own, kind).shape
        if kind == "conv" and module.groups > 1 and shape[1] < right.shape[1]:
            raise AdapterError(
                f"{place}: is a convolution in {module.groups} groups, and its ΔW spans the channels of all, so the "
                "weight cannot hold it; expected other layers"
            )
        if shape != (left.shape[0], right.shape[1]):
            raise AdapterError(
                f"{place}: ΔW is {left.shape[0]}×{right.shape[1]}, the model's weight {shape[0]}×{shape[1]}; is it the "
                "model that was adapted?"
            )
        half = own.dtype in (torch.float16, torch.bfloat16)
        if half and kind == "conv" and self.way != "merged":
            raise AdapterError(
                f"{place}: is a convolution in half precision, which would round ΔW away; expected the model in "
                "float32 (--dtype float32)"
            )
        if self.way == "pair" or (self.way == "auto" and half):
            if left.shape[1]:
                self._hooks.append(module.register_forward_hook(_beside(own, kind, left, right)))
            return
        L, R = (torch.from_numpy(factor.astype("float32")).to(own.device) for factor in (left, right))
        with torch.no_grad():
            merged = torch.addmm(_matrix(own, kind).float(), L, R)  # (m, n)
            merged = merged.T if kind in _TRANSPOSED else merged
            weight = merged.reshape(own.shape).to(own.dtype).contiguous()
        self._replace(module, "weight", torch.nn.Parameter(weight, requires_grad=False))

    def _set(self, place: str, module: Any, attribute: str, array: Array, scaling: float | None) -> None:
        """Replace a parameter, or add to it where ``scaling`` is given."""
        import torch

        own = getattr(module, attribute, None)
        if not isinstance(own, torch.Tensor):
            raise AdapterError(
                f"{place}: stands beside ΔW, and the model has no place for it; expected heads and biases of the model"
            )
        if tuple(own.shape) != array.shape:
            raise AdapterError(
                f"{place}: has shape {array.shape}, in the model {tuple(own.shape)}; is it of this task?"
            )
        value = torch.from_numpy(array.copy()).to(own.device)
        if scaling is not None:
            value = own + scaling * value
        value = value.to(own.dtype)
        is_parameter = isinstance(own, torch.nn.Parameter)
        self._replace(module, attribute, torch.nn.Parameter(value, requires_grad=False) if is_parameter else value)

    def _module(self, path: str, place: str) -> tuple[str, Any]:
        """A module by its path, which may differ from the model's by the first name, such as ``bert.``"""
        if path in self._named:
            return path, self._named[path]
        tail = path.partition(".")[2]
        found = [name for name in self._named if name.partition(".")[2] == path or (tail and name == tail)]
        if len(found) != 1:
            near = [name for name in self._named if name.rpartition(".")[2] == path.rpartition(".")[2]]
            such = f"; it has {near[0]}" if near else ""
            raise AdapterError(f"{place}: the model has no module {path}{such}; is it the model that was adapted?")
        return found[0], self._named[found[0]]

    def _of_base(self, module: Any, attribute: str) -> Any:
        """The base model's own parameter."""
        held = self._own.get((id(module), attribute))
        return getattr(module, attribute) if held is None else held[2]

    def _replace(self, module: Any, attribute: str, value: Any) -> None:
        self._own.setdefault((id(module), attribute), (module, attribute, getattr(module, attribute)))
        setattr(module, attribute, value)

    def _drop_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


# The weight lies as (n, m).
_TRANSPOSED = ("conv1d", "embedding")


def adapter_kind(module: Any) -> str | None:
    """linear, conv1d (transformers' own linear layer), embedding or conv; None for what takes no ΔW."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    weight = getattr(module, "weight", None)
    if weight is None or not weight.is_floating_point():
        return None
    if isinstance(module, Conv1D):
        return "conv1d"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return "conv"
    return "linear" if isinstance(module, nn.Linear) else None


def _matrix(weight: Any, kind: str | None) -> Any:
    """The weight as a view in the orientation of ΔW."""
    return weight.T if kind in _TRANSPOSED else weight.reshape(weight.shape[0], -1)


def _beside(weight: Any, kind: str | None, left: Array, right: Array) -> Any:
    """A hook that adds L (R x) to a layer's output."""
    import torch
    from torch.nn import functional

    if kind == "conv":
        raise ValueError("a convolution takes its ΔW in the weight")
    L, R = (torch.from_numpy(factor.astype("float32")).to(weight.device) for factor in (left, right))

    def add(module: Any, inputs: Any, output: Any) -> Any:
        x = inputs[0]
        inner = functional.embedding(x, R.T) if kind == "embedding" else x.float() @ R.T
        return (output.float() + inner @ L.T).to(output.dtype)

    return add
