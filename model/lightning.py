"""All that this program uses of Lightning's private parts. `python-requirements.txt` admits only the minor release that
was tested, because any other one may change them.

Tested with pytorch-lightning 2.6.0 and 2.6.6:

- of `fit_loop.epoch_loop`: `_should_accumulate`, `_num_ready_batches_reached`, `_should_check_val_fx`,
  `_batches_that_stepped`; of `fit_loop`: `_data_fetcher`;
- of a module: `_ddp_params_and_buffers_to_ignore`;
- of a strategy: `_lightning_module`, `_configure_launcher`, `_launcher`, and the function `_sync_module_states`;
- of a launcher: `_SubprocessScriptLauncher`, `_call_children_scripts`, `_set_num_threads_if_needed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import pytorch_lightning as pl
from lightning_fabric.utilities.distributed import _set_num_threads_if_needed
from pytorch_lightning.overrides.distributed import _sync_module_states
from pytorch_lightning.strategies import Strategy
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import nn

if TYPE_CHECKING:
    from dataset.batching.module import TextDataModule


class Connected(Protocol):
    """What Lightning sets on a trainer without declaring it."""

    callbacks: list[pl.Callback]
    datamodule: TextDataModule
    log_every_n_steps: int


def connected(trainer: pl.Trainer) -> Connected:
    return cast(Connected, trainer)


def window_ends(trainer: pl.Trainer) -> bool:
    """Return whether the batch that is trained completes its accumulation window, so that the optimizer steps."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def epoch_ends(trainer: pl.Trainer) -> bool:
    """Return whether the batch that is trained is the last one of its epoch."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def validation_follows(trainer: pl.Trainer) -> bool:
    """Return whether Lightning validates after the batch that is trained."""
    loop = trainer.fit_loop
    return loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def log_optimizer_steps(trainer: pl.Trainer) -> None:
    """Make loggers count optimizer steps. Lightning's own count is one too low after some resumes."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def leave_out_of_broadcasts(module: Any, names: Sequence[str]) -> None:
    """Keep DDP from broadcasting the parameters of a LightningModule with these names when it starts."""
    module._ddp_params_and_buffers_to_ignore = names


def make_equal(module: nn.Module) -> None:
    """Give all processes the weights of the first one, as DDP does when it starts."""
    _sync_module_states(module)


class Resident(Strategy):
    """A strategy that leaves the network on its device when a `fit`, `validate` or `test` ends.

    Lightning would move it to the CPU each time, and back for the next one. That takes seconds, and memory: on the host
    for all shares of a sharded base, and twice on the GPU for a base in 8 bits, whose layers keep a second reference.
    """

    def teardown(self) -> None:
        network, self._lightning_module = self._lightning_module, None
        try:
            super().teardown()
        finally:
            self._lightning_module = network


class ScriptLauncher(_SubprocessScriptLauncher):
    """Lightning's launcher, which starts the program again for each other process of a node."""

    def start(self) -> None:
        """Start the processes, which are then in `procs`."""
        self._call_children_scripts()

    def limit_threads(self) -> None:
        """Share the CPU's cores among the processes of a node."""
        _set_num_threads_if_needed(num_processes=self.num_processes)


class WithLauncher:
    """A strategy whose processes are started by a launcher of the class `launches`."""

    launches: type[ScriptLauncher]
    _launcher: Any  # the strategies of the trainer and of Fabric declare different types
    cluster_environment: Any
    num_processes: int
    num_nodes: int

    def _configure_launcher(self) -> None:
        self._launcher = self.launches(self.cluster_environment, self.num_processes, self.num_nodes)
