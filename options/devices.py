"""The options of devices and precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from options.actions import TRAINING
from options.declare import idle_without, option
from options.ranges import at_least

FSDP = "fsdp"
_NO_DEEPSPEED = "it replaces the optimizer and the reduction of gradients, which switch with the elements here"


def _one_strategy(run: Mapping[str, Any]) -> str | None:
    if run["num_devices"] * run["num_nodes"] == 1:
        return "with one device"
    if run["strategy"] == FSDP:
        return None
    if run["action"] not in TRAINING:
        return f"on {run['action']}"
    return f"with --model {run['model']}, which is trained in the same way by all but fsdp" if run["adapted"] else None


def _not_sharded(run: Mapping[str, Any]) -> str | None:
    if run["num_devices"] * run["num_nodes"] == 1:
        return "with one device"
    return idle_without("strategy", FSDP)(run)


@dataclass(frozen=True)
class DeviceOptions:
    """Devices and precision."""

    # fmt: off
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = option("auto", "type of device", resume="free")
    num_devices: int = option(1, "devices per node", at_least(1), aliases=("--gpu",), resume="global_batch")
    num_nodes: int = option(1, "nodes", at_least(1), aliases=("--nodes",), resume="global_batch")
    strategy: Literal[
        "auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false", "fsdp"
    ] = option("auto", "how several devices work together; fsdp: each holds a part of the frozen base (of all weights, "
        "for a plain model); the ddp kinds differ only for a plain model", resume="free", idle=_one_strategy,
        refused={"deepspeed": _NO_DEEPSPEED})
    shard_size: int | None = option(None, "fsdp: devices that hold one copy of the base together; by default those of "
        "a node", at_least(2), resume="free", idle=_not_sharded)
    precision: Literal["64", "32", "16-mixed", "bf16-mixed", "16-true", "bf16-true"] = option("32",
        "floating-point precision; a -true kind also loads the base in it; 16 and bf16 are the -mixed kinds",
        spellings={"16": "16-mixed", "bf16": "bf16-mixed", "32-true": "32", "64-true": "64"})  # as in Lightning
    # fmt: on

    @property
    def world(self) -> int:
        """The number of processes: one for each device of each node."""
        return self.num_devices * self.num_nodes

    @property
    def shards(self) -> int | None:
        """The number of devices that hold one copy of the base together. None if each holds all of it."""
        if self.strategy != FSDP or self.world == 1:
            return None
        return self.num_devices if self.shard_size is None else self.shard_size

    def for_lightning(self, strategy: Any) -> dict[str, Any]:
        """Arguments of a Trainer or a Fabric."""
        return {
            "accelerator": self.accelerator,
            "devices": self.num_devices,
            "num_nodes": self.num_nodes,
            "strategy": strategy,
            # A base of a -true kind is loaded in it already; the other parts stay float32.
            "precision": self.precision if self.precision.endswith("mixed") else "32-true",
        }
