"""Shards the frozen base over processes with FSDP2, so that it need not fit on one device.

A block is whole on a device only while it runs. What is trained (the elements and a head) stays whole on every process,
as plain tensors that FSDP2 ignores. So switching, clipping, checkpoints and the one all-reduce of the gradients are the
same as with a replicated base, and so is every number: gathering moves bytes and computes nothing.

Every pass gathers weights. So every process must run the same passes, with the same elements on.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from heterolora.search_space import SearchSpace


@dataclass(frozen=True)
class Sharding:
    """How the base is divided.

    Attributes:
        size: number of processes that hold one copy of the base together. Groups of this size hold a copy each.
        dtype: of the base; its files may have another one. None: it is loaded as it will be.
    """

    size: int
    dtype: torch.dtype | None


def shard_base(network: nn.Module, space: SearchSpace, sharding: Sharding, device: torch.device) -> None:
    """Shards everything that is not trained, in place. Has no effect on a network that is sharded already.

    The network may be mapped from its files: then a process copies only its own rows, one block at a time. A block is
    cast, and moved to the device, just before it is sharded. So no process ever holds the whole base.

    Args:
        network: the adapted network, on the CPU.
        device: that of this process.
    """
    if is_sharded(network):
        return
    mesh = _mesh(device, sharding.size)
    trained = {p for p in network.parameters() if p.requires_grad}
    trained |= {p for low_rank in space for p in low_rank.parameters()}  # also of elements that are off
    for module in (*space.blocks, network):  # the network gets what is outside the blocks, tied weights included
        if sharding.dtype is not None:
            _cast(module, sharding.dtype, trained)
        fully_shard(module, mesh=mesh, ignored_params=trained)


def is_sharded(network: nn.Module) -> bool:
    return isinstance(network, FSDPModule)


def sharded_names(module: nn.Module) -> list[str]:
    """The names of the sharded parameters."""
    return [name for name, p in module.named_parameters(remove_duplicate=False) if isinstance(p, DTensor)]


def _mesh(device: torch.device, size: int) -> DeviceMesh:
    """Processes of consecutive ranks share a copy of the base; each of these groups has a copy of its own."""
    world = distributed.get_world_size()
    if size == world:
        return init_device_mesh(device.type, (world,))
    return init_device_mesh(device.type, (world // size, size), mesh_dim_names=("replicate", "shard"))


def _cast(module: nn.Module, dtype: torch.dtype, trained: Collection[nn.Parameter]) -> None:
    """Casts what is neither trained nor sharded. `nn.Module.to` would cast the elements too."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point() and tensor not in trained and not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(dtype)
