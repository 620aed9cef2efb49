"""The projection and the layer number in the path of a module, across model families."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise

from ..patterns import late

# Projection → last names of modules. `projection` decides by the path for names that occur in both attention and the
# feed-forward part.
_PROJECTIONS = {
    "q": "q q_proj query q_lin to_q wq query_proj",
    "k": "k k_proj key k_lin to_k wk key_proj",
    "v": "v v_proj value v_lin to_v wv value_proj",
    "o": "o o_proj out_proj out_lin to_out",
    "qkv": "qkv query_key_value c_attn qkv_proj wqkv w_pack",
    "gate": "gate_proj w1 wi_0",
    "up": "up_proj fc1 c_fc dense_h_to_4h w3 wi wi_1 lin1",
    "down": "down_proj fc2 dense_4h_to_h w2 lin2",
    "router": "gate router",  # `mlp.gate` of a mixture of experts is the router, not the gate projection
}
_BY_NAME = {name: projection for projection, names in _PROJECTIONS.items() for name in names.split()}
_ATTENTION = late(r"attn|attention", re.IGNORECASE)
_FEED_FORWARD = late(r"mlp|ffn|feed_?forward|densereludense|(^|_)ff($|_)", re.IGNORECASE)
_EITHER = ("c_proj", "proj", "wo", "dense")  # GPT-2, timm, T5 and BERT use one name in both parts of a layer
_DIFFUSERS_FF = late(r"(^|[._])ff(_context)?[._]net\.(?P<part>0\.proj|2)")
# kohya and LyCORIS write underscores for the dots of a path.
_UNDERSCORED = late(r"(lora|lycoris)_[^.]+")


@lru_cache(4096)
def projection(module: str) -> str:
    """Canonical projection of a module path: q, k, v, o, gate, up, down, qkv when fused; otherwise its last name.

    >>> projection("model.layers.3.self_attn.q_proj"), projection("h.0.attn.c_attn"), projection("h.0.mlp.c_proj")
    ('q', 'qkv', 'down')
    >>> projection("encoder.layer.1.attention.output.dense"), projection("encoder.layer.1.output.dense")
    ('o', 'down')
    >>> projection("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0")
    'o'
    """
    path = _dotted(module)
    hit = _DIFFUSERS_FF.search(path)
    if hit and hit.end() == len(path):
        return "down" if hit["part"] == "2" else "up"
    parts = [part for part in path.split(".") if not part.isdigit()] or [module]
    name = parts[-1].lower()
    if path != module:  # the last name is the longest known end
        pieces = name.split("_")
        ends = ["_".join(pieces[k:]) for k in range(len(pieces))]
        name = next((end for end in ends if end in _BY_NAME or end in _EITHER), name)
        parts[-1:-1] = [parts[-1].removesuffix(name).removesuffix("_")]
    if name in _EITHER:
        for parent in reversed(parts[:-1]):  # the nearest: diffusers' `attentions` hold both
            if _ATTENTION.search(parent):
                return "o"
            if name != "dense" and _FEED_FORWARD.search(parent):
                return "down"
        if name == "dense":
            return {"intermediate": "up", "output": "down"}.get(parts[-2] if len(parts) > 1 else "", parts[-1])
        return parts[-1]
    return _BY_NAME.get(name, parts[-1])


@lru_cache(4096)
def layer(module: str) -> int | None:
    """Number of the layer: the first integer part of a module path, or None.

    >>> layer("model.layers.31.mlp.experts.5.w1"), layer("lm_head")
    (31, None)
    """
    return next((int(part) for part in _dotted(module).split(".") if part.isdigit()), None)


def _dotted(module: str) -> str:
    """The path with dots around its numbers, if underscores replace all dots."""
    if not _UNDERSCORED.fullmatch(module):
        return module
    pieces = module.split("_")
    path = pieces[0]
    for piece, following in pairwise(pieces):
        path += ("." if piece.isdigit() or following.isdigit() else "_") + following
    return path
