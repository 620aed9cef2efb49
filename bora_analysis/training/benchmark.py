"""Time and memory of training steps as multiples of LoRA's: table 4 of the paper (BoRA, arXiv 2508.06953), measured.

The methods take turns, forwards and backwards, and a ratio is taken within a round, so that what else runs on the
machine falls on all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch

from .models import quiet
from .steps import Step, Work, adapted, seconds_of

#: The method that the others are compared with.
PEER = "lora"


def in_turn(works: Mapping[str, Callable[[], list[float]]], rounds: int) -> dict[str, list[list[float]]]:
    """Name → what each round gave, after two rounds of warm-up; every other round goes the other way."""
    found: dict[str, list[list[float]]] = {name: [] for name in works}
    for k in range(rounds + 2):
        for name in list(works) if k % 2 else list(works)[::-1]:
            values = works[name]()
            if k >= 2:
                found[name].append(values)
    return found


def quartiles(times: Mapping[str, list[list[float]]], name: str, part: int, peer: str = PEER) -> list[float]:
    """Lower quartile, median and upper quartile of a method's time over the peer's in the same round."""
    ratios = [own[part] / other[part] for own, other in zip(times[name], times[peer], strict=True)]
    return statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3


def both_clocks(work: Callable[[], object], device: str) -> list[float]:
    """Seconds, and seconds of the processor."""
    start = time.process_time()
    return [seconds_of(work, device), time.process_time() - start]


def bench(
    works: Mapping[str, Work] | Work, methods: Sequence[str], *, rounds: int = 10, device: str | None = None
) -> pd.DataFrame:
    """Measure a training step (forward, backward, AdamW) of each method.

    Parameters
    ----------
    works : the step, or one for each method. methods : names that ``train`` accepts; LoRA is measured with them.
    rounds : of which each has a step of every method.
    device : ``"cpu"`` or ``"cuda"``; by default CUDA where there is a device.

    Returns
    -------
    One row per method: ``seconds`` (median of a step), ``time`` (median of the ratios to LoRA in the same round) with
    its quartiles ``time_low`` and ``time_high``, ``processor``, the same of the processor's time, ``peak`` (bytes of
    tensors) and ``memory``, its ratio to LoRA's.

    Raises
    ------
    TrainingError, ValueError, OSError
        As for :func:`bora_analysis.training.steps.adapted`.
    """
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    names = list(dict.fromkeys([PEER, *methods]))
    steps = {}
    with quiet():
        for name in names:
            work = works if isinstance(works, Work) else works[name]
            torch.manual_seed(0)
            with torch.device(place):
                steps[name] = Step(work, adapted(work, name), place)
        times = in_turn({name: lambda step=step: both_clocks(step.step, place) for name, step in steps.items()}, rounds)
        peaks = {name: step.peak() for name, step in steps.items()}
    rows = []
    for name, step in steps.items():
        low, middle, high = quartiles(times, name, 0)
        rows.append({
            "method": name, "r": step.work.r, "parameters": sum(value.numel() for value in step.trained),
            "seconds": statistics.median(value[0] for value in times[name]), "time": middle, "time_low": low,
            "time_high": high, "processor": quartiles(times, name, 1)[1], "peak": peaks[name],
            "memory": peaks[name] / peaks[PEER],
        })  # fmt: skip
    return pd.DataFrame(rows)
