"""Layer shapes of models: those that the paper fine-tunes, a small one for trials, and any model of transformers.

The shapes of the paper's models are checked against the #Params of its tables 1–4, 8 and 9 (arXiv 2508.06953): the
parameters of LoRA, DoRA, MELoRA, HydraLoRA and BoRA agree with the digits. Other shapes come from a ``config.json``.
"""

from __future__ import annotations

import errno
import re
import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..extras import require
from .module_names import layer, projection


@dataclass(frozen=True)
class Architecture:
    """A stack of equal layers.

    Attributes
    ----------
    prefix : path of the layers, e.g. ``"model.layers"``.
    projections : letter-free name (q, k, v, o, gate, up, down) → (path inside the layer, out_features, in_features).
    config : its configuration in transformers, where it differs from the defaults, with ``model_type``.
    """

    layers: int
    prefix: str
    projections: dict[str, tuple[str, int, int]]
    config: dict[str, Any] = field(default_factory=dict)

    def modules(self, projections: tuple[str, ...]) -> dict[str, tuple[int, int]]:
        """Module path → (out_features, in_features), layer by layer."""
        return {
            f"{self.prefix}.{layer}.{path}": (m, n)
            for layer in range(self.layers)
            for path, m, n in (self.projections[name] for name in projections)
        }

    def matrices(self) -> list[Matrices]:
        """The projections in their order, each with its number of layers."""
        return [Matrices(name, m, n, self.layers) for name, (_, m, n) in self.projections.items()]


class Matrices(NamedTuple):
    """All matrices of one projection and one shape."""

    projection: str
    out_features: int
    in_features: int
    #: How many matrices: above the model's number of layers where one layer has several (cross-attention, experts).
    layers: int


def _known() -> dict[str, Architecture]:
    models = tomllib.loads(Path(__file__).with_name("architectures.toml").read_text(encoding="utf-8"))
    for facts in models.values():
        facts["projections"] = {name: tuple(found) for name, found in facts["projections"].items()}
    return {name: Architecture(**facts) for name, facts in models.items()}


ARCHITECTURES = _known()

#: The paper's shorthand (§4.4): Q, K, V, O, G, U, D.
LETTERS = {"q": "q", "k": "k", "v": "v", "o": "o", "g": "gate", "u": "up", "d": "down"}


def architecture(name: str) -> Architecture:
    """A model by its name; ``ValueError`` lists the known names."""
    if name.lower() not in ARCHITECTURES:
        raise ValueError(f"model {name!r} is unknown; known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name.lower()]


def matrices(model: str) -> list[Matrices]:
    """The linear layers of a model, by projection and shape, without its weights.

    Parameters
    ----------
    model : a name in ``ARCHITECTURES``; a folder with a transformers ``config.json``, or that file; or a Hub id
        ``org/name``. The last two need transformers. Linear layers outside the numbered layers (heads, poolers) are
        left out, and so are expert weights that transformers keeps in one 3-D tensor.

    Raises
    ------
    ValueError
        Unknown model (the message lists the known ones), or a configuration that transformers cannot use.
    OSError
        The configuration is missing.

    Examples
    --------
    >>> matrices("LLaMA-3-8B")[1]
    Matrices(projection='k', out_features=1024, in_features=4096, layers=32)
    """
    if model.lower() in ARCHITECTURES:
        return ARCHITECTURES[model.lower()].matrices()
    return _from_config(model)


def _source(model: str) -> str:
    """The folder or Hub id of a configuration."""
    path = Path(model)
    if path.name == "config.json":
        path = path.parent
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(errno.ENOENT, "no config.json in this folder", model)
        return str(path)
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(?<!\.json)", model):
        return model
    raise ValueError(
        f"model {model!r} is unknown; known: {', '.join(ARCHITECTURES)}; or a folder with a config.json of "
        "transformers, or a Hub id org/name"
    )


def configuration(model: str) -> Any:
    """The configuration of a model, for transformers. Arguments and errors as for :func:`matrices`."""
    known = ARCHITECTURES.get(model.lower())
    source = "" if known else _source(model)
    require("train", f"model {model!r}: reading a configuration", "torch", "transformers", error=ValueError)
    from transformers import AutoConfig

    if known:
        return AutoConfig.for_model(**known.config)
    try:
        return AutoConfig.from_pretrained(source)
    except OSError as error:
        raise OSError(errno.EIO, f"transformers cannot load its configuration: {_first_line(error)}", model) from None
    except Exception as error:  # transformers raises many kinds of errors for a bad configuration
        raise ValueError(f"model {model!r}: its configuration cannot be used: {_first_line(error)}") from None


def _from_config(shown: str) -> list[Matrices]:
    config = configuration(shown)
    import torch
    from transformers import AutoModel
    from transformers.pytorch_utils import Conv1D

    try:
        with torch.device("meta"):
            network = AutoModel.from_config(config)
    except Exception as error:
        raise ValueError(f"model {shown!r}: transformers cannot build it: {_first_line(error)}") from None
    counts: Counter[tuple[str, int, int]] = Counter()
    for path, module in network.named_modules():
        if layer(path) is not None and isinstance(module, torch.nn.Linear | Conv1D):
            shape = tuple(module.weight.shape)
            m, n = shape[::-1] if isinstance(module, Conv1D) else shape
            counts[projection(path), m, n] += 1
    if not counts:
        raise ValueError(f"model {shown!r}: its type {config.model_type} has no linear layers in numbered layers")
    return [Matrices(*key, count) for key, count in counts.items()]


def _first_line(error: Any) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def chosen(target: str, known: Iterable[str]) -> tuple[str, ...]:
    """Projections that a target names.

    Parameters
    ----------
    target : the paper's shorthand, e.g. ``"qkv"`` or ``"QKVOGUD"``; names with commas between them, e.g.
        ``"qkv,o"``, for projections without a letter; ``"all"`` for every projection.
    known : the projections of the model.

    Raises
    ------
    ValueError
        A projection that the model lacks; the message lists the model's projections.

    Examples
    --------
    >>> chosen("qkv", ["q", "k", "v", "o"]), chosen("qkv", ["qkv", "o"])  # the second is fused
    (('q', 'k', 'v'), ('qkv',))
    """
    known = tuple(dict.fromkeys(known))
    if target.lower() == "all":
        return known
    by_lower = {name.lower(): name for name in known}
    letters = [LETTERS.get(letter, letter) for letter in target.lower()]
    if "," in target:
        names = [LETTERS.get(part.strip(), part.strip()) for part in target.lower().split(",")]
    elif target.lower() in by_lower and not set(letters) <= set(by_lower):
        names = [target.lower()]
    else:
        names = letters
    unknown = list(dict.fromkeys(name for name in names if name not in by_lower))
    if names and not unknown:
        return tuple(dict.fromkeys(by_lower[name] for name in names))
    letter_of = {name: letter.upper() for letter, name in LETTERS.items()}
    has = ", ".join(f"{letter_of[name]} ({name})" if name in letter_of else name for name in known)
    message = f"target {target!r}: {', '.join(unknown) or 'nothing'} is not in this model; it has {has}, or all"
    fused = [name for name in unknown if name in ("q", "k", "v")]
    if fused and "qkv" in known:
        message += f". This model fuses {', '.join(fused)} into one matrix: qkv"
    raise ValueError(message)
