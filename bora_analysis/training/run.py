"""One training run: transformers' Trainer on a PEFT model, with kept steps, a record, and a restart after a kill."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..analysis.runs import RECORD
from ..atomic import replacing
from ..catalogue import METHODS
from ..extras import require
from .checkpoints import discard_after, keep_adapter, newest_state, prune, set_base_name
from .data import Data, load_data
from .errors import TrainingError
from .initialisations import prepare
from .models import base_model, collator, encoded_example, quiet, tokenizer_of
from .peft_configs import check_settings, method_of, peft_config, target_modules
from .procedures import PROCEDURES
from .quantized import memory, peak
from .scoring import scorer, token_losses
from .settings import Settings
from .whole import Whole

_PACKAGES = ("bora_analysis", "peft", "transformers", "torch", "numpy")


def train(
    settings: Settings,
    output: str | Path,
    *,
    resume: bool = False,
    device: str = "auto",
    report: Callable[[str], None] = lambda line: None,
    callbacks: tuple[Any, ...] = (),
) -> dict[str, Any]:
    """Train an adapter.

    ``output`` then holds the adapter (``adapter_config.json``, ``adapter_model.safetensors``), ``checkpoint-N`` for
    each kept step, and ``run.json``: settings, versions, trained parameters, the history of loss and metric, and
    ``memory``: bytes of the base model as it is (``base``) and as it would be without ``quantize`` (``base_full``), and
    the most that the process held (``peak``). PiSSA, OLoRA, CorDA and LoRA-GA begin with factors that are taken out of
    the base model: ``checkpoint-0`` is then kept always, and subtracted where the run is read.

    Parameters
    ----------
    settings : see :class:`Settings`.
    output : a new or empty folder; with ``resume``, the folder of an unfinished run.
    resume : continue from the newest complete checkpoint. On the same machine, with the same number of threads, the
        result equals that of an uninterrupted run.
    device : ``"auto"`` (CUDA if there is one), ``"cpu"`` or ``"cuda"``.
    report : receives the progress, line by line.
    callbacks : further callbacks for the Trainer.

    Returns
    -------
    dict
        The content of ``run.json``.

    Raises
    ------
    TrainingError
        One line, before training: unusable data, a model that cannot be loaded, a folder in use.
    ImportError
        The extra ``train`` is not installed.
    """
    require("train", "training an adapter", "torch", "transformers", "peft", "sklearn")
    check_settings(settings)
    folder = Path(output)
    record = _claim(settings, folder, resume)
    data = load_data(settings)
    with quiet():
        return _Run(settings, folder, data, record, report).train(resume, device, callbacks)


def _claim(settings: Settings, folder: Path, resume: bool) -> dict[str, Any]:
    """Check that the folder may be written; return the record of its run, or a new record."""
    wanted = settings.as_record()
    path = folder / RECORD
    if not path.exists():
        if folder.is_file() or (folder.exists() and any(folder.iterdir())):
            raise TrainingError(f"{folder}: exists but is not a training run; expected a new or empty folder")
        return {"status": "running", "settings": wanted, "seconds": 0.0, "history": []}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        earlier = dict(record["settings"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise TrainingError(f"{path}: not a record of a run ({type(error).__name__}); choose another folder") from None
    if record.get("status") == "finished":
        raise TrainingError(f"{folder}: holds a finished run; choose another folder")
    if not resume:
        raise TrainingError(f"{folder}: holds an unfinished run; continue it with --resume, or choose another folder")
    changed = sorted(key for key in wanted.keys() | earlier.keys() if wanted.get(key) != earlier.get(key))
    if changed:
        shown = ", ".join(f"{key} was {earlier.get(key)!r} and is {wanted.get(key)!r}" for key in changed[:3])
        raise TrainingError(f"{folder}: cannot continue with other settings: {shown}")
    return record


class _Run:
    """A checked run."""

    def __init__(
        self, settings: Settings, folder: Path, data: Data, record: dict[str, Any], report: Callable[[str], None]
    ):
        self.settings, self.folder, self.data, self.record, self.report = settings, folder, data, record, report
        self.steps = settings.total_steps(len(data.train))
        self.kept = settings.kept_steps(self.steps)
        if METHODS[settings.method].initialises:
            self.kept = tuple(sorted({0, *self.kept}))
        self.began = time.monotonic()
        self.spent: float = record["seconds"]
        self.whole: Whole | None = None

    def train(self, resume: bool, device: str, callbacks: tuple[Any, ...]) -> dict[str, Any]:
        import transformers
        from torch.utils.data import Subset

        from .trainer import AdapterTrainer

        settings = self.settings
        transformers.set_seed(settings.seed)
        tokenizer = tokenizer_of(settings)
        causal = settings.task == "causal-lm"
        collate = collator(tokenizer, causal)
        encoded = [encoded_example(example, tokenizer, settings) for example in self.data.train]
        measured = [encoded_example(example, tokenizer, settings) for example in self.data.held_out]
        order = self._order(encoded)
        model = self._adapted(tokenizer, [encoded[place] for place in order], collate, self._on_cpu(device))
        sizes = {name: value.numel() for name, value in model.named_parameters() if value.requires_grad}
        heads = self.whole.head if self.whole else [name for name in sizes if "modules_to_save" in name]
        adapter = sum(size for name, size in sizes.items() if name not in heads)
        self.record |= {
            "versions": {name: version(name) for name in _PACKAGES},
            "parameters": {"adapter": adapter, "trained": sum(sizes.values())},
            "examples": {"train": len(self.data.train), "held_out": len(self.data.held_out)},
            "classes": list(self.data.classes),
            "steps": self.steps,
        }
        state = newest_state(self.folder) if resume else None
        discard_after(self.folder, int(state.name.partition("-")[2]) if state else -1)
        self._write_record()
        self.report(
            f"{settings.method}, {adapter:,} parameters, {len(encoded):,} examples, {self.steps:,} steps"
            + self._quantised()
            + (f", continuing from {state.name}" if state else "")
        )
        self.procedure = PROCEDURES[method_of(settings).procedure](settings, model, self.steps)
        trainer = AdapterTrainer(
            procedure=self.procedure,
            model=model,
            args=self._arguments(device),
            data_collator=collate,
            train_dataset=Subset(encoded, order),  # pyright: ignore[reportArgumentType]
            eval_dataset=measured,
            compute_metrics=scorer(settings.scored_by),
            preprocess_logits_for_metrics=token_losses if causal else None,
            callbacks=[*callbacks, _callback(self)],
        )
        trainer.remove_callback(transformers.PrinterCallback)  # it prints dictionaries to stdout
        self.trainer = trainer
        try:
            trainer.train(resume_from_checkpoint=str(state) if state else None)
        except RuntimeError as error:
            if "out of memory" not in str(error):
                if settings.quantize and not self.record["history"]:
                    raise self._unquantisable(error) from None
                raise
            raise TrainingError(
                f"{settings.model}: out of memory with batches of {settings.batch_size} × {settings.max_length} "
                "tokens; halve batch_size and double accumulate, or set gradient_checkpointing"
            ) from None
        model.save_pretrained(self.folder)
        self._finish()
        return self.record

    def _adapted(self, tokenizer: Any, examples: list[Any], collate: Any, on_cpu: bool) -> Any:
        from peft import get_peft_model

        settings = self.settings
        model, _ = base_model(settings, len(self.data.classes), tokenizer)
        self.record["memory"] = memory(model, settings.dtype)
        if settings.gradient_checkpointing:
            model.enable_input_require_grads()  # else no gradient reaches the first adapted layer
        try:
            if not method_of(settings).config:
                self.whole = Whole(
                    model, target_modules(settings, model), settings.model, heads=settings.task != "causal-lm"
                )
                return model
            config = peft_config(settings, model, self.steps)
            prepare(settings, config, model if on_cpu else model.to("cuda"), examples, collate)
            adapted: Any = get_peft_model(model, config)
        except TrainingError:
            raise
        except (ValueError, NotImplementedError, TypeError, RuntimeError, ImportError) as error:  # PEFT's own words
            if settings.quantize:
                raise self._unquantisable(error) from None
            raise TrainingError(f"{settings.method}: {' '.join(str(error).split())}") from None
        adapted.create_or_update_model_card = lambda folder: None  # it repeats run.json, and takes longer than the rest
        return adapted

    def _unquantisable(self, error: Exception) -> TrainingError:
        kind, told = self.settings.quantize, " ".join(str(error).split())
        return TrainingError(
            f"{self.settings.method}: PEFT cannot adapt a base model in {kind} by it ({told[:160]}); leave out "
            "quantize, or choose another method"
        )

    def _quantised(self) -> str:
        held = self.record["memory"]
        words = (
            f", base model in {self.settings.quantize}: {held['base'] / 1e6:,.1f} of {held['base_full'] / 1e6:,.1f} MB"
        )
        return words if self.settings.quantize else ""

    def _on_cpu(self, device: str) -> bool:
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise TrainingError("device is cuda, but torch sees no CUDA device; expected auto or cpu")
        return device == "cpu" or not torch.cuda.is_available()

    def _arguments(self, device: str) -> Any:
        from transformers import TrainingArguments

        settings, on_cpu = self.settings, self._on_cpu(device)
        checkpointing: Any = {_checkpointing(TrainingArguments): settings.gradient_checkpointing}
        return TrainingArguments(
            output_dir=str(self.folder),
            max_steps=self.steps,
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=settings.batch_size * (1 if settings.task == "causal-lm" else 2),
            gradient_accumulation_steps=settings.accumulate,
            **checkpointing,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=settings.warmup_steps(self.steps),
            weight_decay=0.0,
            max_grad_norm=1.0,
            optim="adamw_torch",
            bf16=settings.dtype == "bfloat16",
            logging_strategy="steps",
            logging_steps=settings.log_every or max(1, self.steps // 20),
            eval_strategy="no",  # the callback decides both
            save_strategy="no",
            train_sampling_strategy="sequential",  # the order of the data set
            remove_unused_columns=False,
            label_names=["labels"],
            report_to=[],
            disable_tqdm=True,
            use_cpu=on_cpu,
            dataloader_pin_memory=not on_cpu,
            seed=settings.seed,
        )

    def _order(self, encoded: list[dict[str, Any]]) -> list[int]:
        """The order of the examples over the whole run: a permutation for each epoch.

        It is fixed at the start, so that a resumed run sees the same batches as an uninterrupted one.
        """
        import numpy as np

        settings = self.settings
        size = settings.batch_size * settings.accumulate
        rng = np.random.default_rng([settings.seed, 2])
        lengths = np.array([len(example["input_ids"]) for example in encoded])
        order: list[int] = []
        while len(order) < size * self.steps:
            epoch = rng.permutation(len(encoded))
            if settings.group_by_length:
                # Like transformers' group_by_length: sort within fifty batches, then shuffle the batches.
                window = 50 * size
                parts = [epoch[i : i + window] for i in range(0, len(epoch), window)]
                epoch = np.concatenate([part[np.argsort(-lengths[part], kind="stable")] for part in parts])
                whole = len(epoch) // size * size
                batches = epoch[:whole].reshape(-1, size)
                epoch = np.concatenate([batches[rng.permutation(len(batches))].ravel(), epoch[whole:]])
            order += epoch.tolist()
        return order[: size * self.steps]

    def keep_start(self, model: Any) -> None:
        """Save the adapter of step 0; the Trainer saves only later ones."""
        model.save_pretrained(self.folder / "checkpoint-0")
        keep_adapter(self.folder / "checkpoint-0")

    def log(self, step: int, history: list[dict[str, Any]]) -> None:
        """Write the record and report the newest line of the Trainer's history."""
        self.record["history"] = [_clean(entry) for entry in history]
        self.record["seconds"] = round(self.spent + time.monotonic() - self.began, 1)
        self._write_record()
        if history:
            self.report(_line(step, self.steps, self.record["history"][-1], self.settings.scored_by))

    def _finish(self) -> None:
        if self.whole:
            self.record["rounding"] = self.whole.rounding
        self.record["memory"]["peak"] = peak()
        prune(self.folder, self.kept, None)
        if self.settings.model_name:
            for place in (self.folder, *(self.folder / f"checkpoint-{step}" for step in self.kept)):
                if (place / "adapter_config.json").exists():
                    set_base_name(place, self.settings.model_name)
        scores = [entry for entry in self.record["history"] if self.settings.scored_by in entry]
        self.record |= {"status": "finished", "metric": {self.settings.scored_by: scores[-1][self.settings.scored_by]}}
        self._write_record()

    def _write_record(self) -> None:
        with replacing(self.folder / RECORD) as path:
            path.write_text(json.dumps(self.record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _callback(run: _Run) -> Any:
    from transformers import TrainerCallback

    settings = run.settings

    class Keeper(TrainerCallback):
        """Tells the Trainer when to evaluate and save, prunes what it saved, and keeps the record."""

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step == 0 and 0 in run.kept:
                run.keep_start(model)
            run.procedure.begin(state.global_step)

        def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
            run.procedure.stepped(state.global_step + 1, optimizer)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            step, every = state.global_step, settings.evaluate_every
            control.should_evaluate |= step == run.steps or bool(every and step % every == 0)
            control.should_save |= step in run.kept or step % settings.resume_every == 0
            # A logged loss is a mean since the last log; a resumed run knows no losses from before its checkpoint.
            control.should_log |= control.should_save

        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            run.log(state.global_step, state.log_history)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            prune(run.folder, run.kept, state.global_step)

    return Keeper()


def _checkpointing(arguments: Any) -> str:
    """The name of the setting, which transformers 5 changed."""
    names = ("activation_checkpointing", "gradient_checkpointing")
    return next(name for name in names if name in arguments.__dataclass_fields__)


def _clean(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of the Trainer's history without its times, which differ between runs."""
    times = [key for key in entry if key.endswith(("runtime", "per_second")) or key in ("total_flos", "epoch")]
    kept = {key.removeprefix("eval_"): value for key, value in entry.items() if key not in times}
    held_out = {"held_out_loss": kept.pop("loss")} if "eval_loss" in entry else {}
    if "token_loss" in kept:
        held_out = {"held_out_loss": kept.pop("token_loss")}
    return {"step": kept.pop("step"), **held_out, **kept}


def _line(step: int, steps: int, entry: dict[str, Any], metric: str) -> str:
    head = f"step {step:{len(str(steps))}}/{steps}"
    if metric in entry:
        return f"{head}  {metric} {entry[metric]:.4f}  held-out loss {entry['held_out_loss']:.4f}"
    if "loss" in entry:
        return f"{head}  loss {entry['loss']:.4f}  learning rate {entry['learning_rate']:.1e}"
    return f"{head}  finished"
