"""The products of a training step against torch's FlopCounterMode, and memory against what torch allocates."""

from __future__ import annotations

import warnings
from math import gcd
from typing import Any

import pytest
from method_lists import BLOCK_METHODS
from peft_models import module

from bora_analysis.catalogue import METHODS
from bora_analysis.catalogue.cost import cost, frozen_bytes, memory, step_products
from bora_analysis.catalogue.products import PRODUCTS

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")

#: m, n, tokens, r
SIZES = [(24, 16, 5, 4), (16, 24, 3, 4), (64, 48, 2, 8)]
BLOCKS = 2
ON: dict[str, Any] = {"target_modules": ["lin"]}


def configuration(method: str, m: int, n: int, r: int) -> Any:
    from peft.tuners.lora.config import BdLoraConfig, KasaConfig

    from bora_analysis import peft_methods as ours

    others = {
        "dora": lambda: peft.LoraConfig(r=r, use_dora=True, **ON),
        "adalora": lambda: peft.AdaLoraConfig(init_r=r, target_r=1, total_step=10, **ON),
        "kasa": lambda: peft.LoraConfig(r=r, kasa_config=KasaConfig(), **ON),
        "krona": lambda: peft.LoKrConfig(r=10**5, **ON),
        "loha": lambda: peft.LoHaConfig(r=r, **ON),
        "lokr": lambda: peft.LoKrConfig(r=r, **ON),
        "delora": lambda: peft.DeloraConfig(r=r, **ON),
        "deft": lambda: peft.DeftConfig(r=r, **ON),
        "gralora": lambda: peft.GraloraConfig(r=r, gralora_k=BLOCKS, **ON),
        "bdlora-a": lambda: peft.LoraConfig(r=r, use_bdlora=BdLoraConfig(["lin"], None, BLOCKS), **ON),
        "bdlora-b": lambda: peft.LoraConfig(r=r, use_bdlora=BdLoraConfig(None, ["lin"], BLOCKS), **ON),
        "vblora": lambda: peft.VBLoRAConfig(r=r, num_vectors=8, vector_length=8, **ON),
        "c3a": lambda: peft.C3AConfig(block_size=gcd(m, n) // BLOCKS, **ON),
        "fourierft": lambda: peft.FourierFTConfig(n_frequency=10, **ON),
        "supertuning": lambda: peft.SupertuningConfig(**ON),
        "tinylora": lambda: peft.TinyLoraConfig(r=r, **ON),
        "oft": lambda: peft.OFTConfig(r=0, oft_block_size=r, **ON),
        "boft": lambda: peft.BOFTConfig(boft_block_size=r, **ON),
        "hra": lambda: peft.HRAConfig(r=r, **ON),
        "ia3": lambda: peft.IA3Config(feedforward_modules=[], **ON),
        "road": lambda: peft.RoadConfig(group_size=4, **ON),
        "melora": lambda: ours.MeloraConfig(r=r, num_minis=BLOCKS, **ON),
        "bora": lambda: ours.BoraConfig(r=r, num_blocks=BLOCKS, **ON),
        "hydralora": lambda: ours.HydraloraConfig(r=r, **ON),
        "sbora-fa": lambda: ours.SboraConfig(r=r, **ON),
        "sbora-fb": lambda: ours.SboraConfig(r=r, variant="fb", **ON),
    }
    if method in others:
        return others[method]()
    if PRODUCTS[method] is PRODUCTS["lora"]:
        return peft.LoraConfig(r=r, **ON)
    return getattr(peft, f"{method.capitalize()}Config")(r=r, **ON)


def counted(work: Any) -> tuple[Any, int]:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        found = work()
    return found, counter.get_total_flops()


@pytest.mark.parametrize("method", [name for name in PRODUCTS if name != "full"])
def test_the_products_are_those_that_torch_counts(method: str) -> None:
    for m, n, tokens, r in SIZES:
        for inputs in (True, False):
            model = module(lin=torch.nn.Linear(n, m, bias=False))
            type(model).forward = lambda self, x: self.lin(x)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                adapted = peft.get_peft_model(model, configuration(method, m, n, r)).train()
            x = torch.randn(1, tokens, n, requires_grad=inputs)
            y, forward = counted(lambda adapted=adapted, x=x: adapted(x))
            _, backward = counted(y.sum().backward)
            found = step_products(method, m, n, r, blocks=BLOCKS if method in BLOCK_METHODS else 1)
            assert found is not None
            assert forward == 2 * (tokens * (m * n + found.forward) + found.forward_once)
            through = m * n if inputs or found.through else 0
            per_token = through + found.backward + inputs * found.inputs
            assert backward == 2 * (tokens * per_token + found.backward_once), (m, n, r, inputs)


def test_what_is_known_is_of_methods_with_a_cost() -> None:
    assert all(METHODS[name].cost for name in PRODUCTS)
    assert step_products("lokr", 64, 64, 1) != step_products("lokr", 64, 64, 4)  # factored, and whole


@pytest.mark.parametrize("method", ["lora", "melora", "bora", "hydralora", "gralora"])
def test_products_are_the_multiply_adds_where_all_of_them_are_products(method: str) -> None:
    """Two counts from different sides: what the method needs, and what its layers do."""
    blocks = 4 if method in BLOCK_METHODS else 1
    known = step_products(method, 64, 96, 8, blocks=blocks)
    assert known is not None
    assert known.forward == cost(method, 64, 96, 8, blocks=blocks).macs_per_token


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit", "sgd-momentum", "sgd"])
@pytest.mark.parametrize("size", [512, 8192, 65536])
def test_the_state_of_optimizers(optimizer: str, size: int) -> None:
    weight = torch.nn.Parameter(torch.ones(size))
    if optimizer == "adamw-8bit":
        optim: Any = pytest.importorskip("torchao.optim").AdamW8bit([weight])
    elif optimizer == "adamw":
        optim = torch.optim.AdamW([weight])
    else:
        optim = torch.optim.SGD([weight], momentum=0.9 * ("momentum" in optimizer))
    weight.grad = torch.ones(size)
    if optimizer == "adamw-8bit":  # its step needs a compiler
        values = [optim._new_buffer(weight, signed=signed) for signed in (True, False)]
    else:
        optim.step()
        values = [value for state in optim.state.values() for value in state.values() if value is not None]
    held = sum(inner(value) for value in values if value.numel() > 1)
    assert held == memory(size, optimizer=optimizer).optimizer


def inner(value: Any) -> int:
    """Bytes of a tensor, or of those that a quantised one consists of, without its table of 256 values."""
    if hasattr(value, "__tensor_flatten__"):
        names, _ = value.__tensor_flatten__()
        return sum(getattr(value, name).nbytes for name in names if name != "qmap")
    return value.nbytes


@pytest.mark.parametrize(("base", "double"), [("nf4", False), ("nf4-double", True)])
def test_a_quantised_matrix_in_bitsandbytes(base: str, double: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    for m, n in ((64, 96), (128, 512)):
        packed, state = functional.quantize_4bit(torch.randn(m, n), quant_type="nf4", compress_statistics=double)
        held = packed.nbytes + state.absmax.nbytes
        if double:
            held += state.offset.nbytes + state.state2.absmax.nbytes
        assert held == frozen_bytes(m, n, base)


def test_int8_has_a_number_for_each_row() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    layer = torch.nn.Linear(96, 64, bias=False)
    quantization.quantize_(layer, quantization.Int8WeightOnlyConfig())
    weight: Any = layer.weight
    assert leaves(weight) - weight.zero_point.nbytes == frozen_bytes(64, 96, "int8")  # torchao's own, always zero here
    assert not weight.zero_point.any()


def leaves(value: Any) -> int:
    """Bytes of the plain tensors that a quantised one consists of."""
    if not hasattr(value, "__tensor_flatten__"):
        return value.nbytes
    names, _ = value.__tensor_flatten__()
    return sum(leaves(getattr(value, name)) for name in names)
