"""The processes that train together: those of a `torchrun` or `accelerate launch`, or this one alone.

Every process holds the whole model, or with `shard` a part of every layer (FSDP2). What a step computes is the same for any
number of them: each takes every n-th text of the batch, noise is keyed by the text, and sums are divided by totals.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

# Whole tensors on the CPU, under the names they have in one process: a state may be resumed by any number of processes.
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
_SPREAD = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, ignore_frozen_params=True, strict=False)


class Processes:
    """What differs between one process and many.

    Args:
        precision: `no`, or `bf16`: activations in bfloat16, sums and master weights as they are held.
        shard: split weights, gradients and the optimizer's state among the processes.
        cpu: stay on the CPU where there is a GPU.
    """

    def __init__(self, precision: str = "no", shard: bool = False, cpu: bool = False) -> None:
        # Told to look for itself on a machine without a GPU, accelerate would leave each process by itself.
        self._accelerator = Accelerator(mixed_precision=precision, cpu=cpu or not torch.accelerator.is_available())
        self.shard = shard and self.size > 1

    @property
    def size(self) -> int:
        """How many there are."""
        return self._accelerator.num_processes

    @property
    def rank(self) -> int:
        """Which of them this is, from 0."""
        return self._accelerator.process_index

    @property
    def is_main(self) -> bool:
        """This one writes files and talks."""
        return self._accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        """Where this one computes."""
        return self._accelerator.device

    def spread(self, model: nn.Module, layers: list[nn.Module], entry: str) -> nn.Module:
        """Make a module train in all processes; its method `entry` may then be called as its forward may.

        `layers` are the parts that are gathered one at a time where weights are split.
        """
        model.to(self.device)
        if self.size == 1:
            return model
        if not self.shard:
            return self._accelerator.prepare_model(model)
        mesh = init_device_mesh(self.device.type, (self.size,))
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        register_fsdp_forward_method(model, entry)
        return model

    def unwrap(self, model: nn.Module) -> Any:
        """The module itself, whatever was put around it."""
        return self._accelerator.unwrap_model(model)

    @contextmanager
    def whole(self, model: nn.Module) -> Iterator[None]:
        """Gather the weights: inside, processes may run different numbers of forwards."""
        layers = [module for module in model.modules() if isinstance(module, FSDPModule)]
        for layer in layers:  # here, not in a forward: what inference mode gathers could not be trained afterwards
            layer.set_reshard_after_forward(False, recurse=False)
            layer.unshard()
        try:
            yield
        finally:
            for layer in layers:
                layer.reshard()
                layer.set_reshard_after_forward(True, recurse=False)

    def precision(self) -> AbstractContextManager[None]:
        """The forward's arithmetic."""
        return self._accelerator.autocast()

    @contextmanager
    def part(self, model: nn.Module, last: bool) -> Iterator[None]:
        """A forward and `backward` of part of a step: gradients are exchanged behind the `last` one alone."""
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(last)
        with nullcontext() if last or self.size == 1 or self.shard else self._accelerator.no_sync(model):
            yield

    def backward(self, loss: Tensor) -> None:
        """Add gradients; those of all processes add up."""
        (loss * self.size).backward()  # what is exchanged is a mean

    def total(self, values: Tensor) -> Tensor:
        """The sum over processes."""
        if self.size == 1:
            return values
        total: Any = self._accelerator.reduce(values.to(self.device), "sum")
        return total

    def clip(self, model: nn.Module, largest: float) -> float:
        """Scale the whole gradient to a norm of at most `largest`; returns the norm it had."""
        norm = nn.utils.clip_grad_norm_(model.parameters(), largest)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Trained weights and the optimizer's state, whole and on the CPU; empty outside the main process."""
        weights = get_model_state_dict(model, options=_WHOLE)
        return {"model": weights, "optimizer": get_optimizer_state_dict(model, optimizer, options=_WHOLE)}

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """All weights, trained or not, whole and on the CPU; empty outside the main process."""
        weights: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        return weights

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Take a `state` up again."""
        options = _SPREAD if self.size > 1 else _WHOLE
        set_model_state_dict(model, state["model"], options=options)
        set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)

    def wait(self) -> None:
        """For all of them."""
        self._accelerator.wait_for_everyone()

    def leave(self) -> None:
        """End the group in good order."""
        self._accelerator.end_training()
