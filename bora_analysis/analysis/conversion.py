"""Any adapter as a plain LoRA, exactly or cut to a rank, in the layout of a program that loads it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from .. import catalogue
from ..adapters import Adapter, AdapterError
from ..adapters.given import one_of
from ..adapters.reading import Options
from ..cards import based_on, card
from ..catalogue.module_names import layer as layer_of
from ..catalogue.module_names import projection
from ..files.base_model import BaseWeights, open_base
from ..files.configuration import CONFIG_NAME
from ..files.errors import counted
from ..files.keys import biases as trained_biases
from ..files.keys import module_path
from ..files.layouts import OUT
from ..files.layouts.gguf import ALORA
from ..files.layouts.out import Job, Layer
from ..files.layouts.peft import PREFIX
from ..files.tensors import Raw, open_tensors
from ..linalg import NotFiniteError
from ..linalg.threads import in_order
from ..threshold import Threshold
from ..updates.contract import FactorError, Facts
from ..updates.dense import Dense
from .arranging import arranged, of_llama_cpp, paths, with_experts
from .progress import progress
from .truncation import Cut, rule, truncated, truncated_groups

if TYPE_CHECKING:
    import pandas as pd

# Settings of the base model and its layers, and of what else the file holds; not of how the LoRA is built.
_OF_BASE = (
    "base_model_name_or_path", "revision", "task_type", "auto_mapping", "layer_replication", "fan_in_fan_out",
    "alora_invocation_tokens",
)  # fmt: skip
_OF_PEFT = ("layer_replication", "alora_invocation_tokens")  # what changes an adapter, and no other layout tells
_OF_BIASES = ("bias", "lora_bias")
_OF_HEADS = ("modules_to_save", "trainable_token_indices", "ensure_weight_tying")
# Layers of which not every layout has a LoRA.
_KINDS = {
    "embedding": "is an embedding",
    "conv": "is a convolution",
    "grouped conv": "is a grouped convolution",
    "attention": "is a part of nn.MultiheadAttention",
    "parameter": "is no layer of its own (an expert's parameter)",
    "task": "is what one task of several makes of a layer",
}


@dataclass(frozen=True, eq=False, repr=False)
class Conversion:
    """What :func:`convert` wrote.

    Attributes
    ----------
    folder : of the LoRA.
    cuts : module → rank and error, in the order of the file.
    facts : module → what the update was.
    left_behind : what the adapter's file holds beside ΔW and the LoRA's does not, by its name there.
    base_model : name of the base model, where it is known.
    layout : in which it was written.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from bora_analysis import convert, synthetic_adapter
    >>> with TemporaryDirectory() as folder:
    ...     done = convert(synthetic_adapter("bora", {"layers.0.q_proj": (64, 32)}, r=2, blocks=4), folder, rank=3)
    >>> done.table[["module", "rank", "parameters_before", "parameters"]].values.tolist()
    [['layers.0.q_proj', 3, 224, 288]]
    """

    folder: Path
    cuts: dict[str, Cut]
    facts: dict[str, Facts]
    left_behind: tuple[str, ...] = ()
    base_model: str | None = None
    layout: str = "peft"

    @property
    def table(self) -> pd.DataFrame:
        """One row per module: module, layer, projection, out_features, in_features, method, and those of :class:`Cut`;
        parameters of the original and of the LoRA."""
        import pandas as pd

        rows = []
        for module, cut in self.cuts.items():
            facts = self.facts[module]
            size = facts.out_features + facts.in_features
            rows.append(
                {"module": module, "layer": layer_of(module), "projection": projection(module)}
                | {"out_features": facts.out_features, "in_features": facts.in_features, "method": facts.method}
                | asdict(cut)
                | {"parameters_before": facts.parameters, "parameters": size * max(1, cut.rank)}
            )
        return pd.DataFrame(rows).astype({"layer": "Int64"})

    def __repr__(self) -> str:
        ranks = sorted({cut.rank for cut in self.cuts.values()})
        sizes = f", rank {'–'.join(map(str, dict.fromkeys((ranks[0], ranks[-1]))))}" if ranks else ""
        return f"<Conversion to LoRA in {self.folder}: {counted(len(self.cuts), 'module')}{sizes}>"

    def _repr_html_(self) -> str:
        columns = ["module", "method", "rank_before", "rank", "energy_kept", "error_relative", "parameters"]
        worst = max((cut.error_relative for cut in self.cuts.values()), default=0.0)
        lines = [based_on(self.base_model), f"The largest relative error is {worst:.3g}."]
        return card(self, lambda: (lines, self.table[columns]))


def convert(
    source: Any,
    folder: str | Path,
    *,
    layout: str = "peft",
    rank: int | None = None,
    energy: float | None = None,
    threshold: float | str | Threshold | None = None,
    cap_sigma: float | None = None,
    dtype: str = "float32",
    pad: bool = False,
    force: bool = False,
    settings: Mapping[str, Any] | None = None,
    on_module: Callable[[], object] | None = None,
    **reading: Unpack[Options],
) -> Conversion:
    """Write an adapter as a LoRA that PEFT, servers of LoRA and other programs load.

    Without ``rank``, ``energy`` or ``threshold`` ΔW is kept whole, up to the rounding of ``dtype``: each module gets
    the rank of its ΔW, at most min(m, n, br) for BoRA. α = r everywhere, so the scaling is 1; the configuration's r is
    the largest. Heads and embeddings go along from PEFT's layout into PEFT's. From others they do not: PEFT would not
    find them, and :attr:`Conversion.left_behind` lists them.

    A convolution is written as one where its kernel is known: from the tensors of LoRA, and of LoHa and LoKr if they
    are decomposed or whole, or else from the base model that the adapter was read with.

    A module whose rank is 0 (ΔW = 0, or every σ cut off) is written as a pair of zeros of rank 1, because PEFT knows no
    rank 0; its :class:`Cut` says 0.

    Parameters
    ----------
    source : one adapter, or what :func:`bora_analysis.read_adapter` takes.
    folder : where the weights and the configuration are written; not the adapter's own. Of a layout that is one file
        (kohya, comfyui, diffusers, gguf) it may be that file, ``….safetensors`` or ``….gguf``.
    layout : ``"peft"``; ``"per-expert"``, PEFT's with each expert of a mixture a module; ``"kohya"``, ``"comfyui"``,
        ``"diffusers"``, ``"mlx"``, ``"gguf"`` (with the base model); or ``"same"``, that of the adapter's file: each
        module keeps its scaling, so that α is the scaling times the rank, and the file its metadata and what it holds
        beside ΔW. Modules get the names that the layout has for them; kohya's underscores become dots by the names of
        ``base``, or by known ones.
    rank : at most this rank in every module.
    energy : the least rank that keeps this share of Σσ².
    threshold : as many as there are σ above it; also a share of σ₁ or a number at equal energy, see
        :class:`bora_analysis.Threshold`.
    cap_sigma : σ above this are set to it.
    dtype : of the factors, see :func:`bora_analysis.write_adapter`.
    pad : fill up every module with zeros to the largest rank, for servers that know no ``alpha_pattern``.
    force : replace the adapter that the folder holds already.
    settings : entries of ``adapter_config.json`` beside the LoRA's own, such as :func:`shared_settings` has for a
        merged adapter; by default those of the adapter's own configuration.
    on_module, reading : as for :func:`bora_analysis.analyse`.

    Returns
    -------
    Conversion

    Raises
    ------
    ValueError
        Two of rank, energy and threshold, or one out of range; an unknown layout.
    AdapterError
        An adapter that cannot be read; several checkpoints; trained biases, unless the layout stays; a kind of layer or
        a name that the layout has not; an update without low rank (DoRA, full fine-tuning) and no wish for a rank;
        ``folder`` is the adapter's own, or holds another; numbers that do not fit into ``dtype``; an empty head.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from bora_analysis import convert, read_adapter, synthetic_adapter
    >>> adapter = synthetic_adapter("bora", {"layers.0.q_proj": (64, 32)}, r=2, blocks=4)
    >>> with TemporaryDirectory() as folder:
    ...     done = convert(adapter, folder, energy=0.9)
    ...     read_adapter(folder).method, done.cuts["layers.0.q_proj"].rank_before
    ('lora', 8)
    >>> with TemporaryDirectory() as folder:
    ...     done = convert(adapter, folder, layout="mlx")
    ...     done.layout, sorted(file.name for file in done.folder.iterdir()), list(read_adapter(folder))
    ('mlx', ['adapter_config.json', 'adapters.safetensors'], ['layers.0.q_proj'])
    """
    wish = {"rank": rank, "energy": energy, "threshold": threshold, "cap_sigma": cap_sigma}
    rule(**wish)  # a wrong wish is an error before anything is read
    if layout not in catalogue.LAYOUTS:
        raise ValueError(f"layout is {layout!r}; expected one of {', '.join(catalogue.LAYOUTS)}")
    base = reading.get("base")
    if base is not None and not isinstance(base, BaseWeights):
        base = reading["base"] = open_base(base)
    given = one_of(source, **reading)
    name = given.path or given.name
    same = layout == "same" or layout == given.layout == "gguf"  # which holds names and rows of its architecture
    if same:
        layout = given.layout or ""
        if layout not in OUT:
            told = ", ".join(OUT)
            raise AdapterError(f"{name}: its layout is read, and not written; choose another (--layout): {told}")
    out = OUT[layout]
    folder = Path(folder)
    refuse_own_folder(folder, [given])
    refuse_held(folder, layout, force)
    pefts = layout in ("peft", "per-expert")
    kept = kept_others(given, layout, same=same) if same or pefts else {}
    refuse_biases(given, kept)
    if settings is None:
        settings = shared_settings([given], heads=True, biases=same)
    lost = next((key for key in _OF_PEFT if settings.get(key)), None)
    if lost and not pefts:
        raise AdapterError(f"{name}: its configuration has {lost}, which {layout} cannot hold; expected none")
    if given.layout == "gguf" and given.path is not None and ALORA in open_tensors(given.path).metadata:
        raise AdapterError(f"{name}: {ALORA} of the file would be lost; expected none")
    config = {} if base is None else base.config
    if given.layout == "gguf" and given.path is None:
        raise AdapterError(f"{name}: a sum of GGUF files is not written; merge the adapters that they were made of")
    adapter = of_llama_cpp(given, config) if given.layout == "gguf" != layout else given
    adapter = with_experts(adapter, layout)
    names = paths(adapter, layout, base)
    cuts: dict[str, Cut] = {}
    facts: dict[str, Facts] = {}
    usual = adapter[next(iter(adapter))].facts.scaling if same and out.one_rank else 1.0

    def cut(module: str) -> tuple[Layer, Facts, Cut]:
        update = adapter[module]
        own = update.facts
        if own.kind not in out.kinds and not (own.kind == "parameter" and out.experts == "fused"):
            raise AdapterError(f"{name}: {module} {_KINDS[own.kind]}, for which {layout} has no LoRA")
        if isinstance(update, Dense) and rank is energy is threshold is None:
            raise AdapterError(
                f"{name}: {module}: the update of {own.method} has full rank; choose a rank, an energy or a "
                "threshold (--rank, --energy, --threshold) to cut it to"
            )
        told = usual if out.one_rank else own.scaling
        scaling = told if same and 0 < told < np.inf else 1.0
        try:
            short = truncated if own.groups == 1 else truncated_groups
            B, A, lost = short(update, dtype=dtype, scaling=scaling, **wish)
        except (NotFiniteError, FactorError) as error:
            raise AdapterError(f"{name}: {module}: {error}") from None
        return Layer(names[module], B, A, scaling, own.kind, own.kernel, own.groups), own, lost

    def layers() -> Iterator[Layer]:
        # A pass for the ranks alone, instead of all factors in memory.
        width = max((layer.r for _, (layer, *_) in in_order(cut, adapter)), default=0) if pad or out.one_rank else 0
        for module, (layer, known, lost) in in_order(cut, adapter):
            facts[module], cuts[module] = known, lost
            step()
            yield layer.padded(-(-max(width, layer.r) // layer.groups) * layer.groups)

    metadata = open_tensors(given.path).metadata if same and given.path is not None else {}
    with progress(len(adapter), on_module) as step:
        written = arranged(layers(), layout, names, name)
        out.write(Job(folder, written, dtype, settings, metadata, config, dict(kept.values())))
    left = tuple(key for key in given.passed_over if key not in kept)
    return Conversion(folder, cuts, facts, left, settings.get(_OF_BASE[0]), layout)


def refuse_held(folder: Path, layout: str, force: bool) -> None:
    out = OUT[layout]
    if out.configured and folder.suffix == Path(out.file).suffix and not folder.is_dir():
        raise AdapterError(f"{folder}: {layout} is a folder with {out.file} and {CONFIG_NAME}; name a folder")
    names = [CONFIG_NAME] if out.configured else []
    names += [out.file, *([Path(out.file).with_suffix(".bin").name] if out.configured else [])]
    held = [name for name in names if (folder / name).exists()]
    if folder.is_file():
        held, folder = [folder.name], folder.parent
    if held and not force:
        raise AdapterError(f"{folder}: holds {held[0]}; give another folder, or replace it (--force, force=True)")


def refuse_own_folder(folder: Path, adapters: Sequence[Adapter]) -> None:
    """A LoRA must not replace what it is made of."""
    for adapter in adapters:
        own = () if adapter.path is None else (adapter.path.resolve(), adapter.path.parent.resolve())
        if folder.resolve() in own:
            raise AdapterError(f"{folder}: is the folder of {adapter.name} itself; give another one to write to")


def shared_settings(
    adapters: Sequence[Adapter], *, heads: bool = False, biases: bool = False, force: bool = False
) -> dict[str, Any]:
    """What a LoRA's configuration takes over from adapters: the base model, and what is said of its layers.

    Parameters
    ----------
    heads : take over what says which heads and tokens the file holds beside ΔW, too.
    biases : take over which biases the file holds, too.
    force : leave out the name of the base model where the adapters have several.

    Raises
    ------
    AdapterError
        Several base models or settings.
    """
    found: dict[str, Any] = {}
    for adapter in adapters:
        path = None if adapter.path is None else adapter.path.with_name(CONFIG_NAME)
        config: dict[str, Any] = {_OF_BASE[0]: adapter.base_model}
        if path is not None and path.exists():
            config = json.loads(path.read_text(encoding="utf-8"))
        for key in (*_OF_BASE, *(_OF_HEADS if heads else ()), *(_OF_BIASES if biases else ())):
            own = config.get(key)
            if (own or key in _OF_PEFT) and found.setdefault(key, own) != own:
                if force and key == _OF_BASE[0]:
                    found[key] = None
                    continue
                raise AdapterError(
                    f"{path}: {key} is {own!r}, another adapter has {found[key]!r}; expected adapters of one base model"
                )
    return {key: value for key, value in found.items() if value or key not in _OF_PEFT}


def refuse_biases(adapter: Adapter, kept: Mapping[str, Any]) -> None:
    """Biases that were trained beside ΔW have no place in a plain LoRA, unless its layout stays."""
    found = [key for key in trained_biases(adapter.passed_over) if key not in kept]
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        way = "" if adapter.path is None else "keep the layout (--layout same), or "
        raise AdapterError(
            f"{adapter.path or adapter.name}: {found[0]}{more} is a trained bias, which is no part of ΔW and would be "
            f"lost; expected none: {way}merge it into the base model first"
        )


def kept_others(adapter: Adapter, layout: str, *, same: bool) -> dict[str, tuple[str, Raw]]:
    """What the file holds beside ΔW and goes along: heads, embeddings, new tokens. Key → key there, tensor.

    In the same layout all of it goes along, and biases too.
    """
    # A whole checkpoint, which may lie in several files, has no names of PEFT's either.
    if adapter.path is None or not adapter.passed_over or (adapter.method == "full" and not same):
        return {}
    tensors = open_tensors(adapter.path)
    known = set(tensors.keys())
    if same and layout != "peft":
        return {key: (key, tensors.raw(key)) for key in adapter.passed_over if key in known}
    if not any(PREFIX in key for key in known):  # another layout: its names mean nothing to PEFT
        return {}
    found: dict[str, tuple[str, Raw]] = {}
    trained = set(trained_biases(adapter.passed_over))
    for key in adapter.passed_over:
        if key not in known or ".original_module." in key or (key not in trained and ".lora_" in key):
            continue
        if key in trained and not same:
            continue
        path = module_path(key)
        path = path if same else re.sub(r"\.modules_to_save(\.default)?", "", path)
        name, raw = f"{PREFIX}{path}" if PREFIX in key else key, tensors.raw(key)
        if 0 in raw.shape:
            raise AdapterError(
                f"{adapter.path}: {key} has shape {list(raw.shape)}; expected numbers: save the sharded model gathered"
            )
        found[key] = name, raw
    if len({name for name, _ in found.values()}) < len(found):
        names = Counter(name for name, _ in found.values())
        twice = [key for key, (name, _) in found.items() if names[name] > 1]
        raise AdapterError(f"{adapter.path}: {twice[0]} and {twice[1]}: two tensors for one name of PEFT's; keep one")
    return found
