"""The search inside any LightningModule, on PEFT's layers. Its choices are those inside Transformers' Trainer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer

from heterolora.choosing import history
from heterolora.common.errors import UserError
from heterolora.lightning import Reallocate
from heterolora.transformers import Reallocate as InTrainer
from tests.test_in_trainer import arguments, peft_model, rows
from tests.world import ROOT

STEPS = 12


class Module(pl.LightningModule):
    """A language model with AdamW and a linear schedule, as Transformers' Trainer has by default."""

    def __init__(self) -> None:
        super().__init__()
        self.network = peft_model()

    def forward(self, **batch: Any) -> Any:
        return self.network(**batch)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self(**batch).loss

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / STEPS))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(
    folder: Path, callback: Reallocate, resume: Path | None = None, count: int = 24, **given: Any
) -> tuple[pl.Trainer, Module]:
    usual = {"max_steps": STEPS, "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
             "enable_model_summary": False, "default_root_dir": folder, "enable_checkpointing": False}  # fmt: skip
    trainer, module = pl.Trainer(**{**usual, "callbacks": [callback], **given}), Module()
    trainer.fit(module, DataLoader(rows(count), batch_size=2), ckpt_path=resume, weights_only=True)
    return trainer, module


def weights(module: Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in module.network.state_dict().items() if "lora_" in name}


@pytest.mark.parametrize("given", [{}, {"schedule": "fixed", "every": 3, "batches": 2, "heuristic": "grad_norm"}])
def test_the_choices_are_those_in_transformers_trainer(tmp_path: Path, given: dict[str, Any]) -> None:
    ours = Reallocate(share=0.3, compact=False, **given)
    _, module = fit(tmp_path / "lightning", ours)

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    theirs = InTrainer(share=0.3, compact=False, seed=0, **given)
    args = arguments(tmp_path / "trainer", weight_decay=0.0, max_grad_norm=0.0)
    trainer = InOrder(peft_model(), args, train_dataset=rows(), callbacks=[theirs])
    trainer.train()
    assert [d.on for d in ours.search.history.decisions] == [d.on for d in theirs.search.history.decisions]
    expected = {name: value for name, value in trainer.model.state_dict().items() if "lora_" in name}
    for name, value in weights(module).items():
        assert torch.allclose(value, expected[name], atol=1e-5), name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_ends_within_the_budget(tmp_path: Path, accumulate: int) -> None:
    callback = Reallocate(share=0.3)
    trainer, module = fit(tmp_path, callback, accumulate_grad_batches=accumulate, max_epochs=9)
    search = callback.search
    assert trainer.global_step == STEPS
    assert 0 < search.parameters_on <= 0.3 * search.whole
    assert sum(value.numel() for value in weights(module).values()) == search.parameters_on  # compact
    assert [d.on for d in history.read(tmp_path).decisions] == [d.on for d in search.history.decisions]


def test_a_resumed_run_continues_bit_for_bit(tmp_path: Path) -> None:
    """Every batch is the same one: Lightning does not continue a plain DataLoader at its position."""
    straight, again = Reallocate(share=0.3, compact=False), Reallocate(share=0.3, compact=False)
    saver = pl.callbacks.ModelCheckpoint(tmp_path, save_top_k=-1, filename="{step}")
    _, one = fit(tmp_path, straight, None, 2, callbacks=[straight, saver], enable_checkpointing=True)
    _, two = fit(tmp_path, again, tmp_path / "step=5.ckpt", 2)
    assert [d.on for d in again.search.history.decisions] == [d.on for d in straight.search.history.decisions]
    assert all(torch.equal(value, weights(two)[name]) for name, value in weights(one).items())


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy])
def test_sharded_strategies_are_refused(strategy: type) -> None:
    """A trainer with one of these needs GPUs, or a package, so that there is only its strategy here."""
    trainer = SimpleNamespace(strategy=strategy.__new__(strategy))
    with pytest.raises(UserError, match=f"not tested with {strategy.__name__}; use DDP or one device"):
        Reallocate(share=0.3).on_train_start(trainer, None)


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.test_in_lightning import on_two_processes
on_two_processes(Path(sys.argv[1]), sys.argv[3])
"""


def on_two_processes(folder: Path, strategy: str) -> None:
    callback = Reallocate(share=0.3, compact=False)
    trainer, module = fit(folder, callback, devices=2, strategy=strategy)
    assert callback.search.parameters_on <= 0.3 * callback.search.whole
    torch.save(weights(module), folder / f"{trainer.global_rank}.pt")


def on_two(folder: Path, strategy: str) -> subprocess.CompletedProcess[str]:
    script = folder / "run.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(folder), str(ROOT), strategy]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=500)


def test_two_processes_end_with_equal_weights(tmp_path: Path) -> None:
    done = on_two(tmp_path, "ddp_find_unused_parameters_true")
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_plain_ddp_is_refused_before_the_first_step(tmp_path: Path) -> None:
    done = on_two(tmp_path, "ddp")
    assert done.returncode != 0
    assert "Trainer(strategy='ddp_find_unused_parameters_true')" in done.stderr
