"""A plain installation: what needs no extra works, and what needs one says which in a line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bora_analysis import read_adapter, singular_values, write_adapter

DATA = Path(__file__).parents[1] / "data"
#: What the extras bring, by the names under which it is imported.
PACKAGES = (
    "torch", "streamlit", "altair", "cachetools", "peft", "transformers", "tokenizers", "accelerate", "sklearn", "h5py",
)  # fmt: skip
#: The commands of a process that can import none of them.
PRELUDE = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {PACKAGES}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""
RUNNER = """
import json
from click.testing import CliRunner
from bora_analysis.cli import main

found = {}
for name, command in json.load(sys.stdin).items():
    result = CliRunner().invoke(main, command)
    trouble = result.exception is not None and not isinstance(result.exception, SystemExit)
    found[name] = [result.exit_code, result.stdout, repr(result.exception) if trouble else result.stderr]
json.dump(found, sys.stdout)
"""


def plainly(code: str, given: str = "") -> str:
    """What the code prints in a process that has none of the extras' packages."""
    command = [sys.executable, "-c", PRELUDE + code]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    (folder / "model.bin").write_bytes(b"PK\x03\x04")
    (folder / "old.pt").write_bytes(b"\x80\x02")
    (folder / "model.lora.h5").write_bytes(b"\x89HDF\r\n")
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text('{"model_type": "bert"}')
    (folder / "reviews.csv").write_text("sentence,label\ngood,1\nbad,0\n")
    rng, modules = np.random.default_rng(0), ("layers.0.q_proj", "layers.1.q_proj")
    spectrum = {"spectrum": rng.standard_normal(20).astype(np.float32), "shape": np.array([16, 12])}
    write_adapter(folder / "fourierft", "fourierft", dict.fromkeys(modules, spectrum), alpha=None)
    vectors = {"lambda_b": np.ones(16, np.float32), "lambda_d": np.ones(4, np.float32), "shape": np.array([16, 12])}
    shared = {"A": np.ones((4, 12), np.float32), "B": np.ones((16, 4), np.float32)}
    write_adapter(folder / "vera", "vera", dict.fromkeys(modules, vectors | shared), alpha=None)
    from safetensors.numpy import load_file, save_file

    weights = folder / "vera/adapter_model.safetensors"
    save_file({key: value for key, value in load_file(weights).items() if "vera_lambda" in key}, weights)
    config = json.loads((folder / "vera/adapter_config.json").read_text()) | {"projection_prng_key": 0}
    (folder / "vera/adapter_config.json").write_text(json.dumps(config))
    return folder


SHOWN = [str(DATA / name) for name in ("trained-lora-r8", "trained-bora-r8-b8", "synthetic-melora-r8-b4")]
#: Name → arguments of what works; {} is the folder of the files.
WORKING: dict[str, list[str]] = {
    "analyze": ["analyze", *SHOWN, "--format", "csv"],
    "compare": ["compare", *SHOWN],
    "compare on the CPU": ["compare", *SHOWN, "--device", "cpu"],
    "factors": ["factors", str(DATA / "runs/bora-r8-b8")],
    "recommend": ["recommend", SHOWN[0]],
    "similarity": ["similarity", *SHOWN[:2], "-i", "2", "-j", "2"],
    "convert": ["convert", SHOWN[1], "-o", "{}/lora", "--rank", "4", "--dtype", "bfloat16"],
    "merge": ["merge", f"{SHOWN[0]}@0.5", f"{SHOWN[1]}@0.5", "-o", "{}/merged"],
    "figure": ["figure", "figure4", *SHOWN, "-o", "{}/figure4.pdf"],
    "synth": ["synth", "--method", "vera", "-o", "{}/synth"],
    "cost": ["cost", "--model", "roberta-base", "--target", "qv", "--method", "all"],
    "paper": ["paper", "--check"],
    "recipes": ["train", "--recipes"],
}
TRAIN = ["train", "--model", "m", "--data", "{}/reviews.csv", "-o", "{}/run"]
#: Name → arguments of what needs an extra, the extra, the package that is missed first, the exit code.
LACKING: dict[str, tuple[list[str], str, str, int]] = {
    "model.bin": (["analyze", "{}/model.bin"], "torch", "torch", 1),
    "old.pt": (["compare", "{}/old.pt"], "torch", "torch", 1),
    "model.lora.h5": (["analyze", "{}/model.lora.h5"], "h5", "h5py", 1),
    "device 'cuda'": (["analyze", SHOWN[0], "--device", "cuda"], "torch", "torch", 2),
    "q_proj.fourierft_spectrum": (["analyze", "{}/fourierft"], "torch", "torch", 1),
    "q_proj.vera_lambda_b": (["analyze", "{}/vera"], "torch", "torch", 1),
    "spectrum has places": (["synth", "--method", "fourierft", "-o", "{}/none"], "torch", "torch", 1),
    "dashboard": (["dashboard"], "dashboard", "streamlit", 1),
    "training an adapter": (TRAIN, "train", "torch", 1),
    "evaluating an adapter": (["evaluate", SHOWN[0]], "train", "torch", 1),
    "/model'": (["cost", "--model", "{}/model", "--target", "qv", "--method", "lora"], "train", "torch", 2),
}


@pytest.fixture(scope="module")
def results(home: Path) -> dict[str, Any]:
    commands = {**WORKING, **{name: command for name, (command, *_) in LACKING.items()}}
    given = {name: [word.replace("{}", str(home)) for word in command] for name, command in commands.items()}
    return json.loads(plainly(RUNNER, json.dumps(given)))


@pytest.mark.parametrize("name", WORKING)
def test_commands_that_need_no_extra(results, name):
    code, stdout, stderr = results[name]
    assert code == 0, stderr
    assert stdout or name in ("figure", "synth")


def test_they_give_what_they_give_with_the_extras(results, home):
    assert len(read_adapter(home / "lora")) == 12
    assert (home / "figure4.pdf").read_bytes().startswith(b"%PDF")
    assert re.search(r"trained-bora-r8-b8 .* 29\.23 ", results["compare"][1])  # as in the README


@pytest.mark.parametrize("name", LACKING)
def test_a_missing_extra_is_named_in_one_line(results, name):
    _, extra, package, expected = LACKING[name]
    code, stdout, stderr = results[name]
    assert (code, stdout) == (expected, ""), stderr
    line = stderr.splitlines()[-1]
    assert line.lower().startswith("error: ")
    assert name in line
    assert line.endswith(
        f'{package} is not installed; expected the extra {extra}: pip install "bora_analysis[{extra}]"'
    )


def test_importing_the_peft_methods_says_what_they_need():
    code = "try:\n    import bora_analysis.peft_bora\nexcept ImportError as error:\n    print(error)"
    found = "bora_analysis.peft_methods: torch is not installed"
    assert plainly(code) == f'{found}; expected the extra train: pip install "bora_analysis[train]"\n'


def test_large_cores_are_solved_without_torch():
    code = (
        "import numpy as np; from bora_analysis import lora, singular_values\n"
        "from bora_analysis.linalg import solvers; solvers.TORCH_FROM = solvers.GPU_FROM = 8\n"
        "rng = np.random.default_rng(0); B, A = rng.standard_normal((20, 10)), rng.standard_normal((10, 30))\n"
        "for solver in ('gram', 'svd'):\n"
        "    found = singular_values(lora(B, A), solver=solver); print(found.device, *found.values.tolist())"
    )
    from bora_analysis import lora

    rng = np.random.default_rng(0)
    expected = singular_values(lora(rng.standard_normal((20, 10)), rng.standard_normal((10, 30)))).values
    for line in plainly(code).splitlines():
        device, *values = line.split()
        assert device == "cpu"
        np.testing.assert_allclose([float(value) for value in values], expected, rtol=1e-6)


def test_a_plain_installation_asks_for_none_of_these_packages():
    base = [line for line in requires("bora_analysis") or [] if "extra ==" not in line]
    names = {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in base}
    assert "numpy" in names
    assert not names & {*PACKAGES, "scikit-learn", "datasets"}


def test_the_package_imports_next_to_nothing():
    heavy = {"numpy", "pandas", "scipy", "ml_dtypes"}
    assert plainly(f"import bora_analysis\nprint({heavy} & set(sys.modules))") == "set()\n"


def test_patterns_are_compiled_when_they_are_used():
    """A hundred of them took as long at the start of a command as a small adapter takes in all."""
    code = "from bora_analysis.cli import main, analyze; import bora_analysis.analysis.tables, sys, re\n"
    code += "own = [m for name, m in list(sys.modules.items()) if name.startswith('bora_analysis')]\n"
    code += "print(sum(isinstance(value, re.Pattern) for m in own for value in vars(m).values()))"
    assert plainly(code) == "0\n"
