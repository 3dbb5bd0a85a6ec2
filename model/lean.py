"""The layers of Llama-like models with half the operations: what counts where a forward has few rows. Inference only.

Queries, keys and values come from one product, and so do the two halves of the gated layer; cosines and sines are looked up,
and turn queries and keys together. The weights are the model's own, joined; nothing else changes but the order of sums.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from .backbone import Attend, Backbone, Watch, causal, tolerance

KNOWN = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")  # bodies that are just what `_Layer` computes


class LeanBody(nn.Module):
    """Everything between the embeddings and the output layer.

    Args:
        body: one of the library's `KNOWN` models; its layers are taken over, and it is not to be used again.
    """

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.rotary: Any = body.rotary_emb
        self.norm = _Norm(body.norm)
        layers: Any = body.layers
        self.layers = nn.ModuleList()
        for i in range(len(layers)):
            self.layers.append(_Layer(layers[i]))
            layers[i] = nn.Identity()  # so that no more than one layer is held twice

    def forward(self, embeds_BRH: Tensor, positions_BR: Tensor, attend: Attend, watch: Watch | None = None) -> Tensor:
        """Hidden states [B, R, H] after the final norm."""
        cos, sin = self.rotary(embeds_BRH, positions_BR)  # [B, R, D]
        half = sin.shape[-1] // 2
        turn = cos.unsqueeze(2), torch.cat([-sin[..., :half], sin[..., half:]], dim=-1).unsqueeze(2)
        hidden = embeds_BRH
        for number, layer in enumerate(self.layers):
            if watch:
                watch(number, hidden)
            hidden = layer(hidden, turn, attend)
        hidden = self.norm(hidden)
        if watch:
            watch(len(self.layers), hidden)
        return hidden


class _Layer(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.number, self.scale, self.size = attention.layer_idx, attention.scaling, attention.head_dim
        self.attention_norm, self.mlp_norm = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self.kv_heads = attention.k_proj.out_features // self.size
        self.num_turned = attention.q_proj.out_features // self.size + self.kv_heads
        self.head_norm = _head_norm(attention, self.num_turned - self.kv_heads, self.kv_heads)
        self.attend_in = _joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self.attend_out = attention.o_proj
        self.mlp_in, self.mlp_out = _joined(mlp.gate_proj, mlp.up_proj), mlp.down_proj
        self.act: Callable[[Tensor], Tensor] = mlp.act_fn

    def forward(self, hidden: Tensor, turn: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        hidden = hidden + self.attend_out(self._attend(self.attention_norm(hidden), turn, attend))
        gate, up = self.mlp_in(self.mlp_norm(hidden)).chunk(2, dim=-1)
        return hidden + self.mlp_out(self.act(gate) * up)

    def _attend(self, hidden: Tensor, turn: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        heads = self.attend_in(hidden).unflatten(-1, (-1, self.size))  # [B, R, query, key and value heads, D]
        turned = heads[:, :, : self.num_turned]
        if self.head_norm is not None:
            turned = self.head_norm(turned)
        cos, sin = turn
        turned = torch.addcmul(turned * cos, turned.roll(self.size // 2, dims=-1), sin).transpose(1, 2)
        query, key = turned[:, : -self.kv_heads], turned[:, -self.kv_heads :]
        value = heads[:, :, self.num_turned :].transpose(1, 2)
        return attend(self.number, query, key, value, self.scale).transpose(1, 2).flatten(2)


class _Norm(nn.Module):
    """Root mean square norm, in one call."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        return rms_norm(hidden, self.weight.shape[-1:], self.weight, self.eps)


class _HeadNorm(nn.Module):
    """Qwen3's norms of queries and keys: one call for the heads of both, each with its own weights."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(weight, requires_grad=False), eps

    def forward(self, heads: Tensor) -> Tensor:
        return rms_norm(heads, self.weight.shape[-1:], None, self.eps) * self.weight


def _head_norm(attention: Any, heads: int, kv_heads: int) -> _HeadNorm | None:
    if (query := getattr(attention, "q_norm", None)) is None:
        return None
    weight = torch.cat([query.weight.expand(heads, -1), attention.k_norm.weight.expand(kv_heads, -1)])
    return _HeadNorm(weight.detach(), query.variance_epsilon)


def _joined(*parts: nn.Linear) -> nn.Linear:
    """One linear layer that computes what several do."""
    weight = torch.cat([part.weight.detach() for part in parts])
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=parts[0].bias is not None, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if parts[0].bias is not None:
        joined.bias = nn.Parameter(torch.cat([part.bias.detach() for part in parts]), requires_grad=False)
    return joined


@torch.no_grad()
def make_lean(backbone: Backbone) -> bool:
    """Let a backbone compute with lean layers from now on, where its model is of a known kind; returns whether it is.

    The model can no longer be trained or saved. Raises ValueError when the two ways to compute differ.
    """
    body = backbone.lm.base_model
    kinds = {type(module) for module in body.modules() if isinstance(module, nn.Linear)}
    if type(body).__name__ not in KNOWN or kinds != {nn.Linear}:
        return False
    embeds = backbone.embed(torch.arange(8, device=backbone.device).remainder(backbone.vocab_size)[None])
    positions = torch.arange(8, device=backbone.device)[None]
    before = backbone(embeds, positions, causal)
    backbone.body = LeanBody(body)
    error = (backbone(embeds, positions, causal) - before).abs().max() / before.abs().max().clamp(min=1e-3)
    if not error < tolerance(backbone.dtype):
        raise ValueError(f"its hidden states from lean layers differ by {error:.2g} of their size")
    return True
