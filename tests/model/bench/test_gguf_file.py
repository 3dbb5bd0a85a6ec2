import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from quietserve.model.bench import gguf_file
from quietserve.model.bench.cell import Unavailable
from quietserve.model.bench.shapes import build

gguf = pytest.importorskip("gguf")


def test_every_tensor_is_there_in_the_model_s_own_dtype(sizes, tmp_path):
    lm = build("tiny", sizes, torch.bfloat16).lm
    gguf_file.write(lm, tmp_path / "tiny.gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "tiny.gguf").tensors}
    assert len(tensors) == len(lm.state_dict())
    assert sum(int(tensor.n_elements) for tensor in tensors.values()) == sum(p.numel() for p in lm.parameters())
    assert tensors["blk.1.attn_q.weight"].tensor_type == gguf.GGMLQuantizationType.BF16
    assert tensors["blk.1.attn_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda sizes: MistralForCausalLM(MistralConfig(**sizes)), "'mistral'"),
        (
            lambda sizes: LlamaForCausalLM(
                LlamaConfig(**sizes, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})
            ),
            "rotary scaling 'linear'",
        ),
        (lambda sizes: LlamaForCausalLM(LlamaConfig(**sizes, attention_bias=True)), "bias"),
    ],
)
def test_what_is_no_plain_llama_is_refused(make, reason, sizes, tmp_path):
    with pytest.raises(Unavailable, match=reason):
        gguf_file.write(make(sizes), tmp_path / "other.gguf")
