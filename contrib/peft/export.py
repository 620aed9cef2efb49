"""BoRA as a patch series for PEFT: ``python contrib/peft/export.py [--check]``.

The series is made from this package's source, so that no second copy of it has to be kept. It applies to the source
distribution of PEFT at the version that constraints.txt pins, and is written to ``out/peft/patches``:

1. ``PeftType.BORA``, ``tuners/bora/``, the exports and the mapping of target modules,
2. entries in the lists of PEFT's tests,
3. the page of the documentation, an example, configurations for ``method_comparison``.

``--check`` applies it to a fresh source distribution, runs PEFT's tests of BoRA in that tree, trains with the example,
and compares adapters that one side saves and the other loads, bit by bit.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from run_suite import FILES, HERE, OUT, ROOT, pinned, source, tabulate
from source_text import Module, arguments, one_class

OURS = ROOT / "bora_analysis"
LICENCE = """\
# Copyright 2026-present the HuggingFace Inc. team.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""
#: What is said otherwise within PEFT.
WORDS = {
    r"  # pyright: ignore\[[^]]*\]": "",
    r"\bAdapterLayer\b": "BoraLayer",
    r"\bAdapterConfig\b": "BoraConfig",
    r"from bora_analysis\.peft_methods import": "from peft import",
    r"\(bora_analysis\.convert\)": "(peft.convert_to_lora)",
    r", see :func:`bora_analysis[^`]*`": "",
    " for BoRA, N·r for MELoRA": "",
    r"pad=True, --pad, for train --set pad=true": "pad=True",
    r"As in :func:`bora_analysis[^`]*`, σ = 0": "σ = 0",
    r" \(the smaller\s+of two that tie, see\s+:func:`bora_analysis[^)]*\)": " (the smaller of two that tie)",
    "TRANSFORMERS_MODELS_TO_LORA_TARGET": "TRANSFORMERS_MODELS_TO_BORA_TARGET",
}
#: What needs the analysis, and stays here: a start near a known update.
HERE_ALONE = r"\n[^\n]*  # not upstream(?=\n)|, init: str, target: Any(?=\))"
MODULES = {
    path: Module.read(OURS / path)
    for path in (
        "catalogue/sizes.py", "catalogue/__init__.py", "peft_methods/config.py", "peft_methods/contraction.py",
        "peft_methods/adapter_layer.py", "peft_methods/method_layers.py", "peft_methods/other_layers.py",
        "peft_methods/models.py",
    )
}  # fmt: skip
#: Parts of layer.py in order, by the file that they are from.
LAYER = {
    "catalogue/sizes.py": ["common_divisors", "PADS", "check_blocks", "cheapest_blocks", "listed"],
    "peft_methods/contraction.py": [
        "effective_sigma", "add_bora", "look_up", "dense_bora", "wide", "_middle", "_add", "_BlockProduct", "_blocks",
        "_mix", "_slots", "_rows", "_swapped", "_copies",
    ],
    "peft_methods/adapter_layer.py": [
        "AdapterLayer", "layer_class", "_a", "_backend", "of_pattern", "initialised", "wide_factor",
    ],
    "peft_methods/method_layers.py": ["BoraLinear", "_check_blocks"],
    "peft_methods/other_layers.py": ["_Embedding", "BoraEmbedding", "_Convolution", "BoraConv"],
}  # fmt: skip


def files() -> dict[str, str]:
    """The files of tuners/bora."""
    config = MODULES["peft_methods/config.py"]
    parts = [config.part(name) for name in ("AdapterConfig", "BoraConfig")]
    docs = [ast.get_docstring(ast.parse(part).body[0], clean=False) or "" for part in parts]  # pyright: ignore[reportArgumentType]
    merged = one_class("BoraConfig", *parts)
    head = docs[1].split("    Attributes\n")[0].rstrip()
    tail = docs[1][docs[1].index("    Raises\n") :]
    told = "\n".join(f"    {line}".rstrip() for line in arguments(docs).splitlines())
    merged = merged.replace(docs[1], f"{head}\n\n{told}\n\n{tail}")
    helpers = [config.part(name) for name in ("_expect", "_is_count", "_values")]
    choices = MODULES["catalogue/__init__.py"].part("ACTIVATIONS")
    made = {"config.py": _file([choices, merged, *helpers], ["peft_methods/config.py"])}
    layer = [MODULES[path].part(name) for path, names in LAYER.items() for name in names]
    made["layer.py"] = _file(layer, list(LAYER), "from .config import BoraConfig\n")
    models = MODULES["peft_methods/models.py"]
    model = one_class("BoraModel", models.part("AdapterModel"), models.part("BoraModel"))
    relative = "from .layer import BoraConv, BoraEmbedding, BoraLayer, BoraLinear, layer_class\n"
    made["model.py"] = _file([model], ["peft_methods/models.py"], relative)
    exports = ["BoraConfig", "BoraConv", "BoraEmbedding", "BoraLayer", "BoraLinear", "BoraModel"]
    made["__init__.py"] = (
        f"{LICENCE}from peft.utils import register_peft_method\n\nfrom .config import BoraConfig\n"
        "from .layer import BoraConv, BoraEmbedding, BoraLayer, BoraLinear\nfrom .model import BoraModel\n\n\n"
        f"__all__ = {json.dumps(exports)}\n\n"
        'register_peft_method(name="bora", config_cls=BoraConfig, model_cls=BoraModel)\n'
    )
    return made


def _file(parts: list[str], origins: list[str], relative: str = "") -> str:
    body = re.sub(HERE_ALONE, "", "\n\n\n".join(parts))
    imports = dict.fromkeys(line for path in origins for line in MODULES[path].imports(body))
    text = "from __future__ import annotations\n\n" + "\n".join(imports) + f"\n\n{relative}\n\n{body}\n"
    for pattern, word in WORDS.items():
        text = re.sub(pattern, word, text)
    left = re.findall(r".*(?:bora_analysis|MELoRA|melora|SBoRA|HydraLoRA|\bAdapter(?:Layer|Model|Config)\b).*", text)
    assert not left, left
    return LICENCE + text


def replace(path: Path, *pairs: tuple[str, str]) -> None:
    """Put a text in place of another that occurs once."""
    text = path.read_text()
    for old, new in pairs:
        assert text.count(old) == 1, f"{path}: {text.count(old)} times {old!r}"
        text = text.replace(old, new)
    path.write_text(text)


def insert(path: Path, *pairs: tuple[str, str]) -> None:
    """Put a text after another that occurs once."""
    replace(path, *((anchor, anchor + new) for anchor, new in pairs))


def library(tree: Path) -> None:
    package = tree / "src" / "peft"
    folder = package / "tuners" / "bora"
    folder.mkdir()
    for name, text in files().items():
        (folder / name).write_text(text)
    ruff = [str(Path(sys.executable).with_name("ruff")), "--isolated"]
    style = ["--config", "line-length=119", "--config", "target-version='py310'"]
    sort = ["--config", "lint.isort.lines-after-imports=2", "--config", "lint.isort.known-first-party=['peft']"]
    for command in (
        ["check", "--fix", "--quiet", "--select", "I,F,UP", "--ignore", "UP007,UP045", *sort],
        ["format", "--quiet"],
    ):
        subprocess.run([ruff[0], *command, "--isolated", *style, str(folder)], check=True)
    for path in (package / "__init__.py", package / "tuners" / "__init__.py"):
        text = path.read_text()
        for mark in ("    BOFTModel,\n", '    "BOFTModel",\n'):
            text = text.replace(mark, mark + mark.replace("BOFTModel", "BoraConfig") + mark.replace("BOFT", "Bora"))
        path.write_text(text)
    insert(
        package / "tuners" / "__init__.py",
        ("from .boft import BOFTConfig, BOFTModel\n", "from .bora import BoraConfig, BoraModel\n"),
    )
    mapping = "TRANSFORMERS_MODELS_TO_BOFT_TARGET_MODULES_MAPPING"
    for path in (package / "utils" / "__init__.py", package / "utils" / "other.py", package / "utils" / "constants.py"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line + line.replace("BOFT", "BORA") * (mapping in line) for line in lines))
    insert(
        package / "utils" / "peft_types.py",
        ("    - DEFT\n", "    - BORA\n"),
        ('    BOFT = "BOFT"\n', '    BORA = "BORA"\n'),
    )


def tests(tree: Path) -> None:
    folder = tree / "tests"
    for name in FILES.values():
        path = folder / name
        text = path.read_text()
        if name != "test_quantization.py":
            text = text.replace("    BOFTConfig,\n", "    BOFTConfig,\n    BoraConfig,\n", 1)
        # An entry of BOFT that sets nothing of its own is BoRA's, too.
        settings = r'(?:            "(?:target_modules|task_type)": .*\n)+'
        entry = re.compile(rf"    \(\n        BOFTConfig,\n        \{{\n{settings}        \}},\n    \),\n")
        text = entry.sub(lambda hit: hit[0] + hit[0].replace("BOFTConfig", "BoraConfig"), text)
        path.write_text(text)
    insert(folder / "test_config.py", ("    (BOFTConfig, {}),\n", "    (BoraConfig, {}),\n"))
    path = folder / "test_quantization.py"
    path.write_text(
        path.read_text().replace("import BOFTConfig, MissConfig", "import BOFTConfig, BoraConfig, MissConfig")
    )
    block = '        BOFTConfig,\n        {"boft_block_size": 4, "target_modules": ["q_proj", "v_proj"]},\n    ),\n'
    insert(path, (block, block.replace("BOFT", "Bora").replace("boft_block_size", "r").join(["    (\n", ""])))
    compiled = '    "boft": (BOFTConfig(task_type=TaskType.CAUSAL_LM), {}),\n'
    insert(folder / "test_torch_compile.py", (compiled, compiled.replace("BOFT", "Bora").replace("boft", "bora")))
    path = folder / "testing_utils.py"
    text = path.read_text().replace("    AdaLoraConfig,\n", "    AdaLoraConfig,\n    BoraConfig,\n", 1)
    path.write_text(
        text.replace(
            "if config_cls in (LoraConfig, AdaLoraConfig):", "if config_cls in (LoraConfig, AdaLoraConfig, BoraConfig):"
        )
    )
    _custom(folder / "test_custom_models.py")
    # Limits and learning rates that these tests have for each method.
    replace(
        folder / "testing_common.py",
        ("    BOFTConfig,\n", "    BOFTConfig,\n    BoraConfig,\n"),
        (
            "if config_cls == GraloraConfig:\n            # GraLoRA exhibits",
            "if config_cls in (BoraConfig, GraloraConfig):\n            # ranks above that of the LoRA exhibit",
        ),
    )
    embedding = '(config_kwargs.get("use_dora") and model_id == "EmbConv1D")\n'
    replace(
        folder / "test_custom_models.py",
        (
            "(VBLoRAConfig, RandLoraConfig, UniLoraConfig, OSFConfig)",
            "(BoraConfig, VBLoRAConfig, RandLoraConfig, UniLoraConfig, OSFConfig)",
        ),
        (embedding, f'{embedding}            or (issubclass(config_cls, BoraConfig) and model_id == "EmbConv1D")\n'),
    )


def _custom(path: Path) -> None:
    """LoRA's plain entries, of every kind of layer, with BoRA in its place."""
    text = path.read_text()
    known = r'"(?:target_modules|modules_to_save|lora_alpha|lora_dropout|bias|init_lora_weights)"'
    kinds = r"(?:Vanilla MLP|Embedding|Conv[123]d|Embedding \+ transformers Conv1D)"
    line = rf'    \("{kinds} \d+ LoRA", "(?!.*Groups)\w+", LoraConfig, \{{(?:{known}: [^:{{}}]*)+\}}\),\n'
    entries = "".join(re.findall(line, text)).replace("LoRA", "BoRA").replace("LoraConfig", "BoraConfig")
    assert entries.count("\n") > 10, entries
    head = "    ########\n    # LoRA #\n    ########\n"
    assert text.count(head) == 1
    text = text.replace(head, head.replace("LoRA", "BoRA") + entries + head)
    both = '    (\n        "LoRA Same",\n'
    active = "".join(
        f'    (\n        "BoRA {name}",\n        "bora",\n        BoraConfig,\n'
        f'        {{"target_modules": ["lin0"], "init_lora_weights": False}},\n'
        f'        {{"target_modules": ["{layer}"], "init_lora_weights": False}},\n    ),\n'
        for name, layer in (("Same", "lin0"), ("Different", "lin1"))
    )
    assert text.count(both) == 1
    text = text.replace(both, active + both)
    mixed = "MIXED_ADAPTER_TEST_CASES = [\n"
    one = 'BoraConfig(target_modules=["lin0"], init_lora_weights=False)'
    pair = f'    (\n        "BoRA mixed adapter",\n        {one},\n        {one.replace("], ", "], r=16, ")},\n    ),\n'
    assert text.count(mixed) == 1
    path.write_text(text.replace(mixed, mixed + pair))


def documents(tree: Path) -> None:
    page = tree / "docs" / "source" / "package_reference" / "bora.md"
    example = tree / "examples" / "bora_finetuning"
    page.parent.mkdir(parents=True)
    example.mkdir(parents=True)
    shutil.copy(HERE / "upstream" / "bora.md", page)
    shutil.copy(HERE / "upstream" / "example.md", example / "README.md")
    (example / "bora_finetuning.py").write_text(LICENCE + (HERE / "upstream" / "example.py").read_text())
    common = {"peft_type": "BORA", "task_type": None, "inference_mode": False, "base_model_name_or_path": None}
    for name, own in (("default", {}), ("paper-b16", {"num_blocks": 16, "lora_alpha": 16})):
        folder = tree / "method_comparison" / "MetaMathQA" / "experiments" / "bora" / f"llama-3.2-3B-{name}"
        folder.mkdir(parents=True)
        told = {**common, "r": 8, "num_blocks": "auto", "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **own}
        (folder / "adapter_config.json").write_text(json.dumps(told, indent=2, sort_keys=True) + "\n")


PATCHES = {
    "Add BoRA, block-diversified low-rank adaptation": library,
    "Test BoRA with the tests that all methods share": tests,
    "Document BoRA, with an example and configurations for the comparison": documents,
}


def git(tree: Path, *words: str) -> str:
    name = ["-c", "user.name=bora_analysis", "-c", "user.email=bora_analysis@localhost", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", "-C", str(tree), *name, *words], check=True, capture_output=True, text=True).stdout


def fresh(name: str) -> Path:
    """A copy of the source distribution under git."""
    tree = OUT / name
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(source(), tree, ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"))
    git(tree, "init", "--quiet")
    git(tree, "add", "--all", "--force")
    git(tree, "commit", "--quiet", "-m", f"PEFT {pinned()}")
    return tree


def export() -> list[Path]:
    """Write the series."""
    tree = fresh("export")
    for message, change in PATCHES.items():
        change(tree)
        git(tree, "add", "--all")
        git(tree, "commit", "--quiet", "-m", message)
    shutil.rmtree(OUT / "patches", ignore_errors=True)
    git(tree, "format-patch", "--quiet", "--zero-commit", "-o", str(OUT / "patches"), f"HEAD~{len(PATCHES)}")
    return sorted((OUT / "patches").iterdir())


def check(patches: list[Path], only: list[str]) -> bool:
    """Whether the series holds on a fresh tree."""
    tree = fresh("applied")
    git(tree, "am", "--quiet", *map(str, patches))
    python = os.environ | {"PYTHONPATH": str(tree / "src"), "HF_HUB_OFFLINE": "1"}
    exchange = [sys.executable, str(HERE / "exchange.py"), str(OUT / "exchange")]
    shutil.rmtree(OUT / "exchange", ignore_errors=True)
    ours = os.environ | {"PYTHONPATH": str(ROOT)}
    for side, action, environment in (
        ("upstream", "save", python), ("here", "save", ours), ("here", "load", ours), ("upstream", "load", python),
    ):  # fmt: skip
        subprocess.run([*exchange, side, action], check=True, env=environment, cwd=tree)
    print("adapters of both sides load in the other, bit by bit")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import hub

    hub.fill(OUT)  # the example's model
    text = OUT / "sample.txt"
    text.write_text("one two three four five six\n" * 16)
    script = tree / "examples" / "bora_finetuning" / "bora_finetuning.py"
    model = OUT / "hub" / "models--peft-internal-testing--tiny-random-OPTForCausalLM" / "snapshots" / "local"
    told = [
        "--base_model",
        str(model),
        "--data_path",
        str(text),
        "--max_steps",
        "2",
        "--output_dir",
        str(OUT / "trained"),
    ]
    subprocess.run([sys.executable, str(script), *told], check=True, env=python, cwd=tree, capture_output=True)
    print("the example trains and saves")
    return tabulate(only, tree, [tree / "src"], 2, ["-k", "bora"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="apply the series and test it")
    parser.add_argument("--only", default=",".join(FILES), help="the tests to run, some of " + ", ".join(FILES))
    given = parser.parse_args()
    patches = export()
    print("\n".join(map(str, patches)))
    return 0 if not given.check else not check(patches, given.only.split(","))


if __name__ == "__main__":
    sys.exit(main())
