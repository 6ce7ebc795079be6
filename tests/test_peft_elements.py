"""PEFT's LoRA layers as elements, in every variant: on and off, scores, training, and the smaller adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

import heterolora as hl
from heterolora.common.errors import UserError
from heterolora.elements.inside import units_of
from heterolora.elements.peft_space import peft_space
from tests.architectures import ARCHITECTURES
from tests.tiny import VOCABULARY, tiny_network

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]

#: Variant -> the keys of its `LoraConfig`.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "bias": {"lora_bias": True, "target_modules": ["c_proj", "c_fc"]},
    "conv1d": {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    "embedding": {"target_modules": ["q_proj", "v_proj", "embed_tokens"]},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "several": {},
    "experts": {"target_modules": ["q_proj", "v_proj"], "target_parameters": EXPERTS},
    "experts_alone": {"target_modules": [], "target_parameters": EXPERTS},
    "4bit": {},
    "8bit": {},
}
#: Those in which every tensor belongs to a rank. On a CPU, bitsandbytes rounds the inputs of 4-bit layers to bfloat16:
#: outputs are not equal to 1e-6 where sums have another order, see `tests/test_in_trainer_quantized.py`.
BY_RANK = ("plain", "rslora", "conv1d", "embedding", "modules_to_save", "several", "experts", "experts_alone", "8bit")


@pytest.fixture
def base(tmp_path: Path) -> Callable[[str], PreTrainedModel]:
    """Make the base of a variant, each time the same."""

    def made(variant: str) -> PreTrainedModel:
        if variant in ("conv1d", "bias"):
            return ARCHITECTURES["gpt2"].network()
        if variant.startswith("experts"):
            return ARCHITECTURES["qwen3_moe"].network()
        if variant not in ("4bit", "8bit"):
            return tiny_network("llama", "causal_language_modeling")
        folder = tmp_path / "base"
        if not folder.is_dir():
            # bitsandbytes quantises 64 inputs at a time
            tiny_network("llama", "causal_language_modeling", hidden_size=64, intermediate_size=128).save_pretrained(
                folder
            )
        given = BitsAndBytesConfig(**{f"load_in_{variant}": True}, bnb_4bit_quant_type="nf4")
        return AutoModelForCausalLM.from_pretrained(folder, quantization_config=given, device_map="cpu")

    return made


def adapted(network: PreTrainedModel, variant: str) -> peft.PeftModel:
    """With trained values in A and B, so that every element matters."""
    torch.manual_seed(0)
    given = {"r": 2, "lora_alpha": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **VARIANTS[variant]}
    model = peft.get_peft_model(network, peft.LoraConfig(**given))
    if variant == "several":
        model.add_adapter("other", peft.LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for each in peft_space(model):
            each.B.normal_(0, 0.1)
    return model.eval()


def batch() -> dict[str, Tensor]:
    ids = torch.randint(3, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(**batch()).logits


def snapshot(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def keys(model: Any) -> list[str]:
    return [element.key for element in peft_space(model).elements]


@pytest.mark.parametrize("variant", VARIANTS)
class TestVariants:
    def test_off_is_the_base(self, base: Any, variant: str) -> None:
        model = adapted(base(variant), variant)
        on = logits(model)
        space = peft_space(model)
        off = set(keys(model)[::2])
        assert len(set(keys(model))) == len(keys(model))
        space.switch(set(keys(model)) - off)
        assert not torch.equal(logits(model), on)
        space.switch(set())
        found = logits(model)
        if variant == "embedding":  # which is no element, and stays
            return
        with model.disable_adapter():
            assert torch.equal(found, logits(model))
        space.switch(set(keys(model)))
        assert torch.equal(logits(model), on)

    def test_the_costs_are_those_of_peft(self, base: Any, variant: str) -> None:
        model = adapted(base(variant), variant)
        trained = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name and "default" in name
                      and "embedding" not in name)  # fmt: skip
        assert sum(element.parameters for element in peft_space(model).elements) == trained

    def test_scoring_leaves_it_as_it_is(self, base: Any, variant: str) -> None:
        model = adapted(base(variant), variant)
        logits(model)  # bitsandbytes packs its weights for the CPU at the first evaluation
        before, required = snapshot(model), {n: p.requires_grad for n, p in model.named_parameters()}
        scores = hl.score(model, [batch()], "snip")
        assert {item.element.key for item in scores.scored} == set(keys(model))
        assert all(item.score > 0 for item in scores.scored)
        assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
        assert required == {n: p.requires_grad for n, p in model.named_parameters()}

    def test_what_is_off_does_not_move(self, base: Any, variant: str) -> None:
        """AdamW with momentum and weight decay, from steps in which everything was on."""
        model = adapted(base(variant), variant).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)

        def step() -> None:
            model(**batch()).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        step()
        space = peft_space(model)
        off = {each.element.key for each in tuple(space)[::2]}
        space.switch(set(keys(model)) - off)
        before = {each.element.key: [p.detach().clone() for p in each.tensors] for each in space}
        others = {n: v for n, v in snapshot(model).items() if "modules_to_save" in n or ".other." in n}
        step()
        for each in space:
            same = [torch.equal(*pair) for pair in zip(before[each.element.key], each.tensors, strict=True)]
            assert all(same) if each.element.key in off else not any(same[:2])
        now = snapshot(model)
        assert all(torch.equal(value, now[name]) != ("modules_to_save.default" in name)
                   for name, value in others.items())  # fmt: skip

    def test_the_compact_adapter_is_equal(self, base: Any, variant: str, tmp_path: Path) -> None:
        model = adapted(base(variant), variant)
        if variant == "several":
            model.delete_adapter("other")
        space = peft_space(model)
        space.switch({key for index, key in enumerate(keys(model)) if index % 3})
        size, expected = sum(each.element.parameters for each in space.on()), logits(model)
        on = {each.element.module for each in space.on()}
        hl.compact(model)
        assert torch.equal(logits(model), expected)
        assert {element.module for element in peft_space(model).elements} == on
        model.save_pretrained(tmp_path / "adapter")
        loaded = peft.PeftModel.from_pretrained(base(variant), tmp_path / "adapter")
        assert sum(element.parameters for element in peft_space(loaded).elements) == size
        torch.testing.assert_close(logits(loaded), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("variant", BY_RANK)
class TestRanks:
    def test_a_rank_that_is_off_is_nothing(self, base: Any, variant: str, tmp_path: Path) -> None:
        """Turned off, trained on, and removed: A and B have zeros there, and the smaller adapter computes the same."""
        model = adapted(base(variant), variant)
        if variant == "several":
            model.delete_adapter("other")
        units = units_of(model, None, "rank")
        elements = peft_space(model).elements
        assert sum(unit.parameters for unit in units.elements) == sum(each.parameters for each in elements)
        names = [unit.key for unit in units.elements]
        assert len(set(names)) == 2 * len(elements)
        on = {name for index, name in enumerate(names) if index % 4 in (1, 2, 3)} - set(names[-2:])
        units.switch(on)
        model.train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for _ in range(2):
            model(**batch()).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        for unit in units:
            assert bool(unit.A.any()) == bool(unit.B.any()) == (unit.element.key in on)
        size, expected = sum(unit.parameters for unit in units.elements if unit.key in on), logits(model)
        assert [unit.enabled for unit in units_of(model, None, "rank")] == [unit.enabled for unit in units]
        hl.compact(model)
        torch.testing.assert_close(logits(model), expected, atol=1e-6, rtol=0)
        model.save_pretrained(tmp_path / "adapter")
        loaded = peft.PeftModel.from_pretrained(base(variant), tmp_path / "adapter")
        found = peft_space(loaded).elements
        assert {element.rank for element in found} == {1, 2}
        assert sum(element.parameters for element in found) == size
        torch.testing.assert_close(logits(loaded), expected, atol=1e-6, rtol=0)


def test_ranks_of_dora_are_refused() -> None:
    model = adapted(tiny_network("llama", "causal_language_modeling"), "dora")
    with pytest.raises(UserError, match=r"more than A and B, such as the magnitude of DoRA; give units='element'"):
        units_of(model, None, "rank")


def test_a_start_that_changes_the_base_is_refused() -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa")
    model = peft.get_peft_model(tiny_network("llama", "causal_language_modeling"), config)
    with pytest.raises(UserError, match="init_lora_weights is 'pissa', which changes the base"):
        peft_space(model)


def test_the_inputs_of_experts_cannot_be_seen(base: Any) -> None:
    model = adapted(base("experts"), "experts")
    before = snapshot(model)
    with pytest.raises(UserError, match="weights of experts, whose inputs a heuristic cannot see; use grad_norm, snip"):
        hl.score(model, [batch()], "weight_grad_norm")
    assert all(torch.equal(before[name], value) for name, value in snapshot(model).items())


def test_a_layer_with_another_adapter_cannot_be_removed() -> None:
    model = adapted(tiny_network("llama", "causal_language_modeling"), "several")
    space = peft_space(model, "default")
    space.switch({element.key for element in space.elements if "q_proj" not in element.name})
    with pytest.raises(UserError, match=r"q_proj has several adapters \(default, other\); delete the others before"):
        hl.compact(model, "default")
