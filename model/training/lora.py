"""Low-rank adapters (LoRA, arXiv 2106.09685) on a frozen language model, which may be held in 4 or 8 bits (QLoRA, 2305.14314).

Trained ones are merged into a base of full precision, read anew: what is served has no adapters. The adapters by themselves
are kept in peft's own format.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER = "adapter"  # folder


@dataclass(frozen=True)
class Lora:
    """The adapters' shape."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = ()  # names of linear layers; none: all but the output embedding
    dropout: float = 0.0

    def config(self) -> "LoraConfig":
        """The same as peft says it. Raises ValueError where that is not installed."""
        try:
            from peft import LoraConfig  # slow to import, and wanted only here
        except ImportError as error:
            raise ValueError(f"--lora: {error}: pip install 'quietserve[train]'") from error
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # pyright: ignore[reportArgumentType]  peft divides by the rank: a float will do
            target_modules=list(self.targets) or "all-linear",
            lora_dropout=self.dropout,
        )

    def add_to(self, lm: PreTrainedModel) -> None:
        """Put new adapters, which change nothing yet, into a model.

        Raises ValueError where a target is no layer of it.
        """
        config = self.config()
        from peft import inject_adapter_in_model

        inject_adapter_in_model(config, lm)
        for name, parameter in lm.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()  # steps of a small learning rate would be lost in bfloat16

    def save(self, state: Mapping[str, Tensor], base: str, folder: Path) -> None:
        """Write the adapters of a language model's `state` as peft reads them."""
        own = {name.replace(".default.", "."): value for name, value in state.items() if "lora_" in name}
        (folder / ADAPTER).mkdir(parents=True, exist_ok=True)
        config = self.config()
        config.base_model_name_or_path = base
        config.task_type = "CAUSAL_LM"
        if isinstance(config.target_modules, str):
            config.target_modules = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in own})
        config.save_pretrained(str(folder / ADAPTER))
        tensors = {f"base_model.model.{name}": value.contiguous() for name, value in own.items()}
        save_file(tensors, folder / ADAPTER / "adapter_model.safetensors")


@torch.no_grad()
def merge(lm: PreTrainedModel) -> None:
    """Add the adapters' products to the weights and take the adapters out."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(lm.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            lm.set_submodule(name, module.get_base_layer())
