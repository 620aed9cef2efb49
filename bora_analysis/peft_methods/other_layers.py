"""Embeddings and convolutions with BoRA and MELoRA."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from .adapter_layer import AdapterLayer
from .contraction import look_up
from .method_layers import BoraLinear, MeloraLinear


class _Embedding(AdapterLayer):
    """ΔW is (d, V), as in PEFT's LoRA: A is looked up, not multiplied, and has its own name in files."""

    what = "nn.Embedding"
    is_transposed = True  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    @classmethod
    def accepts(cls, base: nn.Module) -> bool:
        return isinstance(base, nn.Embedding)

    def sizes(self) -> tuple[int, int]:
        base: Any = self.get_base_layer()
        return base.embedding_dim, base.num_embeddings

    def apply_delta(self, name: str, result: Tensor, x: Tensor) -> Tensor:
        base: Any = self.get_base_layer()
        scale = self._get_embed_scale()
        found = look_up(x, *self.table(name), base.padding_idx)[..., : self.out_features]
        return result + (found if scale is None else found * scale)

    def table(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """B (b, m/b, r), Σ (b, b, r) or what broadcasts to it, and A' with a row for each token, (n, r)."""
        raise NotImplementedError


class BoraEmbedding(_Embedding, BoraLinear):
    """BoRA of an embedding: ``bora_embedding_A`` (r, V), ``bora_B`` (d, r), ``bora_sigma`` (b, b, r)."""

    adapter_layer_names = ("bora_embedding_A", "bora_B", "bora_sigma")

    @property
    def bora_A(self) -> nn.ParameterDict:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.bora_embedding_A  # pyright: ignore[reportReturnType]

    def table(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        B, sigma, _ = self.blocks(name, self.bora_B[name], self.bora_A[name])
        return B, sigma, self.bora_A[name].T


class MeloraEmbedding(_Embedding, MeloraLinear):
    """MELoRA of an embedding: ``melora_embedding_A`` (N, r, V/N), ``melora_B`` (N, d/N, r)."""

    adapter_layer_names = ("melora_embedding_A", "melora_B")

    @property
    def melora_A(self) -> nn.ParameterDict:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.melora_embedding_A  # pyright: ignore[reportReturnType]

    def table(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        A, B = self.melora_A[name], self.melora_B[name]
        one = torch.eye(len(B), dtype=B.dtype, device=B.device)[..., None]
        return B, one * self.scaling[name], A.transpose(1, 2).flatten(0, 1)


class _Convolution(AdapterLayer):
    """ΔW has the kernel in its columns. The output is that of a second convolution, with ΔW as its weight."""

    what = "nn.Conv1d, nn.Conv2d or nn.Conv3d without groups"

    @classmethod
    def accepts(cls, base: nn.Module) -> bool:
        return isinstance(base, _ConvNd) and not isinstance(base, _ConvTransposeNd) and base.groups == 1

    def sizes(self) -> tuple[int, int]:
        return len(self.weight), self.weight[0].numel()

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape[1:])

    def apply_delta(self, name: str, result: Tensor, x: Tensor) -> Tensor:
        base: Any = self.get_base_layer()
        x = self.lora_dropout[name](self._cast_input_dtype(x, self.trained_dtype(name)))
        return result + base._conv_forward(x, self.dense_delta(name).view_as(self.weight).to(x.dtype), None)

    def _delta(self, adapter: str) -> Tensor:
        return super()._delta(adapter).view_as(self.weight)


class BoraConv(_Convolution, BoraLinear):
    """BoRA of a convolution: ``bora_A`` (r, channels, kernel …), the others as for a linear layer."""


class MeloraConv(_Convolution, MeloraLinear):
    """MELoRA of a convolution: ``melora_A`` (N, r, channels/N, kernel …), ``melora_B`` (N, m/N, r)."""
