"""Any adapter as a plain LoRA, exactly or cut to a rank, with the error of each module.

The best approximation of rank k is the truncated SVD (Eckart & Young 1936; Mirsky 1960), and its error is known:
‖ΔW − ΔW_k‖₂ = σ_{k+1} and ‖ΔW − ΔW_k‖_F = (Σ_{i>k} σ_i²)^½. Rounding to the file's dtype is added to it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from ..adapters import Adapter, AdapterError, write_adapter
from ..adapters.given import one_of
from ..adapters.reading import Options
from ..cards import based_on, card
from ..catalogue.dtypes import EPSILON
from ..catalogue.module_names import layer, projection
from ..files.configuration import CONFIG_NAME
from ..files.errors import counted
from ..files.keys import biases, module_path
from ..files.tensors import Raw, open_tensors
from ..linalg import Array, NotFiniteError, norm
from ..linalg.inertia import spectral_norm
from ..linalg.threads import in_order
from ..metrics import effective_rank, energy_rank, numerical_rank
from ..updates.checks import is_finite
from ..updates.contract import FactorError, Facts, Update
from ..updates.dense import Dense
from .progress import progress
from .vectors import SingularVectors, singular_vectors

if TYPE_CHECKING:
    import pandas as pd

# Settings of the base model and its layers, and of what else the file holds; not of how the LoRA is built.
_OF_BASE = (
    "base_model_name_or_path", "revision", "task_type", "auto_mapping", "layer_replication", "fan_in_fan_out",
    "alora_invocation_tokens",
)  # fmt: skip
_OF_HEADS = ("modules_to_save", "trainable_token_indices", "ensure_weight_tying")
_PEFT = "base_model.model."
# What one layer's update may be and a LoRA of PEFT cannot, or not under a name of its own.
_NO_LAYER = {
    "grouped conv": "is a grouped convolution, whose lora_B is block-diagonal; a truncated one would not be",
    "parameter": "is no layer of its own (an expert's parameter, a part of nn.MultiheadAttention)",
}


@dataclass(frozen=True)
class Cut:
    """Rank k with which an update is kept, and what is lost.

    Attributes
    ----------
    rank_before : numerical rank of ΔW in float64.
    rank : k.
    energy_kept : Σ_{i≤k} σ² / Σσ²; 1 for ΔW = 0.
    error_spectral, error_frobenius : ‖ΔW − B A‖₂ and ‖ΔW − B A‖_F with the factors as they are written, in their dtype.
    error_relative : ‖ΔW − B A‖_F / ‖ΔW‖_F; 0 for ΔW = 0.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import lora
    >>> *_, cut = truncated(lora(np.eye(4)[:, :2] * [4.0, 3.0], np.eye(2, 5)), rank=1)
    >>> cut.rank_before, cut.rank, round(cut.energy_kept, 9), round(cut.error_relative, 9)
    (2, 1, 0.64, 0.6)
    """

    rank_before: int
    rank: int
    energy_kept: float
    error_spectral: float
    error_frobenius: float
    error_relative: float


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
                {"module": module, "layer": layer(module), "projection": projection(module)}
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
    rank: int | None = None,
    energy: float | None = None,
    threshold: float | None = None,
    dtype: str = "float32",
    pad: bool = False,
    force: bool = False,
    settings: Mapping[str, Any] | None = None,
    on_module: Callable[[], object] | None = None,
    **reading: Unpack[Options],
) -> Conversion:
    """Write an adapter as a LoRA that PEFT and servers of LoRA load.

    Without ``rank``, ``energy`` or ``threshold`` ΔW is kept whole, up to the rounding of ``dtype``: each module gets
    the rank of its ΔW, at most min(m, n, br) for BoRA. α = r everywhere, so the scaling is 1; the configuration's r is
    the largest. Heads and embeddings go along from a file under PEFT's names. From other layouts they do not: PEFT
    would not find them, and :attr:`Conversion.left_behind` lists them.

    A convolution is written as one where its kernel is known: from the tensors of LoRA, and of LoHa and LoKr if they
    are decomposed or whole, or else from the base model that the adapter was read with.

    A module whose rank is 0 (ΔW = 0, or every σ cut off) is written as a pair of zeros of rank 1, because PEFT knows no
    rank 0; its :class:`Cut` says 0.

    Parameters
    ----------
    source : one adapter, or what :func:`bora_analysis.read_adapter` takes.
    folder : where ``adapter_config.json`` and ``adapter_model.safetensors`` are written; not the adapter's own.
    rank : at most this rank in every module.
    energy : the least rank that keeps this share of Σσ².
    threshold : as many as there are σ above it.
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
        Two of rank, energy and threshold, or one out of range.
    AdapterError
        An adapter that cannot be read; several checkpoints; trained biases; a grouped convolution, an expert's
        parameter or nn.MultiheadAttention; an update without low rank (DoRA, full fine-tuning) and no wish for a rank;
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
    """
    _rule(rank, energy, threshold)  # a wrong wish is an error before anything is read
    adapter = one_of(source, **reading)
    folder = Path(folder)
    name = adapter.path or adapter.name
    refuse_own_folder(folder, [adapter])
    held = [
        file for file in (CONFIG_NAME, "adapter_model.safetensors", "adapter_model.bin") if (folder / file).exists()
    ]
    if held and not force:
        raise AdapterError(f"{folder}: holds {held[0]}; give another folder, or replace it (--force, force=True)")
    _refuse_biases(adapter)
    if settings is None:
        settings = shared_settings([adapter], heads=True)
    cuts: dict[str, Cut] = {}
    facts: dict[str, Facts] = {}

    def cut(module: str) -> tuple[Facts, Array, Array, Cut]:
        update = adapter[module]
        if update.facts.kind in _NO_LAYER:
            raise AdapterError(f"{name}: {module} {_NO_LAYER[update.facts.kind]}; a LoRA cannot be written for it")
        if isinstance(update, Dense) and rank is energy is threshold is None:
            raise AdapterError(
                f"{name}: {module}: the update of {update.facts.method} has full rank; choose a rank, an energy or a "
                "threshold (--rank, --energy, --threshold) to cut it to"
            )
        try:
            return update.facts, *truncated(update, rank=rank, energy=energy, threshold=threshold, dtype=dtype)
        except (NotFiniteError, FactorError) as error:
            raise AdapterError(f"{name}: {module}: {error}") from None

    def factors() -> Iterator[tuple[str, dict[str, Array]]]:
        # A pass for the ranks alone, instead of all factors in memory.
        width = max((lost.rank for _, (*_, lost) in in_order(cut, adapter)), default=0) if pad else 0
        for module, (known, B, A, lost) in in_order(cut, adapter):
            facts[module], cuts[module] = known, lost
            step()
            more = max(0, width - len(A))
            yield module, _of_layer(known, np.pad(B, ((0, 0), (0, more))), np.pad(A, ((0, more), (0, 0))))

    kept = _others(adapter)
    others = dict(kept.values())
    with progress(len(adapter), on_module) as step:
        write_adapter(folder, "lora", factors(), alpha=None, dtype=dtype, extra_config=settings, others=others)
    left = tuple(key for key in adapter.passed_over if key not in kept)
    return Conversion(folder, cuts, facts, left, settings.get(_OF_BASE[0]))


def _rule(rank: int | None, energy: float | None, threshold: float | None) -> Callable[[Array], int]:
    """Singular values → how many to keep, be they there or not."""
    given = [
        name for name, value in (("rank", rank), ("energy", energy), ("threshold", threshold)) if value is not None
    ]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are given; expected one of rank, energy and threshold")
    if rank is not None and rank < 1:
        raise ValueError(f"rank is {rank}; expected at least 1")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy is {energy}; expected a share of Σσ² above 0 and up to 1")
    if threshold is not None and not threshold >= 0:
        raise ValueError(f"threshold is {threshold}; expected a number ≥ 0")

    def choose(values: Array) -> int:
        if rank is not None:
            return rank
        if energy is not None:
            return energy_rank(values, energy)
        return len(values) if threshold is None else effective_rank(values, threshold)

    return choose


def truncated(
    update: Update,
    *,
    rank: int | None = None,
    energy: float | None = None,
    threshold: float | None = None,
    dtype: str = "float64",
) -> tuple[Array, Array, Cut]:
    """B (m, k) and A (k, n), with B A = ΔW_k and the scaling in them, rounded to ``dtype``, and what is lost.

    Both carry the root of the singular values, so that neither is much larger than the other. For k = 0 they are zeros
    of rank 1. Parameters as for :func:`convert`; without a wish k is ΔW's rank. FactorError where ``dtype`` has not the
    range for a factor.
    """
    choose = _rule(rank, energy, threshold)
    found = singular_vectors(update)
    values = found.values
    full = numerical_rank(values, found.rounding)
    k = min(full, choose(values))
    total, lost = norm(values), norm(values[k:])
    share = lost / total if total else 0.0
    root = np.sqrt(values[:k]) if k else np.zeros(1)
    exact = found.left[:, : len(root)] * root, root[:, None] * found.right[: len(root)]
    B, A = (_stored(name, factor, dtype) for name, factor in zip("BA", exact, strict=True))
    spectral = float(values[k : k + 1].sum())
    E, F = exact[0] - B, exact[1] - A
    if E.any() or F.any():
        core = _lost(found, root, E, F)
        spectral, lost = spectral_norm(core), norm(core)
    return B, A, Cut(full, k, 1.0 - share**2, spectral, lost, lost / total if total else 0.0)


def _stored(name: str, factor: Array, dtype: str) -> Array:
    """The factor rounded to the dtype, in float64."""
    with np.errstate(over="ignore"):
        rounded = factor.astype(dtype).astype(np.float64)
    if not is_finite(rounded):
        raise FactorError(name, f"holds values beyond the range of {dtype}; expected a wider dtype")
    if norm(rounded - factor) > EPSILON[dtype] * norm(factor):  # rounding alone makes at most half of it
        raise FactorError(
            name, f"holds values below the range of {dtype} (the largest is {np.abs(factor).max():.2g}); "
            "expected bfloat16 or a wider dtype"
        )  # fmt: skip
    return rounded


def _lost(found: SingularVectors, root: Array, E: Array, F: Array) -> Array:
    """A matrix with the singular values of ΔW − (B − E)(A − F), where B A = ΔW_k.

    That is ΔW − ΔW_k + E A + (B − E) F. In an orthonormal basis of the singular vectors and of what E and F have beside
    them, all of it is small.
    """
    k = len(root)
    left, right = _coordinates(found.left, E), _coordinates(found.right.T, F.T)
    core = np.zeros((len(left), len(right)))
    beyond = np.arange(k, len(found.values))
    core[beyond, beyond] = found.values[k:]
    core[:, :k] += left * root
    core += (np.eye(len(left), k) * root - left) @ right.T
    return core


def _coordinates(basis: Array, columns: Array) -> Array:
    """In the basis, and in another one of what is orthogonal to it, whose Gram matrix is known without it."""
    inside = basis.T @ columns
    squares, axes = np.linalg.eigh(columns.T @ columns - inside.T @ inside)
    return np.concatenate([inside, np.sqrt(np.maximum(squares, 0))[:, None] * axes.T])


def _of_layer(facts: Facts, B: Array, A: Array) -> dict[str, Array]:
    """The factors in the shape that PEFT gives them in a layer of this kind."""
    if facts.kind == "embedding":
        return {"embedding_A": A, "embedding_B": B}
    ones = (1,) * len(facts.kernel)
    return {"A": A.reshape(len(A), -1, *facts.kernel) if ones else A, "B": B.reshape(*B.shape, *ones)}


def refuse_own_folder(folder: Path, adapters: Sequence[Adapter]) -> None:
    """A LoRA must not replace what it is made of."""
    for adapter in adapters:
        if adapter.path is not None and folder.resolve() == adapter.path.parent.resolve():
            raise AdapterError(f"{folder}: is the folder of {adapter.name} itself; give another one to write to")


def shared_settings(adapters: Sequence[Adapter], *, heads: bool = False, force: bool = False) -> dict[str, Any]:
    """What a LoRA's configuration takes over from adapters: the base model, and what is said of its layers.

    Parameters
    ----------
    heads : take over what says which heads and tokens the file holds beside ΔW, too.
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
        for key in (*_OF_BASE, *(_OF_HEADS if heads else ())):
            if config.get(key) and found.setdefault(key, config[key]) != config[key]:
                if force and key == _OF_BASE[0]:
                    found[key] = None
                    continue
                raise AdapterError(
                    f"{path}: {key} is {config[key]!r}, another adapter has {found[key]!r}; expected adapters of one "
                    "base model"
                )
    return found


def _refuse_biases(adapter: Adapter) -> None:
    """Biases that were trained beside ΔW have no place in a plain LoRA."""
    found = biases(adapter.passed_over)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise AdapterError(
            f"{adapter.path or adapter.name}: {found[0]}{more} is a trained bias, which is no part of ΔW and would be "
            "lost; expected none: merge it into the base model first"
        )


def _others(adapter: Adapter) -> dict[str, tuple[str, Raw]]:
    """What the file holds beside ΔW and PEFT loads with it: heads, embeddings, new tokens. Key → PEFT's key, tensor."""
    # A whole checkpoint, which may lie in several files, has no names of PEFT's either.
    if adapter.path is None or not adapter.passed_over or adapter.method == "full":
        return {}
    tensors = open_tensors(adapter.path)
    known = set(tensors.keys())
    if not any(_PEFT in key for key in known):  # another layout: its names mean nothing to PEFT
        return {}
    found: dict[str, tuple[str, Raw]] = {}
    for key in adapter.passed_over:
        if key not in known or ".lora_" in key or ".original_module." in key:
            continue
        path = re.sub(r"\.modules_to_save(\.[^.]+(?=\.))?", "", module_path(key))
        name, raw = f"{_PEFT}{path}" if _PEFT in key else key, tensors.raw(key)
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
