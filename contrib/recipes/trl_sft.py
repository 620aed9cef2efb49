"""Supervised fine-tuning with TRL and BoRA, with the ranks in the run's logs.

``python contrib/recipes/trl_sft.py --model MODEL --data train.jsonl --report-to tensorboard -o my-bora``; each line of
the data is ``{"text": …}``, or ``{"messages": […]}`` for a model with a chat template. ``--report-to`` takes any
reporter of transformers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from datasets import load_dataset  # pyright: ignore[reportMissingImports]
from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

from bora_analysis.peft_methods import BoraConfig, RankCallback


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--report-to", nargs="+", default=["tensorboard"])
    parser.add_argument("--max-steps", type=int, default=-1)
    parser.add_argument("--every", type=int, default=50, help="steps between two records of the ranks")
    parser.add_argument("-o", "--output", required=True)
    given = parser.parse_args()
    trainer = SFTTrainer(
        model=given.model,
        args=SFTConfig(
            output_dir=given.output,
            report_to=given.report_to,
            max_steps=given.max_steps,
            learning_rate=3e-4,
            logging_steps=1,
            per_device_train_batch_size=4,
            save_strategy="no",
            bf16=torch.cuda.is_available(),
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=load_dataset("json", data_files=given.data, split="train"),
        peft_config=BoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.add_callback(RankCallback(Path(given.output) / "ranks.parquet", given.every, log=trainer.log))
    trainer.train()
    trainer.save_model(given.output)


if __name__ == "__main__":
    main()
