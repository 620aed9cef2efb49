"""``python -m bora_analysis`` is ``bora-analysis``."""

from .cli import main

main(prog_name="bora-analysis")
