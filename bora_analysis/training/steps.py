"""A training step of a model that has an adapter and random weights, as a thing to measure, or to foresee.

Neither time nor memory depends on the weights, so a configuration is enough. :func:`foreseen` goes through a step with
tensors that have shapes and no numbers, counts the products as torch counts them, and follows which tensors are held:
an 8B model takes no memory. The measured side (:class:`Step`, :func:`most_allocated`) is that of the command
``bench-training``, and of the tests that compare the two.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..catalogue import METHODS, may_pad
from ..catalogue.architectures import LETTERS, configuration
from ..catalogue.cost import BYTES, frozen_bytes, memory
from ..catalogue.module_names import layer, projection
from .errors import TrainingError
from .peft_configs import method_of, peft_config, target_modules
from .settings import Settings, options_of
from .whole import trained_whole


@dataclass(frozen=True)
class Work:
    """What is trained, and how.

    Attributes
    ----------
    model : a known model, a folder with config.json, or a Hub id.
    target : projections, letters of QKVOGUD or names with commas between them.
    batch, length : examples and tokens of each.
    r, blocks, experts : of the methods that have them; None for blocks and experts: the method's own.
    pad : BoRA on layers that its blocks need not divide. layers : only so many of the model's, the first ones.
    dtype : of the base model; with a 16-bit one the products are under autocast, and the adapter is float32, as PEFT
        and ``train`` have it.
    checkpointing : recompute each layer in the backward pass instead of keeping what it needs.
    """

    model: str
    target: str = "QV"
    batch: int = 32
    length: int = 64
    r: int = 8
    blocks: int | None = None
    experts: int | None = None
    dtype: str = "float32"
    checkpointing: bool = False
    pad: bool = False
    layers: int | None = None

    def settings(self, method: str, task: str) -> Settings:
        """Those of a run of this method."""
        wished = {"r": self.r, "blocks": self.blocks, "experts": self.experts, "dropout": 0.0}
        own: dict[str, Any] = {
            name: value for name, value in wished.items() if value is not None and name in options_of(method)
        }
        target = self.target.upper() if "," not in self.target else self.target
        if self.pad and may_pad(METHODS[method]):
            own["peft"] = {"pad": True}
        return Settings(self.model, "none", task=task, method=method, target=target, **own)


def network(work: Work) -> tuple[Any, str]:
    """The model on the current device, and its task: a decoder models language, an encoder classifies."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    config = configuration(work.model)
    if work.layers is not None:
        config = _shortened(config, work.layers)
    encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    kind: Any = transformers.AutoModelForSequenceClassification if encoder else transformers.AutoModelForCausalLM
    try:
        model = kind.from_config(config, dtype=getattr(torch, work.dtype))
    except ValueError as error:
        raise TrainingError(f"{work.model}: {str(error).splitlines()[0]}") from None
    most = getattr(config, "max_position_embeddings", None)
    if most is not None and work.length > most:
        raise TrainingError(f"{work.model}: {work.length} tokens; expected at most {most}, the model's positions")
    return model, "classification" if encoder else "causal-lm"


def _shortened(config: Any, layers: int) -> Any:
    """The configuration with its first layers only; as it is where it does not count them by the usual name."""
    count = getattr(config, "num_hidden_layers", None)
    if count is None or count <= layers:
        return config
    config = deepcopy(config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    return config


def adapted(work: Work, method: str) -> Any:
    """The model with an adapter, on the current device.

    Raises
    ------
    TrainingError
        The model lacks the targets, or has no b that fits.
    """
    from peft import get_peft_model

    model, task = network(work)
    settings = work.settings(method, task)
    if work.checkpointing:
        model.config.use_cache = False
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if not method_of(settings).config:
                model.requires_grad_(False)
                for parameter in trained_whole(model, target_modules(settings, model), heads=task != "causal-lm"):
                    parameter.data = parameter.data.to(torch.float32)
                    parameter.requires_grad_(True)
            else:
                model = get_peft_model(model, peft_config(settings, model))
        except ValueError as error:
            raise TrainingError(f"{method}: {str(error).splitlines()[0]}") from None
    return model.train()


class Step:
    """A model, its optimiser (AdamW) and one batch."""

    def __init__(self, work: Work, model: Any, device: str = "cpu"):
        self.work, self.model, self.device = work, model, device
        self.trained = [value for value in model.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4)
        config = model.config
        tokens = torch.randint(3, config.vocab_size, (work.batch, work.length), device=device)
        classifies = type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__.endswith(
            "Classification"
        )
        labels = torch.randint(0, config.num_labels, (work.batch,), device=device) if classifies else tokens
        # Without a mask, as a batch without padding ends up too, after a look at the mask's numbers.
        self.batch = {"input_ids": tokens, "labels": labels}

    def forward(self) -> Tensor:
        dtype = getattr(torch, self.work.dtype)
        with torch.autocast(self.device, dtype=dtype, enabled=dtype.itemsize == 2):
            return self.model(**self.batch).loss

    def step(self) -> None:
        self.forward().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def peak(self) -> int:
        """The most bytes that tensors hold in a step, after the first one, which makes the optimiser's state."""
        return most_held(self.step, self.model, self.optimizer, self.device)


def most_held(step: Callable[[], object], model: nn.Module, optimizer: torch.optim.Optimizer, device: str) -> int:
    """The most bytes that tensors hold in a step, the model's and the optimiser's state included."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        grown = torch.cuda.max_memory_allocated() - before
    else:
        grown = most_allocated(step)
    state = [value for own in optimizer.state.values() for value in own.values()]
    return grown + sum(value.nbytes for value in [*lasting(model), *state])


def lasting(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once."""
    return [*{id(value): value for value in (*model.parameters(), *model.buffers())}.values()]


def most_allocated(work: Callable[[], object]) -> int:
    """The most bytes that torch has allocated on the CPU at a time, above those at the start, by its profiler."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it tells on stderr when it starts and stops
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    level = highest = 0
    for _, change in changes:
        level += change
        highest = max(highest, level)
    return highest


class Foreseen(NamedTuple):
    """A step of one method, in FLOPs and bytes.

    Attributes
    ----------
    method : its name. parameters : trained numbers, with a new head.
    forward, backward : FLOPs of the products of matrices, two for each multiply-add.
    base : bytes of the frozen weights. adapter : of the trained ones. optimizer : of its state.
    activations : of what the forward pass keeps for the backward pass. peak : the most at a time, all included.
    largest : of the largest quantised layer, written out for its product; not in the peak. 0 without one.
    """

    method: str
    parameters: int
    forward: int
    backward: int
    base: int
    adapter: int
    optimizer: int
    activations: int
    peak: int
    largest: int = 0


def foreseen(
    work: Work, methods: Sequence[str], *, base: str | None = None, optimizer: str = "adamw"
) -> list[Foreseen]:
    """What a training step will take, without carrying it out.

    Parameters
    ----------
    work : the step. methods : names that ``train`` accepts.
    base : in which the frozen linear layers are kept, see :func:`bora_analysis.catalogue.cost.frozen_bytes`; default
        ``work.dtype``. A quantised layer's products are those of the matrix written out in ``work.dtype``.
    optimizer : a name in :data:`bora_analysis.catalogue.cost.OPTIMIZERS`.

    Returns
    -------
    One for each method. The memory is that of tensors, as torch allocates them on a CPU; what an allocator keeps beside
    them, and the workspace inside an operation, come on top.

    Raises
    ------
    TrainingError, ValueError, OSError
        An unknown model, targets that it lacks, a method that cannot be trained.
    """
    found = []
    for method in methods:
        try:
            found.append(_foreseen(work, method, base or work.dtype, optimizer))
        except (RuntimeError, NotImplementedError) as error:  # a layer that looks at numbers, which are not there
            raise TrainingError(
                f"{method}: a step cannot be foreseen, because its layers need numbers ({type(error).__name__}); "
                "bench-training measures it"
            ) from None
    return found


def _foreseen(work: Work, method: str, base: str, optimizer: str) -> Foreseen:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.device("meta"):
        model = adapted(work, method)
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _without_numbers(model)
        step = Step(work, model)
        held = Held([*lasting(model), *step.batch.values()])
        with held:
            loss = step.forward()
            forward, kept = held.flops, held.now
            loss.backward()
    trained = sum(value.nbytes for value in step.trained)
    frozen = sum(value.nbytes for value in lasting(model)) - trained
    state = sum(
        memory(value.numel(), str(value.dtype).removeprefix("torch."), optimizer=optimizer).optimizer
        for value in step.trained
    )
    saved, largest = _saved(model, base)
    numbers = sum(value.numel() for value in step.trained)
    peak = frozen - saved + trained + state + held.peak
    sizes = frozen - saved, trained, state, kept, peak
    return Foreseen(method, numbers, forward, held.flops - forward, *sizes, largest)


def _without_numbers(model: nn.Module) -> None:
    """Tensors without numbers that a CPU could have, in place of those of the device "meta"."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, value in own.items():
                if value is None:
                    continue
                if id(value) not in made:
                    new = torch.empty(value.shape, dtype=value.dtype, device="cpu")
                    trained = value.requires_grad
                    made[id(value)] = nn.Parameter(new, trained) if isinstance(value, nn.Parameter) else new
                own[name] = made[id(value)]  # pyright: ignore[reportArgumentType]


def _saved(model: nn.Module, base: str) -> tuple[int, int]:
    """What quantising the frozen linear layers of the stack saves, and the bytes of the largest written out."""
    saved = largest = 0
    if base in BYTES:
        return 0, 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and layer(name) is not None and not module.weight.requires_grad:
            m, n = module.weight.shape
            saved += module.weight.nbytes - frozen_bytes(m, n, base)
            largest = max(largest, module.weight.nbytes)
    return saved, largest


class Held(TorchDispatchMode):
    """Which bytes the tensors hold that operations make, and the FLOPs of the products of matrices.

    torch's ``FlopCounterMode`` has the same formulas, but keeps the outputs of modules.

    Attributes
    ----------
    now, peak : bytes beside those of ``known``, the tensors that were there before. flops : so far.
    """

    def __init__(self, known: Sequence[Tensor]):
        super().__init__()
        self.now = self.peak = self.flops = 0
        self._seen: dict[int, Any] = {value.untyped_storage()._cdata: None for value in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.utils._pytree import tree_iter
        from torch.utils.flop_counter import flop_registry

        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=made)
        for value in tree_iter(made):
            if isinstance(value, Tensor):
                self._see(value.untyped_storage())
        return made

    def _see(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self._seen:
            size = storage.nbytes()
            self._seen[key] = weakref.finalize(storage, self._gone, key, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def _gone(self, key: int, size: int) -> None:
        self._seen.pop(key, None)
        self.now -= size


def estimated_seconds(work: Work, planned: Foreseen, *, device: str = "cpu", seconds: float = 0.5) -> float:
    """The time of a step, from steps of the same model with its first two layers, carried out now.

    After one to warm up they fill ``seconds``, at least three, but none follows once 20 · ``seconds`` are over. Their
    median, by their FLOPs, is the machine's speed, and the whole step's FLOPs are divided by it.

    Parameters
    ----------
    work, planned : the step, and what is foreseen of it. device : ``"cpu"`` or ``"cuda"``.

    Raises
    ------
    TrainingError
        The short model's step does not fit into the device's free memory.
    """
    short = replace(work, layers=2)
    known = foreseen(short, [planned.method])[0]
    free = _free(device)
    if free is not None and known.peak > free:
        raise TrainingError(
            f"{work.model}: a step of its first two layers takes {known.peak / 1e9:.1f} GB, and {free / 1e9:.1f} GB "
            "are free; expected fewer tokens, a smaller model, or no measurement"
        )
    with torch.device(device):
        step = Step(short, adapted(short, planned.method), device)
    times = [seconds_of(step.step, device)]  # to warm up; it is no worse than others where it is long
    while sum(times) < 20 * seconds and (len(times) < 4 or sum(times[1:]) < seconds):
        times.append(seconds_of(step.step, device))
    return median(times[1:] or times) * (planned.forward + planned.backward) / (known.forward + known.backward)


def _free(device: str) -> int | None:
    """Bytes of memory that can be had, or None where the system does not say."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def seconds_of(work: Callable[[], object], device: str = "cpu") -> float:
    """Wall-clock seconds, up to the end of what was started on the device."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def named_targets(model: Any, projections: Sequence[str]) -> str:
    """Projections of a model as ``target`` of :class:`Work`."""
    letters = {name: letter for letter, name in LETTERS.items()}
    if all(name in letters for name in projections):
        return "".join(letters[name] for name in projections)
    paths = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and layer(name) is not None
    ]
    return ",".join(dict.fromkeys(path.rpartition(".")[2] for path in paths if projection(path) in projections))
