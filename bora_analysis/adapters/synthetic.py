"""Random adapters from a seed, in the same form as trained ones.

Three kinds:

* ``"init"``: as the method starts training: A and σ Kaiming-uniform (a = √5), B = 0, so ΔW = 0. The others as PEFT has
  them by default; C³A, FourierFT, VB-LoRA and Uni-LoRA then do not start at ΔW = 0.
* ``"gaussian"``: independent normal factors: a flat spectrum, the shape that training has not touched.
* ``"decay"``: orthonormal factors with slot k scaled by k^−p. For LoRA, MELoRA, BD-LoRA, DeLoRA and MiSS (if r divides
  n) the singular values are exactly scaling · scale · k^−p (SBoRA: the roots of scale and k^−p, AdaLoRA: 10⁻⁵/r less;
  LoKr, KronA and C³A: each repeated, k counting the frequencies of C³A); for BoRA they are those times the singular
  values of the S_k (if r ≤ m/b and r ≤ n/b), for the others they only fall.

LoRA+ is LoRA with two learning rates: its update is ``"lora"``.

Methods whose update depends on the base model's weights (DoRA, HiRA, OFT, IA³ and others) get a random base model of a
given spectrum, see :mod:`bora_analysis.methods.random_base`. It is the same for all of them; their files have it in the
folder ``base`` beside them, where :func:`~bora_analysis.read_adapter` finds it. In kind ``"decay"`` the singular values
of DEFT, OSF and T-LoRA are exactly scaling · scale · k^−p, and those of AdaMSS if r ≥ 5; OFT and HRA leave W0 its own.
FRoD's V and AdaMSS's clusters are what PEFT finds in W0, so the two need PEFT; T-LoRA's file is LyCORIS's. PiSSA,
LoRA-GA, OLoRA and CorDA begin with directions of such a W0, and ReLoRA is a LoRA of rank blocks · r, a pair for each
stage.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ..atomic import replacing
from ..catalogue import METHODS, made, may_pad, names
from ..catalogue.cost import BYTES
from ..catalogue.sizes import PADS
from ..files.configuration import CONFIG_NAME
from ..files.errors import AdapterError, counted
from ..files.tensors_out import TensorsOut
from ..linalg import Array
from ..linalg.threads import one_blas_thread
from ..methods import form, recipe
from ..methods.random_base import BASE, SPECTRA
from ..methods.random_factors import Spec, generator
from ..updates.checks import check_blocks
from ..updates.contract import FactorError, Update
from . import Adapter, write_adapter
from .locate import WEIGHT_NAMES

KINDS = ("init", "gaussian", "decay")
#: Folder of the base model beside an adapter. Bytes of the largest that is written without being asked for.
BESIDE, LARGE = "base", 10**9
#: Folder of the adapter that training would begin with.
START = "checkpoint-0"
# Entry of a configuration: how it was made.
_MADE = "bora_analysis_synthetic"


@dataclass(frozen=True)
class Synthetic(Spec, Mapping[str, dict[str, Array]]):
    """Module → its raw tensors, made when asked for, so that any size streams.

    Attributes
    ----------
    method : one of :func:`bora_analysis.catalogue.made`.
    shapes : module path → (out_features, in_features).
    r : rank of one factor pair; of one expert for MoELoRA. KronA, C³A and FourierFT have none.
    blocks : b of BoRA, the number of minis of MELoRA, of experts of HydraLoRA and MoELoRA, of stages of ReLoRA,
        k of GraLoRA, N of BD-LoRA; a circulant block of C³A is of size gcd(m, n)/blocks. 1 for the others.
    alpha : α; default 2r as in the paper (Appendix B). The scaling is α/r, α/√r for rsLoRA, with the r of all experts
        together for MoELoRA, and of one stage for ReLoRA. Methods without α have the scaling 1: KronA, DeLoRA, VeRA,
        VB-LoRA, MiSS, C³A, FourierFT and those on a base model, but for DoRA and T-LoRA.
    kind : one of ``KINDS``. seed : a module's numbers depend on it and on the module's path alone; what the modules of
        VeRA and VB-LoRA share depends on all shapes.
    scale : size of ΔW's largest singular values before the scaling. decay : p of kind ``"decay"``.
    base_spectrum : singular values of W0, for a method that needs it: ``"mp"``, independent normal entries;
        ``"flat"``, all equal; ``"power"``, σ_k = σ₁ k^−p. base_decay : that p.
    pad : for BoRA, a b that need not divide the layers, see :func:`bora_analysis.updates.blocks.bora`.

    Raises
    ------
    ValueError
        Unknown method or kind, sizes that do not fit, an α for a method that has none.
    """

    def __post_init__(self) -> None:
        if self.method not in made():
            raise ValueError(f"method {self.method!r} is unknown; expected one of {', '.join(made())}")
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} is unknown; expected one of {', '.join(KINDS)}")
        if self.base_spectrum not in SPECTRA:
            raise ValueError(f"base_spectrum {self.base_spectrum!r} is unknown; expected one of {', '.join(SPECTRA)}")
        row = METHODS[self.method]
        if not row.blocks and self.blocks != 1:
            raise ValueError(f"{self.method} has one block; got blocks = {self.blocks}")
        if self.r < 1 or self.blocks < 1 or self.seed < 0 or not self.shapes:
            raise ValueError(
                f"got r = {self.r}, blocks = {self.blocks}, seed = {self.seed}, {len(self.shapes)} modules; expected "
                "r ≥ 1, blocks ≥ 1, seed ≥ 0, at least one module"
            )
        if row.splits and self.r % self.blocks:
            raise ValueError(
                f"{self.method} splits r among its blocks; got r = {self.r}; expected a multiple of {self.blocks}"
            )
        if self.alpha is not None and not row.scaled:
            raise ValueError(f"{self.method} has no α; got {self.alpha:g}; expected none")
        if self.pad and not may_pad(row):
            raise ValueError(f"{self.method} cannot be padded; methods that can: {', '.join(names(may_pad))}")
        largest = recipe(self.method).most
        for module, (m, n) in self.shapes.items():
            try:
                if row.blocks and row.blocks.divides and not self.pad:
                    check_blocks(self.blocks, m, n, PADS if may_pad(row) else "")
            except FactorError as error:
                raise ValueError(f"{module}: {error}") from None
            most = largest(self, m, n) if largest else self.r
            if most < 1:
                raise ValueError(
                    f"{module}: {m}×{n} has no r for {self.method}; expected larger sizes, or ones with common divisors"
                )
            if self.r > most:
                raise ValueError(f"{module}: got r = {self.r}; expected up to {most} for {self.method}")

    def __len__(self) -> int:
        return len(self.shapes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __getitem__(self, module: str) -> dict[str, Array]:
        """The module's parts, by the names of :mod:`bora_analysis.methods`; factors are float32."""
        m, n = self.shapes[module]
        with one_blas_thread():
            return recipe(self.method).make(self._of(module), generator(self, module), m, n)

    def _of(self, module: str) -> Spec:
        told: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(Spec)}
        told["layer"] = self._places[module]
        return Spec(**told)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {module: k for k, module in enumerate(self.shapes)}


def synthetic_adapter(
    method: str,
    shapes: Mapping[str, tuple[int, int]],
    r: int,
    blocks: int = 1,
    *,
    alpha: float | None = None,
    kind: str = "gaussian",
    seed: int = 0,
    scale: float = 0.1,
    decay: float = 1.0,
    activation: str = "exp-norm",
    name: str | None = None,
    base_spectrum: str = "mp",
    base_decay: float = 0.5,
    pad: bool = False,
) -> Adapter:
    """A synthetic adapter in memory, as :func:`read_adapter` would give it. Parameters as in :class:`Synthetic`.

    Returns
    -------
    Adapter

    Raises
    ------
    ValueError
        Unknown method or kind, sizes that do not fit.

    Examples
    --------
    >>> from bora_analysis import singular_values, synthetic_adapter
    >>> adapter = synthetic_adapter("lora", {"layers.0.q_proj": (64, 32)}, r=4, kind="decay", scale=1.0)
    >>> singular_values(adapter["layers.0.q_proj"]).values.round(6).tolist()
    [2.0, 1.0, 0.666667, 0.5]
    """
    raw = Synthetic(method, shapes, r, blocks, alpha, kind, seed, scale, decay, base_spectrum, base_decay, pad)

    def load(module: str) -> Update:
        return form(method, pad=pad).build(raw[module], raw.scaling, activation)

    title = name or method + (f"-r{r}" if METHODS[method].ranked else "") + (f"-b{blocks}" if blocks > 1 else "")
    return Adapter(title, method, None, None, {module: partial(load, module) for module in shapes})


def write_synthetic(
    folder: str | Path,
    raw: Synthetic,
    *,
    activation: str = "exp-norm",
    dtype: str = "float32",
    large_base: bool = False,
    force: bool = False,
) -> Path:
    """Write a synthetic adapter in the format of a trained one; its config says how it was made.

    An earlier synthetic adapter in the folder is replaced, with what lies in folders of its own. AdapterError where the
    folder holds another adapter, unless ``force``.

    A method that begins elsewhere than at zero has its start in ``folder/checkpoint-0``, where it is subtracted.
    A method that needs a base model gets it in ``folder/base``: ``model.safetensors``, the weights of the adapted
    layers alone, and ``config.json``. ValueError where it is larger than ``LARGE``, unless ``large_base``.
    """
    folder = Path(folder)
    size = base_bytes(raw, dtype)
    if size > LARGE and not large_base:
        raise ValueError(
            f"the base model of {counted(len(raw), 'layer')} would be {size / 1e9:.1f} GB in {dtype}; take fewer or "
            "smaller layers, or ask for it (large_base=, --large-base)"
        )
    _make_room(folder, force)
    told = {key: getattr(raw, key) for key in ("kind", "seed", "scale", "decay")}
    write = partial(
        write_adapter,
        folder,
        raw.method,
        alpha=raw.lora_alpha,
        activation=activation,
        rslora=raw.method == "rslora",
        dtype=dtype,
        pad=raw.pad,
    )
    if begins := METHODS[raw.method].initialises:
        starts = ((module, {"A": parts["A0"], "B": parts["B0"]}) for module, parts in raw.items())
        first = {"init_lora_weights": begins, _MADE: told | {"kind": "init"}}
        write_adapter(folder / START, "lora", starts, alpha=raw.lora_alpha, dtype=dtype, extra_config=first)
    if not METHODS[raw.method].needs_base:
        return write(raw, extra_config={_MADE: told})
    base = {key: getattr(raw, key) for key in ("seed", "base_spectrum", "base_decay")}
    with replacing(folder / BESIDE / "config.json") as config, replacing(folder / BESIDE / "model.safetensors") as file:
        config.write_text(json.dumps({_MADE: base}, indent=2) + "\n", encoding="utf-8")
        with TensorsOut(folder / BESIDE) as out:

            def modules() -> Iterator[tuple[str, dict[str, Array]]]:
                for module, parts in raw.items():
                    out.add(f"{module}.weight", parts[BASE], _base_dtype(raw, dtype))
                    yield module, parts

            write(modules(), base_model=f"./{BESIDE}", extra_config={_MADE: told | base})
            out.save(file, {"format": "pt"})
    return folder


def _make_room(folder: Path, force: bool) -> None:
    held = [name for name in (CONFIG_NAME, *WEIGHT_NAMES) if (folder / name).exists()]
    earlier = _told(folder / CONFIG_NAME)
    if held and not force and _MADE not in earlier:
        raise AdapterError(
            f"{folder}: holds {held[0]}, an adapter that was not made at random; give another folder, or replace it "
            "(--force, force=True)"
        )
    # What the earlier one names as its own; another folder of random numbers beside it is none of its parts.
    own = {START: isinstance(earlier.get("init_lora_weights"), str)}
    own[BESIDE] = earlier.get("base_model_name_or_path") == f"./{BESIDE}"
    for name, config in ((START, CONFIG_NAME), (BESIDE, "config.json")):
        if _MADE in earlier and own[name] and _MADE in _told(folder / name / config):
            shutil.rmtree(folder / name)


def _told(config: Path) -> dict[str, Any]:
    try:
        told = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def base_bytes(raw: Synthetic, dtype: str = "float32") -> int:
    """The size of the base model that a synthetic adapter needs; 0 for a method that needs none."""
    if not METHODS[raw.method].needs_base:
        return 0
    return sum(m * n for m, n in raw.shapes.values()) * BYTES[_base_dtype(raw, dtype)]


def _base_dtype(raw: Synthetic, dtype: str) -> str:
    return "float32" if recipe(raw.method).exact_base else dtype
