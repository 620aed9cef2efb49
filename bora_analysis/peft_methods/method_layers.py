"""The layer of each method: its factors, y + ΔW x and ΔW."""

from __future__ import annotations

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import Tensor, nn
from torch.nn import functional

from ..catalogue.sizes import PADS, cheapest_blocks, check_blocks
from .adapter_layer import AdapterLayer, initialised, of_pattern, wide_factor
from .config import BoraConfig, HydraloraConfig, MeloraConfig, MoeloraConfig, SboraConfig
from .contraction import add_bora, add_melora, dense_bora, dense_melora, effective_sigma, wide


class BoraLinear(AdapterLayer):
    """BoRA: ``bora_A`` (r, n), ``bora_B`` (m, r), ``bora_sigma`` (b, b, r), raw."""

    adapter_layer_names = ("bora_A", "bora_B", "bora_sigma")
    other_param_names = (*AdapterLayer.other_param_names, "num_blocks", "activation")

    bora_A: nn.ParameterDict
    bora_B: nn.ParameterDict
    bora_sigma: nn.ParameterDict
    num_blocks: dict[str, int]
    activation: dict[str, str]

    def make_factors(self, adapter_name: str, r: int, config: BoraConfig) -> None:
        b = config.num_blocks
        if isinstance(b, dict):
            b = of_pattern(b, self.module_name, "auto")
        if isinstance(b, str):  # "auto"
            b = cheapest_blocks(self.out_features, self.in_features)
        if not config.pad:
            _check_blocks(b, self, self.in_features, PADS)
        self.num_blocks[adapter_name] = b
        self.activation[adapter_name] = config.activation
        self.bora_A[adapter_name] = initialised(r, *self.input_shape)
        self.bora_B[adapter_name] = initialised(self.out_features, r, zero=config.init_lora_weights)
        self.bora_sigma[adapter_name] = initialised(b, b, r)
        _ = config.near and config.near.start(self, adapter_name)  # not upstream

    def add_delta(self, adapter_name: str, result: Tensor, x: Tensor) -> Tensor:
        B, sigma, A = self.blocks(adapter_name, self.bora_B[adapter_name], self.bora_A[adapter_name])
        return add_bora(result, self.lora_dropout[adapter_name](x), B, sigma, A)

    def dense_delta(self, adapter_name: str) -> Tensor:
        B, A = wide_factor(self.bora_B[adapter_name]), wide_factor(self.bora_A[adapter_name])
        dense = dense_bora(*self.blocks(adapter_name, B, A))
        return dense[: self.out_features, : self.in_features].contiguous() if any(self.padding(adapter_name)) else dense

    def padding(self, name: str) -> tuple[int, int]:
        """The rows and columns that the blocks have beyond m and n."""
        return -self.out_features % self.num_blocks[name], -self.in_features % self.num_blocks[name]

    def blocks(self, name: str, B: Tensor, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """B (b, ⌈m/b⌉, r), scaled Σ (b, b, r) and A (b, r, ⌈n/b⌉), with zeros beyond m and n."""
        b, (rows, columns) = self.num_blocks[name], self.padding(name)
        sigma = effective_sigma(self.bora_sigma[name], self.activation[name], self.scaling[name])
        B = functional.pad(B, (0, 0, 0, rows)) if rows else B
        A = functional.pad(A.flatten(1), (0, columns)) if columns else A
        return B.view(b, -1, B.shape[1]), sigma, A.reshape(len(A), b, -1).transpose(0, 1)


class MeloraLinear(AdapterLayer):
    """MELoRA: ``melora_A`` (N, r, n/N), ``melora_B`` (N, m/N, r)."""

    adapter_layer_names = ("melora_A", "melora_B")
    other_param_names = (*AdapterLayer.other_param_names, "num_minis")

    melora_A: nn.ParameterDict
    melora_B: nn.ParameterDict
    num_minis: dict[str, int]

    def make_factors(self, adapter_name: str, r: int, config: MeloraConfig) -> None:
        count = config.num_minis
        if isinstance(count, dict):
            count = of_pattern(count, self.module_name, None)
            if count is None:
                raise ValueError(
                    f"{self.module_name}: no pattern of num_minis matches it ({', '.join(config.num_minis)}); add one"  # pyright: ignore[reportCallIssue, reportArgumentType]
                )
        first, *kernel = self.input_shape
        _check_blocks(count, self, first)
        self.num_minis[adapter_name] = count
        # Each mini is initialised like a LoRA of its own size.
        minis = [initialised(r, first // count, *kernel) for _ in range(count)]
        self.melora_A[adapter_name] = nn.Parameter(torch.stack([mini.data for mini in minis]))
        rows = self.out_features // count
        self.melora_B[adapter_name] = initialised(count, rows, r, zero=config.init_lora_weights)

    def add_delta(self, adapter_name: str, result: Tensor, x: Tensor) -> Tensor:
        x = self.lora_dropout[adapter_name](x)
        A = self.melora_A[adapter_name] * self.scaling[adapter_name]
        return add_melora(result, x, self.melora_B[adapter_name], A)

    def dense_delta(self, adapter_name: str) -> Tensor:
        A = wide_factor(self.melora_A[adapter_name]).flatten(2) * self.scaling[adapter_name]
        return dense_melora(wide_factor(self.melora_B[adapter_name]), A)


class SboraLinear(AdapterLayer):
    """SBoRA: ``sbora_B`` (m, r) or ``sbora_A`` (r, n), ``sbora_index`` (r,), ``sbora_size`` (1,)."""

    adapter_layer_names = ("sbora_A", "sbora_B")
    other_param_names = (*AdapterLayer.other_param_names, "sbora_index", "sbora_size")

    sbora_A: nn.ParameterDict
    sbora_B: nn.ParameterDict
    sbora_index: BufferDict
    sbora_size: BufferDict
    buffer_names = ("sbora_index", "sbora_size")

    def make_factors(self, adapter_name: str, r: int, config: SboraConfig) -> None:
        size = self.in_features if config.variant == "fa" else self.out_features
        if r > size:
            raise ValueError(
                f"{self.module_name}: r = {r} exceeds the {size} basis vectors to choose from; expected at most {size}"
            )
        if config.variant == "fa":
            self.sbora_B[adapter_name] = initialised(self.out_features, r, zero=config.init_lora_weights)
        else:
            self.sbora_A[adapter_name] = initialised(r, self.in_features, zero=config.init_lora_weights)
        self.sbora_index[adapter_name] = torch.randperm(size)[:r].sort().values
        self.sbora_size[adapter_name] = torch.tensor([size])

    def add_delta(self, adapter_name: str, result: Tensor, x: Tensor) -> Tensor:
        index, dropout = self._index(adapter_name), self.lora_dropout[adapter_name]
        if adapter_name in self.sbora_B:
            chosen = dropout(x.index_select(-1, index)) * self.scaling[adapter_name]
            return result + functional.linear(chosen, self.sbora_B[adapter_name])
        rows = functional.linear(dropout(x), self.sbora_A[adapter_name]) * self.scaling[adapter_name]
        dtype = torch.promote_types(result.dtype, rows.dtype)
        return result.to(dtype).index_add(-1, index, rows.to(dtype))

    def dense_delta(self, adapter_name: str) -> Tensor:
        side = int(adapter_name in self.sbora_B)
        factor = wide_factor(self._trained(adapter_name)) * self.scaling[adapter_name]
        dense = factor.new_zeros(self.out_features, self.in_features)
        return dense.index_add(side, self._index(adapter_name), factor)

    def _index(self, name: str) -> Tensor:
        return self.sbora_index[name]  # pyright: ignore[reportReturnType]

    def _trained(self, name: str) -> Tensor:
        return self.sbora_B[name] if name in self.sbora_B else self.sbora_A[name]


class RoutedLinear(AdapterLayer):
    """A layer whose update a router mixes for each token, so that there is no single ΔW."""

    label = ""
    other_param_names = (*AdapterLayer.other_param_names, "num_experts")

    num_experts: dict[str, int]

    def gates(self, x: Tensor, route: Tensor) -> Tensor:
        """softmax(G x): (…, K), of inputs (…, n) without dropout, as in the authors' code; at least in float32."""
        logits = functional.linear(x, route)
        return logits.softmax(-1, dtype=wide(logits.dtype)).to(x.dtype)

    def mixed(self, gates: Tensor, hidden: Tensor, B: Tensor) -> Tensor:
        """Σₖ gₖ Bₖ hₖ: (…, m), of gates (…, K), hidden (…, K or 1, r) and B (K, m, r)."""
        return functional.linear((gates[..., None] * hidden).flatten(-2), B.transpose(0, 1).flatten(1))

    def dense_delta(self, adapter_name: str) -> Tensor:
        raise ValueError(
            f"{self.module_name}: {self.label}'s update depends on the token, so there is no single ΔW; "
            "expected BoRA, MELoRA, SBoRA or LoRA"
        )

    def check_mergeable(self) -> None:
        raise ValueError(
            f"{self.module_name}: {self.label}'s update depends on the token and cannot be merged; keep the adapter"
        )

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return False


class HydraLoraLinear(RoutedLinear):
    """HydraLoRA: ``hydralora_A`` (r, n), ``hydralora_B`` (K, m, r), ``hydralora_route`` (K, n)."""

    label = "HydraLoRA"
    adapter_layer_names = ("hydralora_A", "hydralora_B", "hydralora_route")

    hydralora_A: nn.ParameterDict
    hydralora_B: nn.ParameterDict
    hydralora_route: nn.ParameterDict

    def make_factors(self, adapter_name: str, r: int, config: HydraloraConfig) -> None:
        count = config.num_experts
        self.num_experts[adapter_name] = count
        self.hydralora_A[adapter_name] = initialised(r, self.in_features)
        self.hydralora_B[adapter_name] = initialised(count, self.out_features, r, zero=config.init_lora_weights)
        self.hydralora_route[adapter_name] = initialised(count, self.in_features)

    def add_delta(self, adapter_name: str, result: Tensor, x: Tensor) -> Tensor:
        A = self.hydralora_A[adapter_name] * self.scaling[adapter_name]
        gates = self.gates(x, self.hydralora_route[adapter_name])
        hidden = functional.linear(self.lora_dropout[adapter_name](x), A)[..., None, :]
        return result + self.mixed(gates, hidden, self.hydralora_B[adapter_name])


class MoeLoraLinear(RoutedLinear):
    """MoELoRA: ``moelora_A`` (K, r, n), ``moelora_B`` (K, m, r), ``moelora_route`` (K, n)."""

    label = "MoELoRA"
    adapter_layer_names = ("moelora_A", "moelora_B", "moelora_route")

    moelora_A: nn.ParameterDict
    moelora_B: nn.ParameterDict
    moelora_route: nn.ParameterDict

    def make_factors(self, adapter_name: str, r: int, config: MoeloraConfig) -> None:
        count = config.num_experts
        self.num_experts[adapter_name] = count
        # Each A is initialised like a LoRA's of its own.
        experts = [initialised(r, self.in_features) for _ in range(count)]
        self.moelora_A[adapter_name] = nn.Parameter(torch.stack([A.data for A in experts]))
        self.moelora_B[adapter_name] = initialised(count, self.out_features, r, zero=config.init_lora_weights)
        self.moelora_route[adapter_name] = initialised(count, self.in_features)

    def add_delta(self, adapter_name: str, result: Tensor, x: Tensor) -> Tensor:
        A = self.moelora_A[adapter_name]
        gates = self.gates(x, self.moelora_route[adapter_name])
        dropped = self.lora_dropout[adapter_name](x)
        hidden = functional.linear(dropped, A.flatten(0, 1) * self.scaling[adapter_name])  # (…, K r)
        return result + self.mixed(gates, hidden.unflatten(-1, A.shape[:2]), self.moelora_B[adapter_name])


def _check_blocks(b: int, layer: AdapterLayer, n: int, more: str = "") -> None:
    try:
        check_blocks(b, [(layer.out_features, n)], more)
    except ValueError as error:
        raise ValueError(f"{layer.module_name}: {error}") from None
