"""The options of devices and precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from options.actions import TRAINING
from options.declare import idle_without, option
from options.ranges import at_least


@dataclass(frozen=True)
class DeviceStrategy:
    """A row of `STRATEGIES`.

    Attributes:
        file: of `actions/training/strategies/`, which builds it.
        divides: whether each device holds a part of the frozen base, or of all weights of a plain model.
        finds_unused: whether PyTorch's wrapper of a plain model looks for parameters without a gradient in each step.
    """

    file: str
    divides: bool = False
    finds_unused: bool = False


#: How several devices work together: the values of --strategy.
STRATEGIES = {
    "auto": DeviceStrategy("replicated"),
    "ddp": DeviceStrategy("replicated"),
    "ddp_find_unused_parameters_true": DeviceStrategy("replicated", finds_unused=True),
    "ddp_find_unused_parameters_false": DeviceStrategy("replicated"),
    "fsdp": DeviceStrategy("sharded", divides=True),
}
_DIVIDING = tuple(name for name, row in STRATEGIES.items() if row.divides)
_NO_DEEPSPEED = "it replaces the optimizer and the reduction of gradients, which switch with the elements here"


def _one_strategy(run: Mapping[str, Any]) -> str | None:
    if run["num_devices"] * run["num_nodes"] == 1:
        return "with one device"
    if STRATEGIES[run["strategy"]].divides:
        return None
    if run["action"] not in TRAINING:
        return f"on {run['action']}"
    same = f"with --model {run['model']}, which is trained in the same way by all but {' and '.join(_DIVIDING)}"
    return same if run["adapted"] else None


def _not_sharded(run: Mapping[str, Any]) -> str | None:
    if run["num_devices"] * run["num_nodes"] == 1:
        return "with one device"
    return idle_without("strategy", *_DIVIDING)(run)


@dataclass(frozen=True)
class DeviceOptions:
    """Devices and precision."""

    # fmt: off
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = option("auto", "type of device", resume="free")
    num_devices: int = option(1, "devices per node", at_least(1), aliases=("--gpu",), resume="global_batch",
        brief="devices per node")
    num_nodes: int = option(1, "nodes", at_least(1), aliases=("--nodes",), resume="global_batch")
    strategy: str = option("auto", "how several devices work together; fsdp: each holds a part of the frozen base (of "
        "all weights, for a plain model); the ddp kinds differ only for a plain model", resume="free",
        choices=tuple(STRATEGIES), idle=_one_strategy, refused={"deepspeed": _NO_DEEPSPEED})
    shard_size: int | None = option(None, "devices that hold one copy of the base together with fsdp; by default those "
        "of a node", at_least(2), resume="free", idle=_not_sharded)
    precision: Literal["64", "32", "16-mixed", "bf16-mixed", "16-true", "bf16-true"] = option("32",
        "floating-point precision; a -true kind also loads the base in it; 16 and bf16 are the -mixed kinds",
        spellings={"16": "16-mixed", "bf16": "bf16-mixed", "32-true": "32", "64-true": "64"},
        brief="32, bf16, bf16-true, 16, …")  # as in Lightning
    # fmt: on

    @property
    def world(self) -> int:
        """The number of processes: one for each device of each node."""
        return self.num_devices * self.num_nodes

    @property
    def divides(self) -> bool:
        """Whether each device holds a part of the base, if there are several."""
        return STRATEGIES[self.strategy].divides

    @property
    def shards(self) -> int | None:
        """The number of devices that hold one copy of the base together. None if each holds all of it."""
        if not self.divides or self.world == 1:
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
