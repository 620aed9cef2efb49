"""The modules of an adapter as a layout has them: their names there, and the experts of a mixture alone or together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..adapters import Adapter, AdapterError
from ..files.base_model import BaseWeights
from ..files.keys import natural
from ..files.layouts import OUT
from ..files.layouts.gguf import of_transformers
from ..files.layouts.names import Name, names_of
from ..files.layouts.out import Layer, together
from ..files.layouts.peft import REGISTERED
from ..files.tensors import open_tensors
from ..patterns import late
from ..updates.blocks import lora
from ..updates.contract import Update

# A mixture's experts: in one parameter of transformers, each a module, or in MLX's SwitchLinear.
_EXPERT = late(
    r"(?P<stem>.+)\.(experts\.(?P<fused>[A-Za-z_]\w*)\.(?P<e>\d+)|experts\.(?P<f>\d+)\.(?P<single>\w+)"
    r"|switch_mlp\.(?P<stacked>\w+)\.(?P<g>\d+))"
)
_STACK = late(r".+\.(switch_mlp\.\w+|\w+_exps)\.\d+")  # the names of MLX's and llama.cpp's stacks
_HALVES = ("gate_proj", "up_proj")  # the rows of gate_up_proj, one after the other
_MIXTRAL = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}  # before transformers 5
_NAMED = ("kohya", "comfyui", "diffusers")  # layouts whose names have the part of the pipeline before the path


def with_experts(adapter: Adapter, layout: str) -> Adapter:
    """The adapter with its experts as the layout has them: each a module, or as they are."""
    wanted = OUT[layout].experts
    loaders = {}
    fused: dict[str, bool] = {}  # stack → whether PEFT has it as a parameter
    for module, load in adapter.loaders.items():
        hit = _EXPERT.fullmatch(module)
        if hit and hit["fused"] and wanted == "fused":
            stack = f"{hit['stem']}.{hit['fused']}"
            fused[stack] = load().facts.kind == "parameter" if stack not in fused else fused[stack]
            hit = None if fused[stack] else hit
        if hit is None or wanted is None or (wanted == "fused" and hit["single"]):
            loaders[module] = load
            continue
        name, expert = hit["fused"] or hit["single"] or hit["stacked"], hit["e"] or hit["f"] or hit["g"]
        base, stem = str(adapter.base_model).lower(), hit["stem"]
        if name == "gate_up_proj" and "gpt-oss" in base:
            where = adapter.path or adapter.name
            raise AdapterError(
                f"{where}: {module}: the rows of gate and up alternate in gpt-oss; {layout} has them apart"
            )
        if "mixtral" in base and wanted in ("single", "stacked"):
            stem = re.sub(r"\.mlp$", ".block_sparse_moe", stem)
        for half, own in enumerate(_HALVES) if name == "gate_up_proj" else [(None, _MIXTRAL.get(name, name))]:
            if stem.endswith("block_sparse_moe") and wanted != "stacked":
                own = next(short for short, long in _MIXTRAL.items() if long == own)
            path = f"switch_mlp.{own}.{expert}" if wanted == "stacked" else f"experts.{expert}.{own}"
            loaders[f"{stem}.{path}"] = lambda load=load, half=half: _half(load(), half)
    return replace(adapter, loaders={module: loaders[module] for module in sorted(loaders, key=natural)})


def of_llama_cpp(adapter: Adapter, config: Mapping[str, Any]) -> Adapter:
    """An adapter from a GGUF file with transformers' names and order of rows."""
    architecture = None if adapter.path is None else open_tensors(adapter.path).metadata.get("general.architecture")
    loaders = {}
    for module, load in adapter.loaders.items():
        try:
            path, order = of_transformers(module, architecture, config)
        except AdapterError as error:
            raise AdapterError(f"{adapter.path or adapter.name}: {error}; or keep the layout (--layout same)") from None
        loaders[path] = lambda load=load, order=order: _moved(load(), order)
    return replace(adapter, loaders=loaders, layout=None)


def _moved(update: Update, order: Callable[[int], Any]) -> Update:
    left, right = update.factors()
    rows = np.empty_like(left)
    rows[order(len(left))] = left
    return replace(lora(rows, right, any_rank=True), facts=update.facts)


def _half(update: Update, half: int | None) -> Update:
    """An expert as a layer of its own: all its rows, or the first or second half."""
    facts: Any = replace(update.facts, kind="linear")
    if half is None:
        return replace(update, facts=facts)  # pyright: ignore[reportArgumentType, reportCallIssue]
    left, right = update.factors()
    rows = np.split(left, 2)[half]
    whole = lora(rows, right, method=facts.method, dtype=facts.dtype, any_rank=True)
    size = facts.parameters * (len(rows) + right.shape[1]) // (len(left) + right.shape[1])
    kept = replace(whole.facts, r=facts.r, scaling=facts.scaling, parameters=size, macs_per_token=size)
    return replace(whole, facts=kept)


def paths(adapter: Adapter, layout: str, base: BaseWeights | None) -> dict[str, str]:
    """Module → its path in the layout; AdapterError for one that the layout cannot name."""
    where, out = adapter.path or adapter.name, OUT[layout]
    if layout == adapter.layout and layout != "diffusers":  # whose old names are renewed
        return {module: module for module in adapter}
    names = {module: Name("", module) for module in adapter}
    if adapter.layout in _NAMED:
        names = names_of(adapter, base)
    if layout in _NAMED:  # a CLIP alone
        text = "text_model."
        names = {
            module: Name("text_encoder", name.path) if not name.part and (name.path or "").startswith(text) else name
            for module, name in names.items()
        }
    parts = sorted({name.part for name in names.values()})
    if len(parts) > 1 and layout not in _NAMED:
        raise AdapterError(
            f"{where}: holds {len(parts)} models ({', '.join(parts)}), and {layout} holds one; choose with modules "
            "(--modules), or another layout"
        )
    found = {}
    for module, (part, path) in names.items():
        if path is None and layout != "kohya":
            raise AdapterError(
                f"{where}: {module}: which of its underscores are dots in {layout} is not known; give the base model "
                "(--base), or keep the layout (--layout same)"
            )
        try:
            found[module] = out.name(part, path or module, module)
        except AdapterError as error:
            raise AdapterError(f"{where}: {module} {error}") from None
    if any(path.startswith("lora_te2_") for path in found.values()):
        found = {module: re.sub(r"^lora_te_", "lora_te1_", path) for module, path in found.items()}
    return found


def arranged(layers: Iterable[Layer], layout: str, modules: Mapping[str, Any], where: object) -> Iterator[Layer]:
    """Layers of one rank where the layout has one for them: experts as one, the parts of nn.MultiheadAttention."""
    nested: dict[str, list[str]] = {}  # parameters of a module, in the order of their wrappers
    for module in modules:
        stem, parameter = _parameter(module)
        if parameter not in nested.setdefault(stem, []):
            nested[stem].append(parameter)

    def group(layer: Layer) -> str | None:
        if layer.kind == "parameter" or (OUT[layout].experts == "stacked" and _STACK.fullmatch(layer.module)):
            return ".".join(_parameter(layer.module))
        return layer.module.removesuffix(".out_proj") if layer.kind == "attention" else None

    for held in together(layers, group):
        width = max(layer.r for layer in held)
        held = [layer.padded(width) for layer in held]
        first, stack = held[0], group(held[0])
        if stack is None:
            yield first
        elif first.kind == "attention":
            if first.module != stack:
                raise AdapterError(f"{where}: {first.module} is a part of {stack}, which PEFT needs too")
            yield from held
        else:
            numbers = [int(layer.module.rpartition(".")[2]) for layer in held if layer.module != stack]
            if numbers != list(range(len(numbers))):
                raise AdapterError(f"{where}: {stack} has the experts {numbers}; expected all of them, from 0 on")
            stem, _ = _parameter(first.module)
            order = sorted(nested[stem], key=lambda name: REGISTERED.index(name) if name in REGISTERED else -1)
            if first.kind == "parameter" and len(order) > 1 and not set(order) <= set(REGISTERED):
                told = ", ".join(order)
                raise AdapterError(f"{where}: {stem}: the order in which PEFT wraps the parameters {told} is not known")
            outer = len(order) - 1 - order.index(stack.rpartition(".")[2])
            B, A = np.stack([layer.B for layer in held]), np.stack([layer.A for layer in held])
            yield replace(first, module=stack, B=B, A=A, nesting=".base_layer" * outer)


def _parameter(module: str) -> tuple[str, str]:
    """Module and name of an adapted parameter, whose last part may be the number of an expert."""
    stem, _, name = re.sub(r"\.\d+$", "", module).rpartition(".")
    return stem, name
