"""Names of methods on the command line."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from bora_analysis.cli import main


def run(*arguments):
    return CliRunner().invoke(main, [*arguments])


@pytest.mark.parametrize(
    "given",
    [
        ["--method", "lora,BoRA"],
        ["--method", "lora", "--method", "bora"],
        ["--method", "lora, bora,", "--method", "LORA"],
    ],
)
def test_several_methods_with_commas_or_repeated(given):
    done = run("cost", "--model", "roberta-base", "--format", "json", *given)
    assert done.exit_code == 0, done.output
    assert list(dict.fromkeys(row["method"] for row in json.loads(done.stdout))) == ["lora", "bora"]


@pytest.mark.parametrize(
    ("command", "given", "told"),
    [
        ("cost", "bora,lroa", "'lroa' is unknown; did you mean"),
        ("cost", "lora,nonsense", "'nonsense' is unknown; known: lora,"),
        ("cost", ",", "holds no name"),
        ("bench-training", "lora,meloro", "'meloro' is unknown; did you mean melora"),
        ("train", "bara", "'bara' is unknown; did you mean bora"),
    ],
)
def test_a_wrong_name_is_told_what_it_is_close_to(command, given, told):
    done = run(command, "--method", given)
    assert done.exit_code == 2
    assert told in " ".join(done.output.split())
