"""Do the ranks that `recommend` advises lose anything? `python benchmarks/advice.py`, after `python data/prepare.py`.

Three bundled LoRAs, two tasks, three seeds: trained, and trained anew with the ranks that `recommend --pattern` prints
for the first seed's adapter, everything else alike. What was trained before is not trained again. Printed is the table
of data/README.md: mean ± standard deviation, and the mean of the differences, seed by seed, with Student's interval of
95 %. About a minute of one core for each of the 36 runs. There is no limit to meet: the result is what it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))

import make_adapters as made
import tables


def main() -> int:
    known = {made.run_of(row) for row in made.read_results()}
    asked = [run for run in made.runs("bundled", "advised") if run.adapter in made.ASKED]
    for run in asked:
        if run not in known:
            made.perform(run)
    missing = [run for run in asked if run not in known and not made.finished(run)]
    if missing:
        print(f"{len(missing)} runs did not finish, {missing[0].folder} the first", file=sys.stderr)
        return 1
    if not known.issuperset(asked):
        made.bundle()
    print(tables.advice_table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
