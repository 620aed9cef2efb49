"""C³A (arXiv 2407.19342): blocks that are circulant.

PEFT: ``<module>.c3a_kernel`` (m/b, n/b, b); ΔW is divided by n (``c3a/layer.py``).
"""

from __future__ import annotations

from ..structures import c3a
from .source import Found, Loader, Source, collect, others


def read(source: Source) -> Found | None:
    """C³A as PEFT saves it."""
    found, rest = collect(source, "c3a_kernel")
    if not found:
        return None
    loaders = {module: _loader(source, parts["c3a_kernel"]) for module, parts in found.items()}
    return Found("c3a", loaders, others(source, rest), [], scaled=False)


def _loader(source: Source, key: str) -> Loader:
    source.check_factor(key)
    source.expect(len(source.tensors.shape(key)) == 3, key, "(m/b, n/b, b)")
    return source.loader({"kernel": key}, c3a)
