"""The names of modules in files of diffusion models: which part of the pipeline, and the path in it.

kohya writes ``lora_unet_down_blocks_0_attentions_0_proj_in``, diffusers ``unet.down_blocks.0.attentions.0.proj_in``,
ComfyUI ``diffusion_model.input_blocks.1.1.proj_in``, with the model's original names. Underscores become dots by the
base model's names, or by a list of the names that have underscores of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from ...patterns import late
from ..base_model import BaseWeights
from ..errors import AdapterError
from ..keys import module_path

_PARTS = late(
    r"(?P<kohya>lora_(unet|te\d?|transformer)_|lycoris_)(?P<under>[^.]+)"
    r"|(?P<dotted>model\.diffusion_model|diffusion_model|unet|transformer|text_encoder(_\d)?)\.(?P<path>.+)"
)
# Names with underscores. The longest that fits is taken.
_COMPOUND = """
down_blocks up_blocks mid_block input_blocks output_blocks middle_block transformer_blocks single_transformer_blocks
proj_in proj_out proj_mlp to_q to_k to_v to_out to_add_out to_qkv add_q_proj add_k_proj add_v_proj conv_in conv_out
conv_shortcut time_emb_proj time_embedding time_embed label_emb add_embedding linear_1 linear_2 in_layers out_layers
emb_layers skip_connection ff_context text_model self_attn cross_attn q_proj k_proj v_proj out_proj o_proj gate_proj
up_proj down_proj output_proj text_projection wi_0 wi_1 double_blocks single_blocks img_attn txt_attn img_mlp txt_mlp
img_mod txt_mod img_in txt_in time_in vector_in guidance_in in_layer out_layer final_layer adaLN_modulation
time_text_embed timestep_embedder guidance_embedder text_embedder context_embedder x_embedder norm1_context norm_out
joint_blocks context_block x_block feed_forward noise_refiner context_refiner patch_embedding text_embedding
time_projection k_img v_img llm_adapter layer_norm1 layer_norm2 adaln_modulation_self_attn
adaln_modulation_cross_attn adaln_modulation_mlp layerwise_blocks refiner_blocks
"""
_SINGLE = """
attentions resnets attn attn1 attn2 ff net proj conv conv1 conv2 op downsamplers upsamplers encoder layers layer block
blocks mlp fc1 fc2 linear linear1 linear2 lin modulation norm norm1 norm2 img qkv q k v o ffn attention w1 w2 w3 wi wo
SelfAttention EncDecAttention DenseReluDense model emb conv3 key query value head out layer1 layer2
gate up down first last wq wk wv tmlp tproj txtmlp txtfusion projector
"""
_NAMES = sorted([*_COMPOUND.split(), *_SINGLE.split()], key=len, reverse=True)
_DOTTED = late(rf"(?:(?P<name>{'|'.join(_NAMES)}|\d+)(?:_|$))")


class Name(NamedTuple):
    """Where a module is.

    Attributes
    ----------
    part : ``"unet"`` or ``"transformer"``, ``"text_encoder"``, ``"text_encoder_2"`` …; empty where the file has none.
    path : the module in it, with dots; None where that cannot be told.
    """

    part: str
    path: str | None


def names_of(modules: Iterable[str], base: BaseWeights | None = None) -> dict[str, Name]:
    """Part and path of each module, by their names in a file of kohya's, diffusers' or ComfyUI's layout."""
    found = {module: _name_of(module, base) for module in modules}
    # HunyuanVideo's img_attn_qkv is one name, Flux's img_attn_qkv two; they differ elsewhere.
    if base is None and any("img_mlp_fc1" in module for module in found):
        found = {
            module: Name(name.part, None) if re.search("(img|txt)_attn_", module) else name
            for module, name in found.items()
        }
    return found


def _name_of(module: str, base: BaseWeights | None) -> Name:
    hit = _PARTS.fullmatch(module)
    if not hit:
        return Name("", module)
    if hit["dotted"]:
        part = "unet" if hit["dotted"].endswith("diffusion_model") else hit["dotted"]
        path = hit["path"]
        if part == "unet" or "text_encoder" in part:  # of diffusers' old layout, which names no projection
            path = re.sub(r"(\.attn\d\.to_out)$", r"\1.0", path)
            path = re.sub(r"(?<=\.self_attn\.)to_(\w+)$", r"\1_proj", path)
        return Name(part, path)
    number = re.sub(r"\D", "", hit["kohya"])
    part = "transformer" if "transformer" in hit["kohya"] else "text_encoder" if "_te" in hit["kohya"] else "unet"
    part += f"_{number}" if number > "1" else ""
    if base is not None:
        try:
            return Name(part, re.sub(r"\.(in_proj_)?weight$", "", module_path(base.find(module))))
        except AdapterError:  # it may be another part's base model
            pass
    return Name(part, _dotted(hit["under"]))


def _dotted(path: str) -> str | None:
    """The path with dots, where all its names are known.

    >>> _dotted("down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_out_0"), _dotted("my_own_name")
    ('down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0', None)
    """
    names, at = [], 0
    while at < len(path):
        hit = _DOTTED.match(path, at)
        if hit is None:
            return None if len(names) or "_" in path else path
        names.append(hit["name"])
        at = hit.end()
    return ".".join(names)


def underscored(path: str) -> str:
    return path.replace(".", "_")
