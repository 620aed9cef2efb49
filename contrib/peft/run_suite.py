"""Run PEFT's own tests with this package's methods: ``python contrib/peft/run_suite.py [--only config,decoder]``.

The tests come from PEFT's source distribution on PyPI at the version that constraints.txt pins. Writes a table of
counts as Markdown, and the reasons of what was skipped or expected to fail; exits with 1 on a failure without a reason.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OUT = ROOT / "out" / "peft"
FILES = {
    "config": "test_config.py",
    "custom": "test_custom_models.py",
    "decoder": "test_decoder_models.py",
    "encoder-decoder": "test_encoder_decoder_models.py",
    "features": "test_feature_extraction_models.py",
    "classification": "test_seq_classifier.py",
    "quantisation": "test_quantization.py",
    "torch-compile": "test_torch_compile.py",
    "initialisation": "test_initialization.py",
}


def pinned() -> str:
    """The version of PEFT in constraints.txt."""
    found = re.search(r"^peft==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found, "constraints.txt pins no peft"
    return found[1]


def source(folder: Path = OUT) -> Path:
    """The unpacked source distribution of PEFT, fetched once."""
    name = f"peft-{pinned()}"
    if not (folder / name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        fetch = ["download", "--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
        subprocess.run([sys.executable, "-m", "pip", *fetch, "-d", str(folder), name.replace("-", "==")], check=True)
        with tarfile.open(folder / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    (folder / name / "tests" / "__init__.py").touch()  # the distribution has the tests without it
    return folder / name


def run(name: str, tree: Path, paths: list[Path], workers: int, extra: list[str]) -> ElementTree.Element:
    """Run one file of PEFT's tests in a tree of its source; returns pytest's report."""
    report = OUT / f"{tree.name}-{name}.xml"
    (OUT / "pytest.ini").write_text("[pytest]\nmarkers =\n    single_gpu_tests\n    bitsandbytes\n    regression\n")
    settings = {"PYTHONPATH": os.pathsep.join(map(str, [HERE, *paths])), "LOCAL_ADAPTER": str(OUT / "adapter")}
    settings |= {"HF_HUB_CACHE": str(OUT / "hub"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    settings |= {"PEFT_DEBUG_WITH_TORCH_COMPILE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "offline", "-c", str(OUT / "pytest.ini")]
    command += ["--rootdir", str(tree), f"--junit-xml={report}", *(["-n", str(workers)] if workers > 1 else []), *extra]
    report.unlink(missing_ok=True)
    with (OUT / f"{report.stem}.log").open("w") as log:
        file = str(tree / "tests" / FILES[name])
        subprocess.run([*command, file], check=False, cwd=tree, env=os.environ | settings, stdout=log, stderr=log)
    return ElementTree.parse(report).getroot()


def tabulate(names: list[str], tree: Path, paths: list[Path], workers: int, extra: list[str]) -> bool:
    """Run some files, print the table and the reasons, and tell whether nothing failed without a reason."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import hub

    hub.fill(OUT)
    rows, reasons, failed = [], Counter(), []
    for name in names:
        start = time.perf_counter()
        counts: Counter[str] = Counter()
        for case in run(name, tree, paths, workers, extra).iter("testcase"):
            result = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
            kind = "passed" if result is None else result.tag
            message = "" if result is None else (result.get("message") or "").strip().splitlines()[0]
            if result is not None and result.get("type") == "pytest.xfail":
                kind = "expected"
            if kind in ("skipped", "expected"):
                reasons[kind, message] += 1
            elif kind != "passed":
                failed.append(f"{case.get('classname')}::{case.get('name')}: {message[:160]}")
            counts[kind] += 1
        wrong = counts["failure"] + counts["error"]
        seconds = f"{time.perf_counter() - start:.0f} s"
        rows.append([name, counts["passed"], wrong, counts["expected"], counts["skipped"], seconds])
        print(*rows[-1], flush=True)
    head = ["tests", "passed", "failed", "expected to fail", "skipped by PEFT", "time"]
    print(f"\nPEFT {pinned()}\n")
    for row in (head, ["---"] * len(head), *rows):
        print("|", " | ".join(map(str, row)), "|")
    for kind, message in sorted(reasons):
        print(f"- {kind}, {reasons[kind, message]}: {message}")
    for line in failed:
        print("FAILED", line)
    return not failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(FILES), help="some of " + ", ".join(FILES))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("extra", nargs="*", help="arguments for pytest, after --")
    given = parser.parse_args()
    extra = ["-p", "suite", *given.extra]
    return not tabulate(given.only.split(","), source(), [ROOT], given.workers, extra)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    sys.exit(main())
