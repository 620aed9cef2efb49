"""The table of readers, one entry per file family, in the order in which they are tried.

A reader gets the open file and returns None unless it finds its own keys there; from then on the file is its own, and
what does not fit is an error. A method that cannot be read stays in :mod:`.refuse`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from . import adalora, bdlora, c3a, delora, experts, gralora, lycoris, miss, sparse, vblora, vera
from .adapter import natural
from .blocks import bora_loader, minis_loader, read_bora, read_melora
from .diff import read_diff
from .errors import AdapterError
from .lora import lora_loaders, method_name, sort_keys
from .on_base import read_boft, read_dora, read_hira, read_hra, read_ia3, read_miss_bat, read_oft
from .refuse import peft_type
from .sbora import read_sbora
from .source import Found, Source


class Reader(NamedTuple):
    """A file family.

    Attributes
    ----------
    label : its methods, as the messages name them.
    types : the ``peft_type`` of its configurations, by method; ``""`` for all of its methods.
    read : the reader.
    """

    label: str
    types: dict[str, str]
    read: Callable[[Source], Found | None]

    def kinds(self, method: str) -> tuple[str, ...]:
        """The ``peft_type`` that a file of a method may have."""
        return tuple(kind for name, kind in self.types.items() if name in ("", method))


def _read_lora(source: Source) -> Found:
    """LoRA and rsLoRA; MELoRA and BoRA as their authors save them, a LoRA pair with something beside it."""
    parts = sort_keys(source, source.tensors.keys())
    names = sorted({name for pairs in parts.pairs.values() for name in pairs}, key=natural)
    minis = names and all(name.isdecimal() for name in names)
    if minis and (len(names) > 1 or "melora" in (source.method, peft_type(source.config).lower())):
        loaders = {module: minis_loader(source, module, minis) for module, minis in parts.pairs.items()}
        return Found("melora", loaders, parts.passed_over, [])
    if len(names) > 1:
        shown = ", ".join(name or "(unnamed)" for name in names)
        raise AdapterError(f"{source.path}: holds {len(names)} adapters: {shown}; save one at a time")
    pairs = {module: next(iter(pairs.values())) for module, pairs in parts.pairs.items()}
    method = method_name(source)
    blocks = {
        module: bora_loader(source, module, {"A": pairs[module].A, "B": pairs[module].B, "sigma": sigma})
        for module, sigma in parts.sigmas.items()
    }
    plain = {module: pair for module, pair in pairs.items() if module not in blocks}
    loaders, notes = lora_loaders(source, plain, method)
    if blocks:
        method = "bora"
        if source.activation is None and "activation" not in (source.config or {}):
            key = next(iter(parts.sigmas.values()))
            notes.append(
                f"{key} is taken as BoRA's raw σ (exp-norm); if it is Σ, set activation (--activation) identity"
            )
    return Found(method, loaders | blocks, parts.passed_over, notes)


#: The last one takes every file.
READERS: tuple[Reader, ...] = (
    Reader("BoRA", {"": "BORA"}, read_bora),
    Reader("MELoRA", {"": "MELORA"}, read_melora),
    Reader("SBoRA", {"": "SBORA"}, read_sbora),
    Reader("DoRA", {"": "DORA"}, read_dora),
    Reader("HiRA", {"": "HIRA"}, read_hira),
    Reader("HRA", {"": "HRA"}, read_hra),
    Reader("OFT", {"": "OFT"}, read_oft),
    Reader("BOFT", {"": "BOFT"}, read_boft),
    Reader("IA³", {"": "IA3"}, read_ia3),
    Reader("MiSS (bat)", {"": "MISS"}, read_miss_bat),
    Reader("whole differences (LyCORIS)", {}, read_diff),
    Reader("HydraLoRA", {"": "HYDRALORA"}, experts.read_hydralora),
    Reader("MoELoRA", {"moelora": "MMOELORA", "": "MMOELORAS"}, experts.read_moelora),
    Reader("AdaLoRA", {"": "ADALORA"}, adalora.read),
    Reader("LoHa", {"": "LOHA"}, lycoris.read_loha),
    Reader("LoKr and KronA", {"": "LOKR"}, lycoris.read_lokr),
    Reader("VeRA and PVeRA", {"vera": "VERA", "pvera": "PVERA"}, vera.read),
    Reader("VB-LoRA", {"": "VBLORA"}, vblora.read),
    Reader("DeLoRA", {"": "DELORA"}, delora.read),
    Reader("GraLoRA", {"": "GRALORA"}, gralora.read),
    Reader("MiSS", {"": "MISS"}, miss.read),
    Reader("C³A", {"": "C3A"}, c3a.read),
    Reader("FourierFT", {"": "FOURIERFT"}, sparse.read_fourierft),
    Reader("SHiRA", {"": "SHIRA"}, sparse.read_shira),
    Reader("BD-LoRA", {"": "LORA"}, bdlora.read),
    Reader("LoRA and rsLoRA", {"": "LORA", "bora": "BORA", "melora": "MELORA"}, _read_lora),
)
