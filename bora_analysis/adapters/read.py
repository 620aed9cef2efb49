"""``read_adapter``: from a path, a Hub id, a state dict or a model to the adapters in it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from ..catalogue import METHODS
from ..catalogue.module_names import projection
from ..files.adapter_file import Found, Loader, Source, of_layer, peft_type
from ..files.aliases import aliases
from ..files.base_model import BaseWeights, model_paths
from ..files.configuration import read_configuration
from ..files.errors import AdapterError, BaseNeededError, counted, readable
from ..files.in_memory import InMemory
from ..files.keys import biases, natural
from ..files.layouts import layout_of, translate
from ..files.tensors import Tensors, open_tensors
from ..methods import readers
from ..methods.bora import activation as activation_of
from ..methods.unreadable import refuse_unreadable
from ..updates.contract import Update
from .adapter import Adapter, Trajectory
from .in_memory import base_of, is_state_dict, model_of, open_model, settings_of
from .initialisation import changes_base, init_warnings, relative
from .locate import (
    HUB_ID,
    Located,
    base_beside,
    download,
    first_step,
    homes_and_runs,
    located,
    named,
    near,
    some,
    step_of,
    twins,
)
from .model_difference import difference
from .reading import Options, Reading

#: What stands for an adapter, in the words of messages.
TAKEN = (
    "a path or Hub id, an Adapter, a Trajectory, a mapping of module to Update, a state dict (with config=), a model "
    "of PEFT or transformers with an adapter, or a list of these"
)
#: The warning of an adapter without α.
NO_ALPHA = "α is stored nowhere, so the scaling is taken as 1 (α = r); set it with alpha (--alpha)"


def read_adapter(source: Any, **reading: Unpack[Options]) -> Adapter | Trajectory:
    """Read an adapter, or a fine-tuned model: names and shapes now, the factors when asked for.

    Every function that takes adapters takes what this one takes, with the same options, and lists of it.

    Parameters
    ----------
    source : a PEFT folder, a weight file (an ``adapter_config.json`` beside it is used), a folder of checkpoints
        (``checkpoint-N``, or mlx-lm's files), or an ``org/name`` of the Hugging Face Hub that is no path here. From
        memory: a state dict of tensors or arrays; a model of PEFT, or of transformers with ``add_adapter``, compiled or
        data-parallel too, whose tensors are copied when a module is read, with the values of that moment; a mapping of
        module to update; what this function returned.
    alpha : α of every module, in place of the file's. Needed where the file stores none: without it the scaling is
        taken as 1, and a warning of the adapter says so.
    activation : for BoRA, how Σ comes from the stored σ, see :func:`bora_analysis.updates.blocks.activate`;
        ``"identity"`` for a file that stores Σ itself. By default the configuration's, else ``"exp-norm"``.
    method : where keys and configuration leave it open: ``"rslora"`` for factors with no configuration that says so,
        ``"melora"`` for numbered ones where there is one. For other files it is a check: another method is an error.
    experts : for HydraLoRA, MoELoRA and Lily, whose update depends on a router: ``"mean"``, the uniform mean of the
        experts; ``"each"``, every expert as a module of its own, ``<module>.0`` …; ``"stacked"``, the experts on top of
        each other, a bound on every mixture; or module path → inputs of its router (T, n), for the mean over them. See
        :func:`bora_analysis.updates.mixture.mixed`.
    initial : an adapter as it was before training, where training began with factors that are not zero and were taken
        out of the base model (PiSSA, LoRA-GA): the update is then the difference. By default ``checkpoint-0`` of the
        same run, as `train` writes it, if it is there.
    shapes : module path → (out_features, in_features) of the base model's layers, which the files of some methods do
        not store (VeRA, MiSS, FourierFT and others).
    name : the adapter's name, by default taken from the path.
    base : the base model: a folder, a weight file, or an ``org/name`` of the Hub. Methods whose update
        depends on its weights need it (DoRA, HiRA, OFT, IA³ and others), and so does a folder with a whole fine-tuned
        model, whose update is then the difference of the two. By default the model in the adapter's folder that its
        configuration names as ``./NAME``, as ``synth`` writes it, if it is there.
    steps : where checkpoints lie beside a final adapter, read them in place of it.
    config : the content of ``adapter_config.json``, or a configuration of PEFT, for a state dict; for a path in place
        of the file's.
    adapter : which adapter of a model in memory, by default the active one.
    modules : regular expression; only modules in whose path it is found.

    Returns
    -------
    Adapter or Trajectory
        A :class:`Trajectory` for a folder of checkpoints.

    Raises
    ------
    AdapterError
        One line that names the file and the key, and says what was found and expected.
    TypeError
        A source of another kind, an unknown option, or an option for what has been read already.

    Examples
    --------
    >>> import numpy as np
    >>> from tempfile import TemporaryDirectory
    >>> from bora_analysis import read_adapter, write_adapter
    >>> factors = {"B": np.ones((4, 1)), "A": np.ones((1, 3))}
    >>> with TemporaryDirectory() as folder:
    ...     adapter = read_adapter(write_adapter(folder, "lora", {"layers.0.q_proj": factors}, alpha=2))
    ...     print(list(adapter), adapter["layers.0.q_proj"].facts.scaling)
    ['layers.0.q_proj'] 2.0
    >>> state = {"q.lora_A.weight": np.ones((1, 3)), "q.lora_B.weight": np.ones((4, 1))}
    >>> read_adapter(state, config={"peft_type": "LORA", "r": 1, "lora_alpha": 2})["q"]
    LoRA 4×3, r = 1, rank ≤ 1
    """
    wish = Reading.of(reading)
    if isinstance(source, Adapter | Trajectory):
        wish.check_read(source)
        found = source
    elif isinstance(source, Mapping) and source and all(hasattr(update, "facts") for update in source.values()):
        replace(wish, name=None).check_read(source)
        found = Adapter.from_updates(wish.name or "updates", source)
    elif isinstance(source, str | os.PathLike):
        found = _read_path(os.fspath(source), wish.resolved(_read_initial))
    elif is_state_dict(source):
        title = wish.name or "state dict"
        found = adapter_of(InMemory(title, source), settings_of(wish.config), title, None, wish.resolved(_read_initial))
    elif (model := model_of(source)) is not None:
        tensors, config, title = open_model(model, wish.adapter)
        wish = replace(wish, base=base_of(model) if wish.base is None else wish.base)
        found = adapter_of(tensors, config, wish.name or title, None, wish.resolved(_read_initial))
    else:
        what = "None" if source is None else f"a {type(source).__name__}"
        raise TypeError(f"got {what}, which is no adapter; expected {TAKEN}")
    if isinstance(found, Adapter):
        return select(found, wish.modules)
    return replace(found, checkpoints=tuple(select(each, wish.modules) for each in found))


def select(adapter: Adapter, modules: str | None) -> Adapter:
    """The adapter with only the modules in whose path the regular expression is found; AdapterError if none."""
    if modules is None:
        return adapter
    try:
        pattern = re.compile(modules)
    except re.error as error:
        raise ValueError(f"modules {modules!r} is not a regular expression: {error}") from None
    kept = {module: load for module, load in adapter.loaders.items() if pattern.search(module)}
    if not kept:
        known = sorted({projection(module) for module in adapter})
        raise AdapterError(
            f"{adapter.path or adapter.name}: {modules!r} is found in none of the {len(adapter)} modules "
            f"(the first is {next(iter(adapter), 'none')}; projections: {', '.join(known)})"
        )
    return replace(adapter, loaders=kept)


def _read_initial(source: Any, **reading: Unpack[Options]) -> Adapter | Trajectory:
    """An adapter that is to be subtracted: as it is, for nothing came before it."""
    if isinstance(source, str | os.PathLike):
        return _read_path(os.fspath(source), Reading.of(reading), alone=True)
    return read_adapter(source, **reading)


def _read_path(text: str, wish: Reading, *, alone: bool = False) -> Adapter | Trajectory:
    place = Path(text)
    try:
        exists = place.exists()
    except (OSError, ValueError) as error:  # a name too long, or one with a null byte
        raise AdapterError(f"{text}: is no path: {error}") from None
    if not exists:
        if not HUB_ID.fullmatch(text):
            raise AdapterError(f"{text}: no such file or folder{near(text)}")
        place, wish = download(text), replace(wish, name=wish.name or text.partition("/")[2])
    places, runs = homes_and_runs(place, wish.steps)
    if places != [place]:
        title = readable(wish.name or named(place).name)
        found = tuple(_read_one(located(home), [], replace(wish, name=title), alone=alone) for home in places)
        _check_run(place, places, found)
        return Trajectory(title, found)
    beside = []
    if runs:
        told = f"{counted(len(runs), 'checkpoint')} beside this adapter"
        beside = [f"{told}; steps (--steps) reads them, or name one: {runs[0]}"]
    return _read_one(located(place), beside, wish, alone=alone)


def _read_one(found: Located, warnings: list[str], wish: Reading, *, alone: bool = False) -> Adapter:
    """One adapter; ``alone``: without the one that its run began with."""
    folder = None if found.folder is None else named(found.folder)
    step = step_of(found.weights if folder is None else folder)
    title = found.weights.stem if folder is None else folder.name if step is None else folder.parent.name
    title = readable(wish.name or title)
    if found.config is None:
        model = BaseWeights(found.weights)
        if any(re.search(r"\.lora_[AB](\.|$)", key) for key in model.keys()):  # noqa: SIM118  no mapping
            config = read_configuration(found.weights) if wish.config is None else settings_of(wish.config)
            adapter = adapter_of(model, config, title, step, wish)
            *_, path = model_paths(found.weights)
            return replace(adapter, path=path, warnings=(*warnings, *adapter.warnings))
        if wish.base is None:
            raise BaseNeededError(
                f"{found.weights}: is a whole model; its update needs the base model", ": --base DIR_OR_HUB_ID (base=)"
            )
        return difference(model, wish.base, title, step)
    config = read_configuration(found.config.parent) if wish.config is None else settings_of(wish.config)
    if wish.base is None and (own := base_beside(found.config.parent, config)):
        wish = replace(wish, base=BaseWeights(own))
    first = None if alone or wish.initial is not None or not changes_base(config or {}) else first_step(found)
    if first is not None:
        wish = replace(wish, initial=_read_one(first, [], wish, alone=True))
        told = (
            f"{first.folder or first.weights} is subtracted: training began with it, and with a base model without it"
        )
        warnings = [*warnings, told]
    adapter = adapter_of(open_tensors(found.weights), config, title, step, wish)
    beside = [f"{found.weights.name} is read, not {name} beside it" for name in twins(found.weights) if found.folder]
    return replace(adapter, path=found.weights, warnings=(*warnings, *beside, *adapter.warnings))


def _check_run(place: Path, homes: Sequence[Path], found: Sequence[Adapter]) -> None:
    """Raise where the checkpoints cannot be those of one run."""
    first = found[0]
    configs = [read_configuration(adapter.path.parent) if adapter.path else None for adapter in found]
    ranks = [(config or {}).get("r") for config in configs]
    for k, (home, adapter) in enumerate(zip(homes, found, strict=True)):
        ours, theirs = set(first), set(adapter)
        if first.method != adapter.method:
            told = f"{first.method} and {adapter.method}"
        elif ours != theirs:
            told = f"they have {len(ours)} and {len(theirs)} modules; one of them alone has {min(ours ^ theirs)}"
        elif ranks[0] != ranks[k]:
            told = f"their configurations say r = {ranks[0]} and r = {ranks[k]}"
        else:
            continue
        raise AdapterError(
            f"{place}: {homes[0].name} and {home.name} are of two runs: {told}; name one of them, or put the runs into "
            "folders of their own"
        )


def adapter_of(
    opened: Tensors,
    configuration: Mapping[str, Any] | None,
    name: str,
    step: int | None,
    wish: Reading,
) -> Adapter:
    """The adapter in open tensors and their configuration."""
    told = translate(opened, configuration)
    tensors, config, weights = told.tensors, told.config, opened.path
    refuse_unreadable(weights, config, tensors.keys())
    stored = {"alphas": told.alphas, "scalings": told.scalings, "ranks": told.ranks}
    said = {key: getattr(wish, key) for key in ("alpha", "activation", "method", "experts", "shapes", "base")}
    source = Source(tensors, config, **said, packed=_packed(tensors), **stored)
    found = _read_parts(source, told.parts)
    if found.loaders and source.method not in (None, *found.method.split("+")):
        raise AdapterError(
            f"{weights}: keys and configuration are those of {found.method}; method (--method) says {source.method}"
        )
    double = {
        module: kept
        for module, kept in aliases(tensors, found.loaders).items()
        if source.scaling_settings(module) == source.scaling_settings(kept)
    }
    for module in double:
        del found.loaders[module]
    if wish.initial is not None:
        found = relative(source, found, wish.initial)
    method, loaders, passed_over, notes, scaled = found
    loaders |= {module: _counted(loaders[module], n) for module, n in told.parameters.items() if module in loaders}
    if source.base is not None:
        loaders = {module: _with_kernel(load, source.base, module) for module, load in loaders.items()}
    passed_over = [*map(str, passed_over), *told.passed_over]
    passed_over += [key for module, key in told.alpha_keys.items() if module not in loaders and module not in double]
    if not loaders:
        keys = tensors.keys()
        example = f", such as {keys[0]}" if keys else ""
        raise AdapterError(
            f"{weights}: holds no adapter ({len(keys)} tensors{example}); expected keys such as "
            "<module>.lora_A.weight or <module>.bora_A"
        )
    warnings: list[str] = []
    if double:
        first, kept = next(iter(double.items()))
        warnings.append(
            f"the same tensors stand under two names for {counted(len(double), 'module')}, such as {first} and {kept}; "
            "counted once, under the shorter name"
        )
    if scaled and not all(source.says_scaling(module) for module in loaders):
        warnings.append(NO_ALPHA)
    for settings in source.all_settings if wish.initial is None else ():
        warnings = warnings + [note for note in init_warnings(settings) if note not in warnings]
    ordered = {module: loaders[module] for module in sorted(loaders, key=natural)}
    passed_over += tensors.unread
    if trained := biases(passed_over):
        warnings += [f"{counted(len(trained), 'trained bias', 'trained biases')}, no part of ΔW: {some(trained, 1)}"]
    warnings += [*told.notes, *notes]
    trained_on = (config or {}).get("base_model_name_or_path")
    layout = layout_of(opened, configuration)
    return Adapter(name, method, step, None, ordered, tuple(passed_over), tuple(warnings), trained_on, layout)


def _read_parts(source: Source, parts: Iterable[Tensors]) -> Found:
    """The file as one, or part by part where it holds modules of several methods."""
    found = [_dispatch(replace(source, tensors=tensors)) for tensors in parts]
    if not any(part.loaders for part in found):
        return _dispatch(source)
    return Found(
        "+".join(sorted({part.method for part in found if part.loaders})),
        {module: loader for part in found for module, loader in part.loaders.items()},
        [key for part in found for key in part.passed_over],
        [note for part in found for note in part.notes],
        any(part.scaled for part in found if part.loaders),
    )


def _counted(load: Loader, parameters: int) -> Loader:
    """The loader with another count of trained numbers, each of which is one multiply-add per token or position."""

    def loader() -> Update:
        update: Any = load()  # every update is a dataclass
        return replace(update, facts=replace(update.facts, parameters=parameters, macs_per_token=parameters))

    return loader


def _with_kernel(load: Loader, base: BaseWeights, module: str) -> Loader:
    """The loader of an update that may be a convolution's, which the factors of some methods do not tell."""

    def loader() -> Update:
        update = load()
        facts = update.facts
        kernel = base.kernel(module, facts.out_features, facts.in_features) if facts.kind == "linear" else ()
        return of_layer(update, kernel)

    return loader


def _dispatch(source: Source) -> Found:
    """Let the first reader that finds its keys read the file."""
    activation_of(source)  # a wrong name is an error, whatever is in the file
    kind = peft_type(source.config)
    for reader in readers():
        found = reader.read(source)
        if found is None:
            continue
        # Many authors' files call themselves LORA.
        types = [kind for name in found.method.split("+") for kind in METHODS[name].peft_types]
        if found.loaders and kind not in ("LORA", *types):
            raise AdapterError(f"{source.path}: peft_type is {kind} but the keys are those of {found.method}")
        return found
    raise AssertionError("the last reader takes every file")


def _packed(tensors: Tensors) -> dict[str, Mapping[str, Any]]:
    """The configurations that diffusers writes into the header: flat, each entry behind its model's prefix."""
    try:
        entries = json.loads(tensors.metadata.get("lora_adapter_metadata", "{}"))
    except ValueError as error:
        raise AdapterError(f"{tensors.path}: lora_adapter_metadata in the header is no JSON: {error}") from None
    packed: dict[str, dict[str, Any]] = {}
    for entry, value in entries.items() if isinstance(entries, dict) else ():
        prefix, _, setting = entry.rpartition(".")
        packed.setdefault(prefix, {})[setting] = value
    return {prefix: settings for prefix, settings in packed.items() if settings.get("lora_alpha") is not None}
