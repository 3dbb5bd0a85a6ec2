"""A Llama model as a GGUF file, which llama.cpp reads; needs the optional package `gguf`."""

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .cell import Unavailable

_WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
}


def write(lm: PreTrainedModel, file: Path) -> None:
    """Write the weights in their own dtype; norms in float32, as llama.cpp wants them.

    The vocabulary is made up, the text of id 7 being `<7>`: prompts are given as ids, and answers are read back so.
    Raises Unavailable for anything but a plain Llama.
    """
    gguf = importlib.import_module("gguf")
    _check(lm)
    writer = gguf.GGUFWriter(file, "llama")
    _describe(gguf, writer, lm.config)
    kind = gguf.GGMLQuantizationType.BF16 if lm.dtype == torch.bfloat16 else gguf.GGMLQuantizationType.F32
    for name, tensor in lm.state_dict().items():
        if name == "lm_head.weight" and lm.config.tie_word_embeddings:
            continue
        values = _permuted(name, tensor.float(), lm.config).numpy()
        own = kind if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(_name(name), gguf.quants.quantize(values, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _check(lm: PreTrainedModel) -> None:
    config: Any = lm.config
    if config.model_type != "llama":
        raise Unavailable(f"its weights are written for Llama models only, and this one is {config.model_type!r}")
    if config.rope_parameters.get("rope_type", "default") != "default":
        raise Unavailable(f"rotary scaling {config.rope_parameters['rope_type']!r} is not written")
    if unknown := [name for name in lm.state_dict() if name not in _WHOLE and _layer(name)[1] not in _LAYER]:
        raise Unavailable(f"tensor {unknown[0]!r} is not written")


def _describe(gguf: Any, writer: Any, config: Any) -> None:
    size = config.vocab_size
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{i}>" for i in range(size)])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([gguf.TokenType.NORMAL] * size)
    writer.add_add_bos_token(False)


def _layer(name: str) -> tuple[str, str]:
    """`model.layers.3.mlp.up_proj.weight` as `3` and `mlp.up_proj.weight`."""
    number, _, rest = name.removeprefix("model.layers.").partition(".")
    return number, rest


def _name(name: str) -> str:
    if name in _WHOLE:
        return _WHOLE[name]
    number, rest = _layer(name)
    return f"blk.{number}.{_LAYER[rest]}"


def _permuted(name: str, tensor: Tensor, config: Any) -> Tensor:
    """llama.cpp rotates neighbours where the library rotates halves: queries and keys change their order within a head."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, count in heads.items():
        if part in name:
            return tensor.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2).contiguous()
    return tensor
