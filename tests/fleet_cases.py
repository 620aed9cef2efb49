"""Small adapters for sweeps, and sketches that misbehave: a worker's process imports them by name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bora_analysis import write_adapter
from bora_analysis.fleet.results import Results

#: Columns of ``adapters`` that are not the same from one sweep to the next.
OF_A_RUN = ["seconds", "finished", "attempts", "stamp"]


def adapter(folder: Path, seed: int = 0, r: int = 4, modules: int = 3, size: int = 24) -> Path:
    rng = np.random.default_rng(seed)
    factors = {
        f"layers.{k}.q_proj": {
            "B": rng.standard_normal((size, r)).astype(np.float32),
            "A": rng.standard_normal((r, size + 8)).astype(np.float32),
        }
        for k in range(modules)
    }
    return write_adapter(folder, "lora", factors, alpha=2 * r, base_model="org/base")


def adapters(home: Path, count: int, **options: Any) -> Path:
    for k in range(count):
        adapter(home / f"a{k:02d}", seed=k, **options)
    return home


def tables(place: Any) -> dict[str, pd.DataFrame]:
    """All that a sweep's result is, but for what differs from run to run."""
    results = Results(place)
    frames = {"adapters": results.adapters().drop(columns=OF_A_RUN), "layer_metrics": results.layer_metrics()}
    if results.storage.names("spectra"):
        frames["spectra"] = results.spectra()
    return frames


def same(first: dict[str, pd.DataFrame], second: dict[str, pd.DataFrame]) -> None:
    """Equal to the bit."""
    assert first.keys() == second.keys()
    for name, frame in first.items():
        pd.testing.assert_frame_equal(frame, second[name], check_exact=True, obj=name)


# --- sketches: function (module, update) → columns ---


def corners(module: str, update: Any) -> dict[str, Any]:
    left, right = update.factors()
    return {"corner": float((left[0] @ right[:, 0]).item()), "row": left[0] @ right, "path": module}


def with_pandas(module: str, update: Any) -> dict[str, Any]:
    import pandas

    return {"rank": int(pandas.Series([update.facts.r]).iloc[0])}


def slow(module: str, update: Any) -> dict[str, Any]:
    time.sleep(0.1)
    return {}


def crawl(module: str, update: Any) -> dict[str, Any]:
    """So slow that even a test on a busy machine comes in the middle."""
    time.sleep(0.5)
    return {}


def crash(module: str, update: Any) -> dict[str, Any]:
    """Ends the process at a module of rank 7."""
    if update.facts.r == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return {}


def crash_once(module: str, update: Any) -> dict[str, Any]:
    mark = Path(os.environ["CRASHED_ONCE"])
    if update.facts.r == 7 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    return {}


def hang(module: str, update: Any) -> dict[str, Any]:
    if update.facts.r == 7:
        time.sleep(3600)
    return {}


def devour(module: str, update: Any) -> dict[str, Any]:
    if update.facts.r == 7:
        return {"size": float(np.ones(1 << 29).sum())}  # 4 GB
    return {"size": 0.0}


def fault(module: str, update: Any) -> dict[str, Any]:
    if update.facts.r == 7:
        raise RuntimeError("a fault of\nthe sketch")
    return {}
