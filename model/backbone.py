"""Any Hugging Face causal language model behind one call, with an attention of our own.

Shape letters in this package: B sequences, R rows, N rows of all sequences, T tokens, C columns of a cache, H hidden size,
V vocabulary, D head size, L thought tokens.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

if TYPE_CHECKING:
    from .parallel import Leader

# attend(layer, query, key, value, scale): [B, heads, R, D], and kv_heads for key and value, to [B, heads, R, D].
Attend = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]

# watch(layer, hidden): [B, R, H], 0 the embeddings, k the output of layer k; of the last layer behind the final norm.
Watch = Callable[[int, Tensor], None]

ATTENTION = "quietserve"

# Settings under which logits are no longer linear in the hidden state, or attention is not the plain softmax we compute.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "final_logit_softcapping": (None,),
    "attn_logit_softcapping": (None,),
    "logits_scaling": (None, 1, 1.0),
    "logit_scale": (None, 1, 1.0),
    "alibi": (None, False),
}


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001  the caller's attend knows what is visible
    scaling: float,
    attend: Attend,
    **_: Any,
) -> tuple[Tensor, None]:
    out = attend(cast(int, module.layer_idx), query, key, value, scaling)
    return out.transpose(1, 2), None


AttentionInterface.register(ATTENTION, _attention)


def causal(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:  # noqa: ARG001
    """Attend to this row and all before it: a plain forward without a cache."""
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)


def _rope_types(config: Any) -> set[str]:
    """Every kind of rotary embedding that a configuration names, wherever in it."""
    if not isinstance(config, dict):
        return set()
    own = {config["rope_type"]} if isinstance(config.get("rope_type"), str) else set()
    return own.union(*(_rope_types(value) for value in config.values()))


def tolerance(dtype: torch.dtype) -> float:
    """How far two ways of computing the same may differ, as a share of the largest value."""
    return 1e-3 if dtype == torch.float32 else 5e-2


class Backbone(nn.Module):
    """The language model: rows and an attention in, hidden states out.

    Raises ValueError when the model's configuration asks for what we do not compute, or when our forward of a few
    tokens differs from the model's own.
    """

    def __init__(self, lm: PreTrainedModel) -> None:
        super().__init__()
        for name, neutral in _NEUTRAL.items():
            if (value := getattr(lm.config, name, None)) not in neutral:
                raise ValueError(f"config field {name!r} is {value!r}; only {neutral[-1]!r} is supported")
        if moving := _rope_types(lm.config.to_dict()) & {"dynamic", "longrope"}:
            raise ValueError(f"rope_type {moving.pop()!r} turns a text by its neighbours' lengths; it is not supported")
        self.lm = lm
        self.body: Callable[[Tensor, Tensor, Attend, Watch | None], Tensor] = self._library_body
        self.leader: Leader | None = None  # where other processes have parts of the body: it has them compute along
        with torch.no_grad():
            self.kv_shapes = self._adopt()

    @property
    def _embedding(self) -> nn.Embedding:
        return cast(nn.Embedding, self.lm.get_input_embeddings())

    @property
    def _head(self) -> nn.Linear:
        return cast(nn.Linear, self.lm.get_output_embeddings())

    @property
    def hidden_size(self) -> int:
        """Width of a hidden state."""
        return int(self.lm.config.get_text_config().hidden_size)

    @property
    def vocab_size(self) -> int:
        """Number of rows of the output embedding, which may exceed the tokenizer's entries."""
        return int(self._head.out_features)  # a weight of 4 bits has another shape

    @property
    def num_layers(self) -> int:
        """Number of layers, each with keys and values of its own."""
        return len(self.kv_shapes)

    @property
    def max_positions(self) -> int:
        """Longest context whose attention we compute as the model was trained to.

        A sliding window counts: inside it, windowed and full attention are the same.
        """
        config = self.lm.config.get_text_config()
        limits = [int(config.max_position_embeddings)]
        if getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None):
            limits.append(int(config.sliding_window))
        return min(limits)

    @property
    def device(self) -> torch.device:
        """Where the embeddings live."""
        return self._embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of embeddings and hidden states."""
        return self._embedding.weight.dtype

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings of token ids: [...] to [..., H]."""
        return self._embedding(ids)

    def forward(self, embeds_BRH: Tensor, positions_BR: Tensor, attend: Attend, watch: Watch | None = None) -> Tensor:
        """Hidden states [B, R, H] after the final norm; `attend` decides what each row sees, `watch` is shown every layer."""
        if self.leader:
            return self.leader.run(self.body, embeds_BRH, positions_BR, attend, watch)
        return self.body(embeds_BRH, positions_BR, attend, watch)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits in float32: [..., H] to [..., V]."""
        return self._head(hidden).float()

    def _library_body(
        self, embeds_BRH: Tensor, positions_BR: Tensor, attend: Attend, watch: Watch | None = None
    ) -> Tensor:
        shown = {"output_hidden_states": True} if watch else {}
        out = self.lm.base_model(
            inputs_embeds=embeds_BRH, position_ids=positions_BR, use_cache=False, attend=attend, **shown
        )
        for layer, hidden in enumerate(out.hidden_states if watch else ()):
            watch(layer, hidden)  # type: ignore[misc]
        return out.last_hidden_state

    def _adopt(self) -> list[tuple[int, int]]:
        """Put our attention in place; learn each layer's (kv_heads, head_dim); compare with the model's own forward."""
        ids = torch.arange(8, device=self.device).remainder(self.vocab_size)[None]
        own = self.lm(input_ids=ids, use_cache=False).logits.float()
        self.lm.set_attn_implementation(ATTENTION)
        shapes: dict[int, tuple[int, int]] = {}

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
            shapes[layer] = (key.shape[1], key.shape[3])
            return causal(layer, query, key, value, scale)

        positions = torch.arange(8, device=self.device)[None]
        ours = self.logits(self(self.embed(ids), positions, attend))
        error = (ours - own).abs().max() / own.abs().max().clamp(min=1.0)
        if not error < tolerance(self.dtype) or not shapes:
            raise ValueError(f"its logits differ from ours by {error:.2g} of their size")
        return [shapes[layer] for layer in sorted(shapes)]
