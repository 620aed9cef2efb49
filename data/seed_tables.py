"""The tables of the bundled runs, and of every other of make_adapters.py in out/: ``python data/seed_tables.py``.

Written are data/seeds/*.parquet, the two tables of ``bora-analysis analyze``: one row per module and one per singular
value, with the columns of results.csv that tell the runs apart. Numbers are rounded to float32. Runs that are not there
keep the rows that they have.
"""

from __future__ import annotations

from pathlib import Path

import make_adapters as made
import pandas as pd

FOLDER = Path(__file__).parent / "seeds"
KEYS = ["task", "adapter", "variant", "learning_rate", "seed"]


def tables(run: made.Run) -> dict[str, pd.DataFrame]:
    """layer_metrics and spectra of a run."""
    from bora_analysis import analyse

    found = analyse(run.folder if made.finished(run) else run.bundle)
    values = (run.task, run.adapter, run.variant, float(run.rate), run.seed)
    out = {}
    for name in ("layer_metrics", "spectra"):
        frame = getattr(found, name).drop(columns=["adapter", "step"])
        numbers = frame.select_dtypes("float64").columns
        frame = frame.astype(dict.fromkeys(numbers, "float32"))
        out[name] = pd.DataFrame(dict(zip(KEYS, values, strict=True)), index=frame.index).join(frame)
    return out


def main() -> None:
    there = [run for run in made.runs() if made.finished(run) or run.bundled]
    done = [tables(run) for run in there if run.adapter != "dora-r8"]  # needs the base
    FOLDER.mkdir(exist_ok=True)
    for name in ("layer_metrics", "spectra"):
        path = FOLDER / f"{name}.parquet"
        frames = [each[name] for each in done]
        if path.exists():
            old = pd.read_parquet(path)
            new = pd.concat(frames)[KEYS].drop_duplicates()
            marked = old[KEYS].merge(new, how="left", indicator=True)["_merge"]
            frames.insert(0, old[(marked == "left_only").to_numpy()])
        frame = pd.concat(frames, ignore_index=True).sort_values(KEYS, kind="stable", ignore_index=True)
        frame.to_parquet(path, compression="zstd")
        runs = len(frame[KEYS].drop_duplicates())
        print(f"wrote {path}: {len(frame):,} rows of {runs} runs, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
