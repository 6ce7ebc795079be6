"""The processes of a run, which torchrun, SLURM or Lightning has started."""

from __future__ import annotations

import os

from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from heterolora.common.errors import UserError
from options.devices import DeviceOptions


def cluster_environment() -> ClusterEnvironment | None:
    """How a process finds the others under SLURM. None: as Lightning finds out by itself.

    Lightning's own requeueing is off, because it saves in the middle of a step. In a job of one task, Lightning starts
    the other processes of the node.
    """
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return None
    return SLURMEnvironment(auto_requeue=False) if _tasks() > 1 else LightningEnvironment()


def check_processes(devices: DeviceOptions) -> None:
    """Raise UserError unless torchrun, SLURM or the user has started the processes that the options ask for.

    Some processes would wait for others that never start.
    """
    if TorchElasticEnvironment.detect():
        per_node = int(os.environ["LOCAL_WORLD_SIZE"])
        _check_number("torchrun", devices, int(os.environ["WORLD_SIZE"]) // per_node, per_node)
    elif SLURMEnvironment.detect() and (_tasks() > 1 or devices.num_nodes > 1):
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        if "SLURM_STEP_ID" not in os.environ:
            raise UserError(
                f"the SLURM job has {_tasks()} tasks, and srun has not started them", "put srun before python"
            )
        if "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise UserError(
                f"the SLURM job has --ntasks={_tasks()}", f"give --ntasks-per-node={_tasks() // nodes} instead"
            )
        _check_number("SLURM", devices, nodes, int(os.environ["SLURM_NTASKS_PER_NODE"]))
    elif devices.num_nodes > 1 and not {"MASTER_ADDR", "NODE_RANK"} <= os.environ.keys():
        raise UserError(
            f"--num-nodes {devices.num_nodes}, and nothing has started the other nodes",
            "start it with torchrun or srun, see docs/multi-gpu.md",
        )
    elif devices.num_nodes * devices.num_devices == 1:
        _check_alone()


def _check_alone() -> None:
    """Raise UserError if a variable says that this process, the only one, is not the first: it would write nothing."""
    stray = [name for name in ("RANK", "LOCAL_RANK", "NODE_RANK") if os.environ.get(name, "0") != "0"]
    if stray:
        found = f"the environment has {stray[0]}={os.environ[stray[0]]}, and this run has one process"
        for name in stray:
            del os.environ[name]  # it also says that another process prints the errors
        raise UserError(found, f"unset {' '.join(stray)}, or give --num-devices")


def _tasks() -> int:
    return int(os.environ["SLURM_NTASKS"])


def _check_number(launcher: str, devices: DeviceOptions, nodes: int, per_node: int) -> None:
    if (devices.num_nodes, devices.num_devices) != (nodes, per_node):
        raise UserError(
            f"--num-nodes {devices.num_nodes} --num-devices {devices.num_devices}, but {launcher} has started "
            f"{per_node} processes on each of {nodes} nodes",
            f"give --num-nodes {nodes} --num-devices {per_node}",
        )
