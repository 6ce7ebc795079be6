"""The program's own search and the callback of Transformers' Trainer: one model, one order of rows, one result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, Trainer

from heterolora.choosing import history
from heterolora.elements.peft_space import peft_space
from heterolora.transformers import Reallocate
from model.task.fine_tuning import FineTuning
from tests.test_in_trainer import arguments
from tests.world import World, run, text_folder, weights, write_lora

BUDGET = 700


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch):
    """The batches of the program's run in order, and the A of each module at its start."""
    batches: list[dict[str, Tensor]] = []
    starts: dict[str, Tensor] = {}
    step = FineTuning.training_step

    def watched(self: FineTuning, batch: Any, batch_idx: int) -> Tensor:
        for each in () if starts else self.space:
            starts[each.element.module] = each.A.detach().clone()
        batches.append({name: batch[name].clone() for name in ("input_ids", "attention_mask", "labels")})
        return step(self, batch, batch_idx)

    monkeypatch.setattr(FineTuning, "training_step", watched)
    return batches, starts


class InOrder(Trainer):
    """One recorded batch for each step, with the mean loss of the model."""

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


def test_the_numbers_are_equal(world: World, tmp_path: Path, recorded: Any) -> None:
    lora = write_lora(tmp_path / "lora.toml", "q_proj", "v_proj", "w1", "w2")
    data = ("wikitext2", "--dataset-saved-path", text_folder(tmp_path / "text"), "--batch-size", 2)
    model = ("train-dyrealloc", "opt_lora", *data, "--load", world.opt, "--lora-config", lora)
    place = ("--project-dir", tmp_path, "--project", "run", "--learning-rate", 1e-2, "--max-token-len", 16)
    assert run(*model, *place, "--budget-schedule", "shrink", "--budget-parameters", BUDGET) == 0

    batches, starts = recorded
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "fc1", "fc2"], task_type="CAUSAL_LM"
    )
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(world.opt), config)
    space = peft_space(adapted)
    with torch.no_grad():
        for each in space:
            each.A.copy_(starts[each.element.module])
    callback = Reallocate(parameters=BUDGET, compact=False)
    given = {"max_steps": len(batches), "per_device_train_batch_size": 1, "weight_decay": 0.0, "max_grad_norm": 0.0}
    given |= {"lr_scheduler_type": "constant", "remove_unused_columns": False, "label_names": ["labels"]}
    trainer = InOrder(
        adapted,
        arguments(tmp_path / "trainer", **given),
        train_dataset=batches,
        data_collator=lambda items: items[0],
        callbacks=[callback],
    )
    trainer.train()

    ours, theirs = history.read(tmp_path / "run"), callback.search.history
    assert len(ours.decisions) > 2
    in_program, in_trainer = list(starts), [element.module for element in space.elements]  # in two orders
    for one, other in zip(ours.decisions, theirs.decisions, strict=True):
        on, scores = (dict(zip(in_trainer, values, strict=True)) for values in (other.on, other.scores))
        assert dict(zip(in_program, one.on, strict=True)) == on
        assert dict(zip(in_program, one.scores, strict=True)) == pytest.approx(scores, abs=1e-5)
    saved = weights(tmp_path / "run" / "checkpoints" / "last.ckpt")
    for module, each in zip(in_trainer, space, strict=True):
        for name in ("A", "B"):
            value = saved[f"network.{module}.low_rank.{name}"]
            assert torch.allclose(value, getattr(each, name), atol=1e-5), (module, name)
