"""The search inside TRL's DPOTrainer, which turns the adapter off during each pass of its reference."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

import heterolora as hl
from heterolora.common.errors import UserError
from heterolora.elements.peft_space import peft_space
from heterolora.transformers import Reallocate
from tests.quick import some_slow
from tests.test_in_trainer import Watch
from tests.world import ROOT

TOY = ROOT / "model" / "toy_opt"
LORA = {"r": 2, "lora_alpha": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
PAIRS = [("hot", "cold"), ("big", "small"), ("hot", "small"), ("big", "cold")]  # of the preferred word and another


class Reference(DPOTrainer):
    """Keeps which layers are on before and after each loss."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        self.seen: list[tuple[set[str], set[str]]] = []

    def compute_loss(self, model: Any, *args: Any, **given: Any) -> Any:
        before = on(model)
        loss = super().compute_loss(model, *args, **given)
        self.seen.append((before, on(model)))
        return loss


def on(model: Any) -> set[str]:
    return {each.element.key for each in peft_space(model, "default").on()}


def trainer(folder: Path, callback: Reallocate, model: Any = None, **given: Any) -> DPOTrainer:
    rows = [{"prompt": "The tea was", "chosen": f" {a}.", "rejected": f" {b}."} for a, b in PAIRS]
    args = DPOConfig(str(folder), max_steps=8, per_device_train_batch_size=2, learning_rate=5e-2, weight_decay=0.1,
                     logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, bf16=False,
                     disable_tqdm=True, **given)  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(TOY)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    config = peft.LoraConfig(**LORA) if model is None else None
    watch, model = Watch(), AutoModelForCausalLM.from_pretrained(TOY) if model is None else model
    made = Reference(model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
                     peft_config=config, callbacks=[callback, watch])  # fmt: skip
    made.watch = watch
    return made


@pytest.mark.parametrize("checkpointing", some_slow([False, True], quick=[True]))
def test_the_passes_of_the_reference_change_nothing(tmp_path: Path, checkpointing: bool) -> None:
    callback = Reallocate(share=0.3, compact=False)
    made = trainer(tmp_path, callback, gradient_checkpointing=checkpointing)
    made.train()
    search, after = callback.search, made.watch.after
    assert 0 < search.parameters_on <= 0.3 * search.whole
    assert all(before == later for before, later in made.seen)
    decisions = search.history.decisions
    for decision in decisions:
        off = [place.module for place, is_on in zip(search.space.elements, decision.on, strict=True) if not is_on]
        names = [name for name in after[0] if any(f".{module}." in name for module in off)]
        for values, later in zip(after[decision.step - 1 :], after[decision.step :], strict=False):
            assert all(torch.equal(values[name], later[name]) for name in names)
    assert len(made.seen) == 8
    assert made.seen[-1][0] == search.on != made.seen[0][0]
    # The loss with nothing on is that of a policy that is the reference: log 2.
    size, losses = search.parameters_on, [row["loss"] for row in made.state.log_history if "loss" in row]
    hl.compact(made.model)
    made.save_model(str(tmp_path / "adapter"))
    search.space.switch(set())
    batch = made._prepare_inputs(next(iter(made.get_train_dataloader())))
    made.model.eval()  # no dropout
    with torch.no_grad():
        assert losses[-1] < made.compute_loss(made.model, batch).item() == pytest.approx(math.log(2), abs=1e-4)
    loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(TOY), tmp_path / "adapter")
    assert sum(each.parameters for each in peft_space(loaded).elements) == size


def test_an_adapter_as_the_reference_is_refused(tmp_path: Path) -> None:
    """TRL activates it and the trained one in turn, for all layers."""
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(TOY), peft.LoraConfig(**LORA))
    made = trainer(tmp_path, Reallocate(share=0.3), model)
    with pytest.raises(UserError, match="give the trainer the base and peft_config"):
        made.train()
