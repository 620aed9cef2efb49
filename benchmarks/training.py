"""The cost of training relative to PEFT's LoRA, in one run: `python benchmarks/training.py [--rounds N] [--only PART]`.

Our version of the BoRA paper's table 4. Five parts:

* ``step``: forward, backward and AdamW on all-MiniLM-L6-v2 and on a tiny Llama (random weights), query and value of the
  6 layers, 32 × 64 tokens, two CPU threads, or a CUDA device in bfloat16 where there is one. r = 8; BoRA b = 16,
  MELoRA 4 minis; HydraLoRA r = 4 and three B, as in the paper.
* ``modes``: the same step of LoRA, BoRA and MELoRA under autocast to bfloat16 and float16, and with torch.compile.
* ``layer``: one frozen linear layer and its adapter, 2,048 tokens, forward alone and with backward.
* ``ranks``: what RankCallback takes of a training run at its default.
* ``estimate``: a step's time over what ``cost --step --measure`` says of it, the two in turn.

The methods take turns, and a ratio is the median over rounds of (method / LoRA in the same round), so that what else
runs on the machine falls on all of them; for a step also that of the processor's time, with its quartiles. Memory is
the most that tensors hold at once in a step: the model, gradients, AdamW's moments and what the forward pass keeps.
Writes Markdown on stdout and exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from bora_analysis.paper import tables as paper
from bora_analysis.peft_methods import BoraConfig, HydraloraConfig, MeloraConfig, RankCallback, SboraConfig
from bora_analysis.training import benchmark
from bora_analysis.training.benchmark import in_turn
from bora_analysis.training.steps import Step, Work, adapted, estimated_seconds, foreseen, most_held, seconds_of

STEP_ROUNDS, ESTIMATE_ROUNDS, BATCH, LENGTH, TOKENS = 20, 5, 32, 64, 2048
#: all-MiniLM-L6-v2; the other settings are BERT's own.
MINILM: dict[str, Any] = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
#: A Llama of 21 million parameters, with grouped keys and values.
LLAMA: dict[str, Any] = {
    "hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1024, "num_attention_heads": 6,
    "num_key_value_heads": 2, "vocab_size": 8192,
}  # fmt: skip
#: Name → the model, and the layers that are adapted.
MODELS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "all-MiniLM-L6-v2": (lambda: BertForSequenceClassification(BertConfig(**MINILM)), ["query", "value"]),
    "a tiny Llama": (lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)), ["q_proj", "v_proj"]),
}
#: Shape (m, n) of a layer → rounds.
SHAPES = {(384, 384): 60, (768, 768): 30, (1024, 4096): 8, (4096, 4096): 7}
PEER = "LoRA"
#: Limits of BoRA's time and memory over LoRA's.
TIME, MEMORY = 1.03, 1.01

CUDA = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float32)


@dataclass(frozen=True)
class Mode:
    """How a step is computed: the dtype of autocast, or None, and whether by torch.compile."""

    autocast: torch.dtype | None = None
    compiled: bool = False


USUAL = Mode(torch.bfloat16 if CUDA else None)
MODES = {
    "autocast to bfloat16": Mode(torch.bfloat16),
    "autocast to float16": Mode(torch.float16),
    "torch.compile": Mode(USUAL.autocast, compiled=True),
}
COMPARED = (PEER, "BoRA", "MELoRA")


def configs(targets: list[str]) -> dict[str, Any]:
    common: dict[str, Any] = {"target_modules": targets, "lora_alpha": 16}
    return {
        PEER: LoraConfig(r=8, **common),
        "BoRA": BoraConfig(r=8, num_blocks=16, **common),
        "MELoRA": MeloraConfig(r=8, num_minis=4, **common),
        "HydraLoRA": HydraloraConfig(r=4, num_experts=3, **common),
        "DoRA": LoraConfig(r=8, use_dora=True, **common),
        "SBoRA-FA": SboraConfig(r=8, **common),
        "SBoRA-FB": SboraConfig(r=8, variant="fb", **common),
    }


def both_clocks(work: Callable[[], object]) -> list[float]:
    return benchmark.both_clocks(work, DEVICE)


def seconds(work: Callable[[], object]) -> float:
    return seconds_of(work, DEVICE)


def over_peer(times: dict[str, list[list[float]]], name: str, part: int) -> float:
    return quartiles(times, name, part)[1]


def quartiles(times: dict[str, list[list[float]]], name: str, part: int) -> list[float]:
    return benchmark.quartiles(times, name, part, PEER)


# --- one training step -----------------------------------------------------------------------------------------------


class Training:
    """One of the models with an adapter, its optimiser and one batch."""

    def __init__(self, model: str, method: str, mode: Mode = USUAL):
        torch.manual_seed(0)
        make, targets = MODELS[model]
        base, config = make().to(device=DEVICE, dtype=DTYPE), configs(targets)[method]
        self.mode = mode
        self.model = get_peft_model(base, config).train()
        self.forward: Any = torch.compile(self.model) if mode.compiled else self.model
        self.trained = [value for value in self.model.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4)
        tokens = torch.randint(0, base.config.vocab_size, (BATCH, LENGTH), device=DEVICE)
        classified = isinstance(base, BertForSequenceClassification)
        labels = torch.randint(0, 2, (BATCH,), device=DEVICE) if classified else tokens
        self.batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}

    def step(self) -> None:
        with torch.autocast(DEVICE, dtype=self.mode.autocast, enabled=self.mode.autocast is not None):
            loss = self.forward(**self.batch).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def steps(rounds: float) -> bool:
    """Print our table 4 beside the paper's for each model; return whether a target is missed."""
    missed = [_steps(model, rounds) for model in MODELS]
    return any(missed)


def modes(rounds: float) -> bool:
    missed = []
    for name, mode in MODES.items():
        # The compiled code of one model after the other: torch keeps only so many versions of a function.
        torch.compiler.reset()
        missed += [_steps(model, rounds, mode, name, COMPARED) for model in MODELS]
    return any(missed)


def _steps(model: str, rounds: float, mode: Mode = USUAL, title: str = "", names: Collection[str] = ()) -> bool:
    runs = {name: Training(model, name, mode) for name in names or configs([])}
    works = {name: lambda run=run: both_clocks(run.step) for name, run in runs.items()}
    times = in_turn(works, count(STEP_ROUNDS, rounds))
    peaks = {name: most_held(run.step, run.model, run.optimizer, DEVICE) for name, run in runs.items()}
    frame = paper.table(4)
    printed = dict(zip(zip(frame["method"], frame["task"], strict=True), frame["value"].tolist(), strict=True))
    what = f"{model}, {title}" if title else model
    print(f"One step, {what}, query and value, {BATCH} × {LENGTH} tokens; the paper: LLaMA-3-8B, QKV\n")
    head = [
        "method",
        "parameters",
        "ms",
        "/LoRA",
        "processor /LoRA",
        "quartiles",
        "paper",
        "MB",
        "/LoRA",
        "paper",
        "target",
    ]
    print(f"| {' | '.join(head)} |\n" + "|---" * len(head) + "|")
    missed = False
    for name, run in runs.items():
        ratio, memory = over_peer(times, name, 0), peaks[name] / peaks[PEER]
        low, processor, high = quartiles(times, name, 1)
        theirs = [
            f"{printed[name.lower(), task] / printed['lora', task]:.3f}" if (name.lower(), task) in printed else "–"
            for task in ("time_min", "memory_gb")
        ]
        verdict = ""
        if name == "BoRA":
            # On a busy machine the processor's time tells more, on a GPU the seconds do.
            missed = (ratio if CUDA else processor) > TIME or memory > MEMORY
            verdict = f"≤ {TIME}, ≤ {MEMORY}: {'MISSED' if missed else 'met'}"
        trained = sum(value.numel() for value in run.trained)
        spent = 1000 * statistics.median(value[0] for value in times[name])
        print(
            f"| {name} | {trained:,} | {spent:.0f} | {ratio:.3f} | {processor:.3f} | {low:.3f}–{high:.3f} "
            f"| {theirs[0]} | {peaks[name] / 1e6:.1f} | {memory:.3f} | {theirs[1]} | {verdict} |"
        )
    print()
    return missed


# --- one layer -------------------------------------------------------------------------------------------------------


def layer_parts(layer: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> list[float]:
    """Seconds of the forward pass, and of both passes."""
    layer.zero_grad()
    x.grad = None
    kept: list[torch.Tensor] = []
    forward = seconds(lambda: kept.append(layer(x)))
    return [forward, forward + seconds(lambda: kept[0].backward(gradient))]


def layers(rounds: float) -> bool:
    print("One layer, 2,048 tokens\n\n| m×n | method | forward, ms | /LoRA | with backward | /LoRA | target |")
    print("|---|---|---|---|---|---|---|")
    missed = False
    for (m, n), usual in SHAPES.items():
        torch.manual_seed(0)
        x = torch.randn(TOKENS, n, device=DEVICE, dtype=DTYPE, requires_grad=True)
        gradient = torch.randn(TOKENS, m, device=DEVICE, dtype=DTYPE)
        found: dict[str, nn.Module] = {"no adapter": nn.Linear(n, m, device=DEVICE, dtype=DTYPE).requires_grad_(False)}
        for name, config in configs(["0"]).items():
            base: Any = nn.Sequential(nn.Linear(n, m, device=DEVICE, dtype=DTYPE))
            adapted: Any = get_peft_model(base, config, autocast_adapter_dtype=False)
            found[name] = adapted.base_model.model[0]
        works = {
            name: lambda layer=layer, x=x, gradient=gradient: layer_parts(layer, x, gradient)
            for name, layer in found.items()
        }
        times = in_turn(works, count(usual, rounds))
        for name, values in times.items():
            forward, both = (1000 * statistics.median(column) for column in zip(*values, strict=True))
            ratios = over_peer(times, name, 0), over_peer(times, name, 1)
            verdict = ""
            if name == "BoRA" and m == n == 4096:
                missed = ratios[0] > TIME
                verdict = f"forward ≤ {TIME}: {'MISSED' if missed else 'met'}"
            print(f"| {m}×{n} | {name} | {forward:.1f} | {ratios[0]:.3f} | {both:.1f} | {ratios[1]:.3f} | {verdict} |")
    print()
    return missed


def count(usual: int, factor: float) -> int:
    return max(1, round(usual * factor))


# --- the callback ----------------------------------------------------------------------------------------------------


def ranks(_: float) -> bool:
    """The cost of one record of RankCallback relative to the steps between two records by default."""
    run = Training("all-MiniLM-L6-v2", "BoRA")
    run.step()
    step = statistics.median(seconds(run.step) for _ in range(3))
    with tempfile.TemporaryDirectory() as folder:
        callback = RankCallback(Path(folder) / "ranks.parquet")
        state: Any = SimpleNamespace(is_world_process_zero=True, global_step=0)
        callback.on_train_begin(None, state, None, run.model)
        taken = []
        for k in range(1, 6):
            state.global_step = k * callback.every
            taken.append(seconds(lambda: callback.record(run.model, state, None)))
    record = statistics.median(taken)
    share = record / (callback.every * step)
    met = share <= 0.05
    print("RankCallback, BoRA on all-MiniLM-L6-v2\n\n| a record, ms | a step, ms | every | share | target |")
    print("|---|---|---|---|---|")
    print(
        f"| {1000 * record:.0f} | {1000 * step:.0f} | {callback.every} | {share:.2%} "
        f"| ≤ 5 %: {'met' if met else 'MISSED'} |\n"
    )
    return not met


# --- the estimate ----------------------------------------------------------------------------------------------------


def estimate(rounds: float) -> bool:
    """The time of a step over its estimate from two layers."""
    print("A step over the estimate of `cost --step --measure`\n\n| model | tokens | method | s | ratio | quartiles |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        LlamaConfig(**LLAMA).save_pretrained(folder)
        for name, model in (("all-MiniLM-L6-v2", "all-minilm-l6-v2"), ("a tiny Llama", folder)):
            for batch, length in ((8, 64), (4, 256)):
                work = Work(model, batch=batch, length=length, dtype=str(DTYPE).removeprefix("torch."))
                for method in ("lora", "bora", "dora"):
                    planned = foreseen(work, [method])[0]
                    with torch.device(DEVICE):
                        whole = Step(work, adapted(work, method), DEVICE)
                    whole.step()
                    found = []
                    for _ in range(count(ESTIMATE_ROUNDS, rounds)):
                        own = statistics.median(seconds(whole.step) for _ in range(3))
                        found.append((own, own / estimated_seconds(work, planned, device=DEVICE)))
                    low, middle, high = statistics.quantiles([ratio for _, ratio in found], n=4, method="inclusive")
                    print(
                        f"| {name} | {batch} × {length} | {method} | {statistics.median(own for own, _ in found):.3g} "
                        f"| {middle:.2f} | {low:.2f}–{high:.2f} |",
                        flush=True,
                    )
    print()
    return False


PARTS = {"step": steps, "modes": modes, "layer": layers, "ranks": ranks, "estimate": estimate}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=float, default=1.0, help="multiplies the number of rounds")
    parser.add_argument("--only", choices=PARTS, help="one part of the five")
    parser.add_argument("--threads", type=int, default=2, help="of the processor")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    where = torch.cuda.get_device_name() if CUDA else f"{platform.machine()}, {torch.get_num_threads()} threads"
    print(f"{where}, {str(DTYPE).removeprefix('torch.')}, torch {torch.__version__}; medians\n")
    missed = [PARTS[name](options.rounds) for name in ([options.only] if options.only else PARTS)]
    return int(any(missed))


if __name__ == "__main__":
    raise SystemExit(main())
