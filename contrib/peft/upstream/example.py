import argparse

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

from peft import BoraConfig, get_peft_model


def main():
    parser = argparse.ArgumentParser(description="Train a causal language model with BoRA")
    parser.add_argument("--base_model", default="facebook/opt-125m")
    parser.add_argument("--data_path", required=True, help="a text file, one sample per line")
    parser.add_argument("--output_dir", default="bora-finetuned")
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument("--num_blocks", default="auto", help="a common divisor of all sizes, or auto")
    parser.add_argument("--lora_alpha", type=float, default=8)
    parser.add_argument("--target_modules", nargs="+", default=None)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--max_steps", type=int, default=-1)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--max_length", type=int, default=256)
    args = parser.parse_args()

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(args.base_model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    with open(args.data_path, encoding="utf-8") as f:
        lines = [line.strip() for line in f if line.strip()]
    data = [dict(tokenizer(line, truncation=True, max_length=args.max_length)) for line in lines]

    config = BoraConfig(
        task_type="CAUSAL_LM",
        r=args.r,
        num_blocks=args.num_blocks if args.num_blocks == "auto" else int(args.num_blocks),
        lora_alpha=args.lora_alpha,
        target_modules=args.target_modules,
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(args.base_model), config)
    model.print_trainable_parameters()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=args.output_dir,
            learning_rate=args.learning_rate,
            max_steps=args.max_steps,
            per_device_train_batch_size=args.batch_size,
            logging_steps=10,
            report_to=[],
        ),
        train_dataset=data,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.train()
    model.save_pretrained(args.output_dir)


if __name__ == "__main__":
    main()
