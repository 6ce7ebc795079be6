"""The search inside any LightningModule, on PEFT's layers and on those of `hl.adapt`, which it chooses among alike. Its
choices are those inside Transformers' Trainer.
"""

from __future__ import annotations

import csv
import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer

import heterolora as hl
from heterolora.choosing import history
from heterolora.common.errors import UserError
from heterolora.elements.inside import space_of
from heterolora.elements.peft_space import peft_space
from heterolora.lightning import Reallocate
from heterolora.transformers import Reallocate as InTrainer
from tests.quick import some_slow
from tests.test_in_trainer import adapted_model, arguments, peft_model, rows
from tests.tiny import VOCABULARY, tiny_network
from tests.world import ROOT

STEPS = 12


class Module(pl.LightningModule):
    """A language model with AdamW and a linear schedule, as Transformers' Trainer has by default."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, **batch: Any) -> Any:
        return self.network(**batch)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self(**batch).loss

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / STEPS))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


MODELS = {"peft": peft_model, "adapt": adapted_model}


def fit(
    folder: Path, callback: Reallocate, resume: Path | None = None, count: int = 24, model: Any = "peft", **given: Any
) -> tuple[pl.Trainer, Module]:
    """`model`: one of `MODELS`, or a network."""
    usual = {"max_steps": STEPS, "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
             "enable_model_summary": False, "default_root_dir": folder, "enable_checkpointing": False}  # fmt: skip
    trainer = pl.Trainer(**{**usual, "callbacks": [callback], **given})
    module = Module(MODELS[model]() if isinstance(model, str) else model)
    trainer.fit(module, DataLoader(rows(count), batch_size=2), ckpt_path=resume, weights_only=True)
    return trainer, module


def weights(module: Module) -> dict[str, torch.Tensor]:
    """Those that the search switches."""
    parts = ("lora_", "low_rank.")
    return {name: value for name, value in module.network.state_dict().items() if any(part in name for part in parts)}


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


@pytest.mark.parametrize(
    "given",
    some_slow(
        [{}, {"units": "rank"}, {"schedule": "fixed", "every": 3, "batches": 2, "heuristic": "weight_gradient"}],
        quick=[{"units": "rank"}],
    ),
    ids=["shrink", "rank", "fixed"],
)
def test_the_choices_on_the_librarys_own_layers_are_those_on_peft(tmp_path: Path, given: dict[str, Any]) -> None:
    ours, theirs = (Reallocate(share=0.3, compact=False, **given) for _ in range(2))
    _, module = fit(tmp_path / "adapt", ours, model="adapt")
    _, of_peft = fit(tmp_path / "peft", theirs)
    assert [d.on for d in ours.search.history.decisions] == [d.on for d in theirs.search.history.decisions]
    for each, expected in zip(space_of(module.network), peft_space(of_peft.network), strict=True):
        assert torch.allclose(each.A, expected.A, atol=1e-5)
        assert torch.allclose(each.B, expected.B, atol=1e-5)


class Watch(pl.Callback):
    """Keeps the values of what the search switches, and the optimizer's state of it, after each step."""

    def __init__(self) -> None:
        self.after: list[dict[str, list[torch.Tensor]]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        state = trainer.optimizers[0].state
        self.after.append({
            each.element.key: [value.detach().clone() for parameter in (each.A, each.B)
                               for value in (parameter, *state.get(parameter, {}).values())]
            for each in space_of(pl_module)
        })  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("given", [{}, {"schedule": "fixed", "every": 2, "batches": 1}], ids=["shrink", "fixed"])
def test_what_is_off_keeps_its_weights_and_its_optimizer_state(
    tmp_path: Path, model: str, given: dict[str, Any]
) -> None:
    """Also through on and off and on again."""
    callback, watch = Reallocate(share=0.3, compact=False, **given), Watch()
    fit(tmp_path, callback, model=model, callbacks=[callback, watch])
    decisions, places = callback.search.history.decisions, callback.search.space.elements
    assert len(decisions) > 3
    for index, decision in enumerate(decisions):
        last = decisions[index + 1].step if index + 1 < len(decisions) else STEPS
        for place, on in zip(places, decision.on, strict=True):
            before = [watch.after[step][place.key] for step in range(max(decision.step - 1, 0), last)]
            moves = [not all(map(torch.equal, *pair)) for pair in itertools.pairwise(before)]
            assert all(moves) if on else not any(moves)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_ends_within_the_budget(tmp_path: Path, accumulate: int, model: str) -> None:
    callback = Reallocate(share=0.3)
    trainer, module = fit(tmp_path, callback, model=model, accumulate_grad_batches=accumulate, max_epochs=9)
    search = callback.search
    assert trainer.global_step == STEPS
    assert 0 < search.parameters_on <= 0.3 * search.whole
    assert sum(value.numel() for value in weights(module).values()) == search.parameters_on  # compact
    assert [d.on for d in history.read(tmp_path).decisions] == [d.on for d in search.history.decisions]


def test_every_decision_is_in_the_log(tmp_path: Path) -> None:
    """Also those between the steps that the trainer logs, which are every fiftieth."""
    callback, logger = Reallocate(share=0.3), pl.loggers.CSVLogger(tmp_path)
    fit(tmp_path, callback, logger=logger)
    decisions = callback.search.history.decisions
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        logged = {int(row["step"]): int(float(row["realloc/lora_on"])) for row in csv.DictReader(file)}
    assert logged == {decision.step: sum(decision.on) for decision in decisions}
    assert history.read(Path(logger.log_dir)).decisions == decisions


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("units", some_slow(["element", "rank"], quick=["rank"]))
def test_a_resumed_run_continues_bit_for_bit(tmp_path: Path, model: str, units: Any) -> None:
    """Every batch is the same one: Lightning does not continue a plain DataLoader at its position."""
    straight, again = (Reallocate(share=0.3, compact=False, units=units) for _ in range(2))
    saver = pl.callbacks.ModelCheckpoint(tmp_path, save_top_k=-1, filename="{step}")
    _, one = fit(tmp_path, straight, None, 2, model, callbacks=[straight, saver], enable_checkpointing=True)
    _, two = fit(tmp_path, again, tmp_path / "step=5.ckpt", 2, model)
    assert [d.on for d in again.search.history.decisions] == [d.on for d in straight.search.history.decisions]
    assert all(torch.equal(value, weights(two)[name]) for name, value in weights(one).items())


@pytest.mark.parametrize("units", ["element", "rank"])
def test_the_choice_is_an_adapter_of_peft(tmp_path: Path, units: Any) -> None:
    callback = Reallocate(share=0.3, units=units)
    _, module = fit(tmp_path, callback, model="adapt")
    batch = {"input_ids": rows(1)[0]["input_ids"][None]}
    with torch.no_grad():
        expected = module.network.eval()(**batch).logits
    hl.to_peft(module.network, "CAUSAL_LM").save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(tiny_network("llama", "causal_language_modeling"), tmp_path / "adapter")
    assert sum(element.parameters for element in peft_space(loaded).elements) == callback.search.parameters_on
    with torch.no_grad():
        assert torch.allclose(loaded.eval()(**batch).logits, expected, atol=1e-6)


def test_a_module_of_ones_own_without_transformers(tmp_path: Path) -> None:
    """A loss of its own, two networks of which one is adapted, and a head that is trained."""

    class Own(Module):
        def __init__(self) -> None:
            super().__init__(hl.adapt(torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(6))), rank=1))
            self.embedding, self.out = torch.nn.Embedding(VOCABULARY, 8), torch.nn.Linear(8, VOCABULARY)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            logits = self.out(self.network(self.embedding(batch["input_ids"])))
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())

    for given in ({}, {"schedule": "fixed", "every": 4, "loss": lambda module, batch: module.training_step(batch, 0)}):
        callback, module = Reallocate(share=0.5, **given), Own()
        trainer = pl.Trainer(max_steps=STEPS, accelerator="cpu", logger=False, enable_progress_bar=False,
                             enable_model_summary=False, default_root_dir=tmp_path, enable_checkpointing=False,
                             callbacks=[callback])  # fmt: skip
        trainer.fit(module, DataLoader(rows(), batch_size=2))
        assert len(space_of(module)) == 3


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
    for model in MODELS:
        callback = Reallocate(share=0.3, compact=False)
        trainer, module = fit(folder, callback, model=model, devices=2, strategy=strategy)
        assert callback.search.parameters_on <= 0.3 * callback.search.whole
        torch.save(weights(module), folder / f"{model}-{trainer.global_rank}.pt")


def on_two(folder: Path, strategy: str) -> subprocess.CompletedProcess[str]:
    script = folder / "run.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(folder), str(ROOT), strategy]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=500)


@pytest.mark.slow
def test_two_processes_end_with_equal_weights(tmp_path: Path) -> None:
    done = on_two(tmp_path, "ddp_find_unused_parameters_true")
    assert done.returncode == 0, done.stderr[-2000:]
    for model in MODELS:
        first, second = (torch.load(tmp_path / f"{model}-{rank}.pt") for rank in (0, 1))
        assert first
        assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.slow
def test_plain_ddp_is_refused_before_the_first_step(tmp_path: Path) -> None:
    done = on_two(tmp_path, "ddp")
    assert done.returncode != 0
    assert "Trainer(strategy='ddp_find_unused_parameters_true')" in done.stderr
