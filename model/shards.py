"""A language model whose layers are split among processes, by the plan that `transformers` has for it: tensor parallelism.

Layers into heads, and into the gated layer's width, are split by their outputs: each process has whole heads, with their keys and
values, and multiplies on with what it has. Layers back to the hidden size are split by their inputs, and what each process
computes is a part of a sum (Megatron-LM, arXiv 1909.08053, "Model Parallel Transformers"): `SummedLinear`. That is all that
processes exchange, twice a layer, and behind it hidden states are the same in all of them.

The library reads of each file what its process holds. What it puts around layers, to split and gather by itself, is then taken off
again: what remains are plain layers, laid out for a CPU as any others are. Embeddings and the output layer are put together again.
The first process alone needs them, and each product with a split output layer would be one more thing to do together: see
`parallel`.
"""

import math
import re
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig, PreTrainedModel

_WHOLE = ("replicate", "replicated_with_grad_allreduce")  # the latter differs from the former in training alone


class SummedLinear(nn.Module):
    """A linear layer of which each process has some inputs: products are summed over all of them. Inference only.

    Args:
        part: this process's layer, of some inputs and all outputs, without a bias.
        bias: of the whole.
    """

    def __init__(self, part: nn.Linear, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.part, self.bias = part, bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Whole products [..., out_features] of this process's inputs; all processes must call it."""
        products = self.part(inputs)
        dist.all_reduce(products)
        return products if self.bias is None else products + self.bias


def loading_options(config: PreTrainedConfig, num_parts: int) -> dict[str, Any]:
    """What `from_pretrained` must be told, in each of `num_parts` processes; nothing for a model that stays whole.

    Raises ValueError where a model cannot be split so.
    """
    if num_parts == 1:
        return {}
    text = config.get_text_config()
    if not text.base_model_tp_plan:
        raise ValueError(f"transformers has no plan to split {config.model_type!r} models among processes")
    heads = int(text.num_attention_heads)
    kv_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    common = math.gcd(heads, kv_heads)
    if common % num_parts:
        allowed = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
        raise ValueError(
            f"its {heads} heads and {kv_heads} key-value heads cannot be divided among {num_parts} processes; "
            f"there may be {allowed}"
        )
    try:
        from transformers.distributed.configuration_utils import DistributedConfig

        return {"distributed_config": DistributedConfig(tp_size=num_parts)}
    except (ImportError, TypeError) as error:
        raise ValueError(
            f"this version of transformers splits no model by DistributedConfig(tp_size=...): {error}"
        ) from error


def settle(lm: PreTrainedModel) -> None:
    """Leave of a model that was read in parts nothing but plain layers and sums; all processes must call it.

    Raises ValueError where its plan splits it in ways that we do not compute.
    """
    modules, plan = dict(lm.named_modules()), lm.tp_plan or {}
    ends = [module for module in (lm.get_input_embeddings(), lm.get_output_embeddings()) if module is not None]
    _put_together(ends)
    for name, module in modules.items():
        vars(module).pop("forward", None)  # the library's, which would split and gather
        style = plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", name))
        if style is None or style in _WHOLE or any(module is end for end in ends):
            continue
        if style not in ("colwise", "rowwise") or type(module) is not nn.Linear:
            raise ValueError(f"its plan splits {name!r} by {style!r}; only linear layers, colwise or rowwise, can be")
        _keep_part(module)
        if style == "rowwise":
            bias, module.bias = module.bias, None
            lm.set_submodule(name, SummedLinear(module, bias))
    if left := [name for name, parameter in lm.named_parameters() if isinstance(parameter, DTensor)]:
        raise ValueError(f"its plan splits {left[0]!r}, which is no linear layer's")


def shed_ends(lm: PreTrainedModel) -> None:
    """Forget embeddings and output layer, all but a row that tells their dtype."""
    lm.set_output_embeddings(nn.Identity())
    embedding: Any = lm.get_input_embeddings()
    embedding.weight = _frozen(embedding.weight[:1].clone())


def _put_together(ends: list[nn.Module]) -> None:
    """Give modules their whole weights; one weight of two modules stays one."""
    whole: dict[int, nn.Parameter] = {}
    for module in ends:
        for name, parameter in list(module.named_parameters(recurse=False)):
            split: Any = parameter.detach()
            if isinstance(split, DTensor):
                if id(parameter) not in whole:
                    whole[id(parameter)] = _frozen(split.full_tensor())
                setattr(module, name, whole[id(parameter)])


def _keep_part(layer: nn.Linear) -> None:
    for name, parameter in list(layer.named_parameters(recurse=False)):
        held: Any = parameter.detach()
        if isinstance(held, DTensor):  # on a CPU a view, which keeps the whole weight alive
            setattr(layer, name, _frozen(held.to_local().clone()))
    layer.out_features, layer.in_features = layer.weight.shape


def _frozen(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight, requires_grad=False)
