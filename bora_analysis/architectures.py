"""Layer shapes of the models that the paper fine-tunes, and of one small model to try things on.

Checked against the #Params of the paper's tables 1–4 (arXiv 2508.06953): what these shapes give under LoRA, DoRA,
MELoRA, HydraLoRA and BoRA agrees with the digits printed there.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """A stack of equal layers.

    Attributes
    ----------
    prefix : path of the layers, e.g. ``"model.layers"``.
    projections : letter-free name (q, k, v, o, gate, up, down) → (path inside the layer, out_features, in_features).
    """

    layers: int
    prefix: str
    projections: dict[str, tuple[str, int, int]]

    def modules(self, projections: tuple[str, ...]) -> dict[str, tuple[int, int]]:
        """Module path → (out_features, in_features), layer by layer."""
        return {
            f"{self.prefix}.{layer}.{path}": (m, n)
            for layer in range(self.layers)
            for path, m, n in (self.projections[name] for name in projections)
        }


def _bert(layers: int, hidden: int, inner: int, prefix: str) -> Architecture:
    attention = {name[0]: (f"attention.self.{name}", hidden, hidden) for name in ("query", "key", "value")}
    return Architecture(
        layers,
        prefix,
        {
            **attention,
            "o": ("attention.output.dense", hidden, hidden),
            "up": ("intermediate.dense", inner, hidden),
            "down": ("output.dense", hidden, inner),
        },
    )


def _llama(layers: int, hidden: int, query: int, key: int, inner: int) -> Architecture:
    return Architecture(
        layers,
        "model.layers",
        {
            "q": ("self_attn.q_proj", query, hidden),
            "k": ("self_attn.k_proj", key, hidden),
            "v": ("self_attn.v_proj", key, hidden),
            "o": ("self_attn.o_proj", hidden, query),
            "gate": ("mlp.gate_proj", inner, hidden),
            "up": ("mlp.up_proj", inner, hidden),
            "down": ("mlp.down_proj", hidden, inner),
        },
    )


ARCHITECTURES = {
    "roberta-base": _bert(12, 768, 3072, "roberta.encoder.layer"),
    "roberta-large": _bert(24, 1024, 4096, "roberta.encoder.layer"),
    "gemma-7b": _llama(28, 3072, 4096, 4096, 24576),
    "llama-3-8b": _llama(32, 4096, 4096, 1024, 14336),
    "qwen2.5-14b": _llama(48, 5120, 5120, 1024, 13824),
    "all-minilm-l6-v2": _bert(6, 384, 1536, "encoder.layer"),
}

#: The paper's shorthand (§4.4): Q, K, V, O, G, U, D.
LETTERS = {"q": "q", "k": "k", "v": "v", "o": "o", "g": "gate", "u": "up", "d": "down"}


def architecture(name: str) -> Architecture:
    """Look a model up by name; ``ValueError`` lists the names there are."""
    if name.lower() not in ARCHITECTURES:
        raise ValueError(f"model {name!r} is unknown; known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name.lower()]


def targets(shorthand: str, model: Architecture) -> tuple[str, ...]:
    """Projections behind the paper's shorthand, e.g. ``"qkv"`` or ``"QKVOGUD"``; ``"all"`` for every one there is.

    >>> targets("QKVUD", architecture("llama-3-8b"))
    ('q', 'k', 'v', 'up', 'down')
    """
    if shorthand.lower() == "all":
        return tuple(model.projections)
    names = tuple(dict.fromkeys(LETTERS.get(letter, letter) for letter in shorthand.lower()))
    unknown = [name for name in names if name not in model.projections]
    if unknown or not names:
        known = ", ".join(f"{letter.upper()} ({name})" for letter, name in LETTERS.items() if name in model.projections)
        raise ValueError(
            f"target {shorthand!r}: {', '.join(unknown) or 'nothing'} is not in this model; it has {known}, or all"
        )
    return names
