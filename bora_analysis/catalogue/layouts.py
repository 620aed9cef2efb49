"""The layouts of files, one row each: what is read, whose α counts, and what is written.

The documentation has these rows, in Markdown; ¹ marks what needs the base model. The code of a layout is in
:mod:`bora_analysis.files.layouts`.
"""

from __future__ import annotations

from typing import NamedTuple


class Layout(NamedTuple):
    """What is read of a program's files: the program, its names, and where the scaling comes from."""

    label: str
    names: str
    scaling: str


READ = (
    Layout(
        "PEFT, ours",
        "all methods",
        "α/r, α/√r for rsLoRA, by pattern",
    ),
    Layout(
        "kohya",
        "`lora_down`, `lora_up`, linear layers and convolutions",
        "each module's `alpha`/r; without `alpha` 1 and a warning",
    ),
    Layout(
        "LyCORIS",
        (
            "the same, `lora_mid` (Tucker), LoHa, LoKr, `diff` (a whole ΔW), `dora_scale` ¹ over LoRA, LoKr or LoHa, "
            "T-LoRA ¹; several in one file"
        ),
        "the same; 1 for `diff` and a LoKr of two whole factors",
    ),
    Layout(
        "diffusers",
        "`unet.….lora_A.weight`; `….lora.down`, `….processor.to_q_lora.down`, `….lora_linear_layer.down`",
        "`alpha` beside them, else the configuration in the header, else 1",
    ),
    Layout(
        "MLX",
        "`lora_a` (n, r), `lora_b` (r, m), embeddings, experts, DoRA's `m` ¹, in `.safetensors` or `.npz`",
        (
            "`scale`; a warning for files of an early version that multiplied it by α/r; `--alpha` = scale · r for "
            "`.npz`, which store none"
        ),
    ),
    Layout(
        "llama.cpp",
        "`.gguf`: `blk.0.attn_q.weight.lora_a`, `.lora_b` in F64, F32, F16, BF16 or Q8_0",
        "`adapter.lora.alpha`/r; 1 where it is 0",
    ),
    Layout(
        "LitGPT",
        "`lit_model.pth.lora`, its fused `qkv` by numbers of heads",
        "α/r of `hyperparameters.yaml`",
    ),
    Layout(
        "torchtune",
        "`.lora_a.weight`, `.lora_b.weight`, `.magnitude` ¹",
        "`--alpha` or the configuration",
    ),
    Layout(
        "Megatron, NeMo",
        "`….adapter.linear_in.weight`, `.linear_out.weight`",
        "`--alpha` or the configuration",
    ),
    Layout(
        "FSDP",
        "the folder of torch.distributed.checkpoint, `.metadata` and `__0_0.distcp` …, with any layout's names",
        "as for one file",
    ),
    Layout(
        "experts",
        (
            "stacks (E, r, n) and (E, m, r) of Tinker, llama.cpp and Megatron, (m, r, E) of vLLM, one factor that all "
            "share: each expert is a module"
        ),
        "as for other modules",
    ),
    Layout(
        "KerasHub",
        "`.lora.h5`: `lora/3/vars/lora_kernel_a`, `lora_kernel_b`",
        "1",
    ),
    Layout(
        "Qwix, Tunix",
        "`….w_lora_a`, `….w_lora_b`, up to three axes",
        "`--alpha` or the configuration",
    ),
    Layout(
        "loralib, LLM-Adapters",
        "`.lora_A`, `.lora_B`; MergedLinear, whose part g of B uses only rows g of A",
        "`--alpha`, or the configuration",
    ),
    Layout(
        "cloneofsimo",
        "`unet:12:up`, `unet:12:down`; a `.pt` list of up, down, up …",
        "1",
    ),
    Layout(
        "SAM-LoRA",
        "`w_a_000`, `w_b_000`: even numbers query, odd ones value",
        "1",
    ),
    Layout(
        "authors'",
        (
            "MELoRA, SBoRA, QSBoRA (`SB_FA_add` …), HydraLoRA, MoELoRA (a tensor under two names counts once), DoRA ¹, "
            "HiRA ¹"
        ),
        "the method's",
    ),
)

#: In which a LoRA is written, see :func:`bora_analysis.convert`: name → what is written, in the order of menus.
WRITTEN = {
    "same": "the layout of the file: each module keeps its α/r; metadata, biases and what else the file holds stay",
    "peft": (
        "`adapter_model.safetensors`, `adapter_config.json`; also convolutions (2-D, 3-D, grouped), embeddings, expert "
        "parameters, nn.MultiheadAttention; heads and embeddings are copied from PEFT's layout"
    ),
    "per-expert": "PEFT's, with each expert of a mixture a module: `…experts.3.gate_proj`",
    "comfyui": "`diffusion_model.….lora_A.weight`",
    "diffusers": "`unet.….lora_A.weight`, with PEFT's settings in the header",
    "kohya": "`lora_unet_….lora_down.weight`, `.alpha`, with `ss_network_dim` and `ss_network_alpha` in the header",
    "mlx": "`adapters.safetensors` (`lora_a`, `lora_b`; experts stacked), `adapter_config.json`; one rank",
    "gguf": (
        "`lora.gguf` for llama.cpp, of Llama, Mistral, Granite, Qwen 2 and 3, Gemma and Phi 3, whose `config.json` "
        "is in `--base`; one rank"
    ),
}
