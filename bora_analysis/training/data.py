"""Examples from a file, a folder, the Hub or an address, checked before training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..patterns import late
from .errors import TrainingError
from .settings import Settings

if TYPE_CHECKING:
    import pandas as pd

_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet")
# Usual names, also those of GLUE. The first entry whose columns all exist counts.
_TEXTS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
    ("sentence",), ("text",), ("review",), ("content",),
)  # fmt: skip
_LABELS = ("label", "labels", "target", "rating", "score", "class")
_INSTRUCTION: tuple[str, ...] = ("instruction", "output")
_TRAINING = late(r"train", re.IGNORECASE)
_HELD_OUT = late(r"(validation|valid|dev|eval)", re.IGNORECASE)
_HUB_ID = late(r"\w[\w.-]*/\w[\w.-]*(:[\w.-]+)?", re.ASCII)


@dataclass(frozen=True)
class Example:
    """One or two texts, and a class, a number, or nothing (causal-lm).

    An instruction has its prompt, without the output, and the answer to it: the column ``answer``, or the output.
    """

    texts: tuple[str, ...]
    label: int | float | None = None
    prompt: str | None = None
    answer: str | None = None


@dataclass(frozen=True)
class Data:
    """Training and held-out examples. ``classes`` are the names of the labels, in the order of their ids."""

    train: list[Example]
    held_out: list[Example]
    classes: tuple[str, ...] = ()


def load_data(settings: Settings) -> Data:
    """Read, check and split the examples.

    Raises
    ------
    TrainingError
        One line: no such file, wrong encoding, an empty table, a missing column, a single class, non-numeric labels …
    """
    train, held_out = _frames(settings.data, settings)
    if settings.validation is not None:
        second, third = _frames(settings.validation, settings)
        held_out = (settings.validation, (third or second)[1])
    texts, label = _columns(settings, *train)
    if held_out is not None:
        _need(held_out, [*texts, *([label] if label else [])])
    classes = _classes(settings, train, label) if settings.task == "classification" else ()
    examples = _examples(settings, train, texts, label, classes)
    if settings.limit is not None:
        order = np.random.default_rng([settings.split_seed, 1]).permutation(len(examples))
        examples = [examples[i] for i in sorted(order[: settings.limit])]
    if held_out is not None:
        measured = _examples(settings, held_out, texts, label, classes)
    else:
        found = len(examples)
        count = max(1, round(settings.validation_share * found))
        if count >= found:
            raise TrainingError(f"{settings.data}: {found} examples; expected at least 2, one of them to hold out")
        chosen = set(np.random.default_rng([settings.split_seed, 0]).permutation(found)[:count].tolist())
        measured = [examples[i] for i in sorted(chosen)]
        examples = [example for i, example in enumerate(examples) if i not in chosen]
    if settings.task == "classification" and len({example.label for example in examples}) < 2:
        raise TrainingError(f"{settings.data}: the training examples have one class; expected two or more")
    return Data(examples, measured, classes)


Named = tuple[str, "pd.DataFrame"]


def _frames(place: str, settings: Settings) -> tuple[Named, Named | None]:
    """The training table and the held-out table, if there is one, each with a name for messages."""
    import pandas as pd

    if place.startswith("https://"):
        return (place, _read(place, settings)), None
    path = Path(place)
    if not path.exists() and _HUB_ID.fullmatch(place):
        path = _download(place)
    if not path.exists():
        raise TrainingError(f"{place}: no such file or folder; expected {', '.join(_SUFFIXES)}, or a Hub id org/name")
    if path.is_file():
        return (str(path), _read(path, settings)), None
    files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    parts = [[file for file in files if begins.match(file.stem)] for begins in (_TRAINING, _HELD_OUT)]
    if not parts[0]:
        raise TrainingError(f"{place}: holds no file whose name begins with train ({', '.join(_SUFFIXES)})")
    tables = [pd.concat([_read(file, settings) for file in part], ignore_index=True) for part in parts if part]
    return (place, tables[0]), (place, tables[1]) if len(tables) > 1 else None


def _read(path: Path | str, settings: Settings) -> pd.DataFrame:
    # pandas instead of `datasets`, which copies every file into a cache first, fails on a column of numbers whose first
    # text comes after ten thousand rows, and reads json in UTF-8 only.
    import pandas as pd

    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise TrainingError(f"{path}: not a table that can be read; expected {', '.join(_SUFFIXES)}")
    try:
        if suffix == ".parquet":
            frame = pd.read_parquet(path)
        elif suffix in (".json", ".jsonl"):
            frame = pd.read_json(path, lines=suffix == ".jsonl", encoding=settings.encoding, dtype=False)
        else:
            separator = "," if suffix == ".csv" else "\t"
            # Only empty cells are missing values; "NA" and "null" are texts.
            frame = pd.read_csv(path, sep=separator, encoding=settings.encoding, keep_default_na=False, na_values=[""])
    except UnicodeDecodeError as error:
        raise TrainingError(
            f"{path}: is not {settings.encoding} (byte {error.start}: {error.object[error.start]:#04x}); "
            "set encoding (for example --encoding latin-1)"
        ) from None
    except pd.errors.EmptyDataError:
        raise TrainingError(f"{path}: is empty; expected a table with a row of column names") from None
    except LookupError:
        raise TrainingError(f"encoding {settings.encoding!r} is unknown to Python; expected utf-8, latin-1 …") from None
    except (ValueError, OSError) as error:
        raise TrainingError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    frame.columns = [str(column).strip().lstrip("\ufeff") for column in frame.columns]
    if frame.empty:
        raise TrainingError(f"{path}: has no rows; expected examples")
    return frame


def _columns(settings: Settings, name: str, frame: pd.DataFrame) -> tuple[list[str], str | None]:
    """The text columns and the label column (none for causal-lm)."""
    present = set(frame.columns)
    texts: list[str] = list(settings.text)
    if not texts and settings.task == "causal-lm":
        texts = ["text"] if "text" in present else list(_INSTRUCTION) if set(_INSTRUCTION) <= present else []
    elif not texts:
        texts = list(next((names for names in _TEXTS if set(names) <= present), ()))
    if not texts:
        shown = ", ".join(frame.columns)
        raise TrainingError(f"{name}: has columns {shown}; which one is the text? Name it with text (--text)")
    if settings.task == "causal-lm":
        _need((name, frame), texts)
        return texts, None
    if len(texts) > 2:
        raise TrainingError(f"{name}: text names {len(texts)} columns; expected one, or two for a pair")
    label = settings.label or next((column for column in _LABELS if column in present), None)
    if label is None:
        shown = ", ".join(frame.columns)
        raise TrainingError(f"{name}: has columns {shown}; which one is the label? Name it with label (--label)")
    _need((name, frame), [*texts, label])
    return texts, label


def _need(named: Named, columns: Sequence[str]) -> None:
    name, frame = named
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise TrainingError(f"{name}: has no column {', '.join(missing)}; its columns are {', '.join(frame.columns)}")


def _classes(settings: Settings, named: Named, label: str | None) -> tuple[str, ...]:
    name, frame = named
    values = frame[label].dropna().unique().tolist()
    if len(values) < 2:
        raise TrainingError(f"{name}: column {label} has one class ({values[0] if values else 'none'}); expected two")
    if len(values) > max(100, len(frame) // 10):
        raise TrainingError(
            f"{name}: column {label} has {len(values)} different values; for numbers, set task (--task regression)"
        )
    return tuple(str(value) for value in sorted(values, key=lambda value: (isinstance(value, str), value)))


def _examples(
    settings: Settings, named: Named, texts: list[str], label: str | None, classes: tuple[str, ...]
) -> list[Example]:
    name, frame = named
    # Rows without the first text are dropped. The second text of a pair, or an instruction's input, may be empty.
    empty = frame[texts[0]].isna() | (frame[texts[0]].astype(str).str.strip() == "")
    if empty.all():
        raise TrainingError(f"{name}: column {texts[0]} is empty in every row")
    frame = frame[~empty]
    if settings.task == "causal-lm":
        if texts == list(_INSTRUCTION):
            inputs = frame["input"] if "input" in frame.columns else [""] * len(frame)
            answers = frame["answer"] if "answer" in frame.columns else frame["output"]
            rows = zip(frame["instruction"], inputs, frame["output"], answers, strict=True)
            return [_instruction(*map(_text, row)) for row in rows]
        return [Example((" ".join(map(_text, row)),)) for row in zip(*(frame[column] for column in texts), strict=True)]
    labels = frame[label]
    if labels.isna().any():
        row = int(np.flatnonzero(labels.isna())[0])
        raise TrainingError(f"{name}: column {label} is empty in {int(labels.isna().sum())} rows, row {row} the first")
    if settings.task == "regression":
        numbers = _numbers(name, str(label), labels.tolist())
    else:
        ids = {value: i for i, value in enumerate(classes)}
        unknown = [value for value in labels.astype(str) if value not in ids]
        if unknown:
            raise TrainingError(f"{name}: class {unknown[0]} is not among the training classes {', '.join(classes)}")
        numbers = [ids[value] for value in labels.astype(str)]
    pairs = zip(*(frame[column] for column in texts), strict=True)
    return [Example(tuple(map(_text, row)), number) for row, number in zip(pairs, numbers, strict=True)]


def _numbers(name: str, label: str, values: list[Any]) -> list[float]:
    numbers = []
    for row, value in enumerate(values):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if not np.isfinite(number):
            raise TrainingError(f"{name}: column {label} holds {value!r} in row {row}; expected a number")
        numbers.append(number)
    if len(set(numbers)) < 2:
        raise TrainingError(f"{name}: column {label} is {numbers[0]} in every row; expected different numbers")
    return numbers


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value)  # NaN, a missing text, is unequal to itself


def _instruction(instruction: str, given: str, output: str, answer: str) -> Example:
    prompt = _prompt(instruction, given, "")
    return Example((prompt + output,), prompt=prompt, answer=answer)


def _prompt(instruction: str, given: str, output: str) -> str:
    """Alpaca's template, the one used with Math10K and Commonsense170K."""
    task = "paired with an input that provides further context. Write" if given else "Write"
    lines = [
        (
            f"Below is an instruction that describes a task{', ' if given else '. '}{task} a response that "
            "appropriately completes the request."
        ),
        f"### Instruction:\n{instruction}",
        *([f"### Input:\n{given}"] if given else []),
        f"### Response:\n{output}",
    ]
    return "\n\n".join(lines)


def _download(place: str) -> Path:
    from huggingface_hub import snapshot_download  # imported here: only Hub ids need it

    hub_id, _, config = place.partition(":")
    inside = f"{config}/" if config else ""
    try:
        wanted = [f"{inside}*{suffix}" for suffix in _SUFFIXES]
        root = snapshot_download(hub_id, repo_type="dataset", allow_patterns=wanted)
    except Exception as error:  # offline, unknown, private …: the errors have no common base class
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise TrainingError(
            f"{place}: not a path here, and the Hugging Face Hub did not provide it: {reason}"
        ) from None
    folder = Path(root) / config
    return folder if config or any(folder.glob("train*")) else folder / "data"  # the folder of the Hub's converter
