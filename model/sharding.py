"""Shards the frozen base over processes with FSDP2, so that it need not fit on one device.

A block is whole on a device only while it runs. What is trained (the elements and a head) stays whole on every process,
as plain tensors that FSDP2 ignores. So switching, clipping, checkpoints and the one all-reduce of the gradients are the
same as with a replicated base, and so is every number: gathering moves bytes and computes nothing.

Every pass gathers weights. So every process must run the same passes, with the same elements on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from heterolora.elements.search_space import SearchSpace
from model.load import cast
from model.quantize import quantize


@dataclass(frozen=True)
class Sharding:
    """How the base is divided.

    Attributes:
        size: number of processes that hold one copy of the base together. Groups of this size hold a copy each.
        dtype: of the base; its files may have another one.
        quantized: whether it has layers to quantise.
    """

    size: int
    dtype: torch.dtype
    quantized: bool = False


def shard(network: nn.Module, space: SearchSpace | None, sharding: Sharding, device: torch.device) -> None:
    """Shard all parameters but those that are trained, in place. Of a sharded network, frees what is gathered.

    The network may be mapped from its files: then a process copies only its own rows, one block at a time. A block is
    cast, quantised, and moved to the device, just before it is sharded. So no process ever holds the whole base.

    Args:
        network: the network, on the CPU.
        space: its search space. None for a plain model, whose parameters are trained, and all sharded.
        device: that of this process.
    """
    if is_sharded(network):
        for module in network.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # what is outside the blocks is still gathered after a pass
        return
    mesh, kept = _mesh(device, sharding.size), set()
    if space is not None:
        kept = {p for p in network.parameters() if p.requires_grad}
        kept |= {p for low_rank in space for p in low_rank.parameters()}  # also of elements that are off
    modules = *blocks_of(network, space), network  # what is outside the blocks, tied weights included, comes last
    for module in modules:
        for part in module.modules():
            own = (p for p in part.parameters(recurse=False) if p not in kept and not isinstance(p, DTensor))
            cast(own, sharding.dtype)
            if sharding.quantized:
                quantize(part, device)
        # What is outside the blocks stays gathered after a pass: losses are computed with the head's weight then.
        fully_shard(module, mesh=mesh, ignored_params=kept, reshard_after_forward=module is not network)


def blocks_of(network: nn.Module, space: SearchSpace | None) -> Iterable[nn.Module]:
    """The Transformer blocks. A plain model may be of any family; transformers knows the classes of its blocks."""
    if space is not None:
        return space.blocks
    names = set(getattr(network, "_no_split_modules", None) or ())
    return reversed([module for module in network.modules() if type(module).__name__ in names])  # inner ones first


def is_sharded(network: nn.Module) -> bool:
    return isinstance(network, FSDPModule)


def sharded_names(module: nn.Module) -> list[str]:
    """The names of the sharded parameters."""
    return [name for name, p in module.named_parameters(remove_duplicate=False) if isinstance(p, DTensor)]


@torch.no_grad()
def put(parameter: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a parameter, which may be sharded; then each process copies its rows."""
    if isinstance(parameter, DTensor):
        value = distribute_tensor(
            value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
        )
    parameter.copy_(value)


def _mesh(device: torch.device, size: int) -> DeviceMesh:
    """Processes of consecutive ranks share a copy of the base; each of these groups has a copy of its own."""
    world = distributed.get_world_size()
    if size == world:
        return init_device_mesh(device.type, (world,))
    return init_device_mesh(device.type, (world // size, size), mesh_dim_names=("replicate", "shard"))
