"""The form of the blocks, which shortcuts need, is found in the numbers of a forward pass, or is refused."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

import model.family as families
from heterolora.elements.family import Family
from heterolora.elements.found import family_of
from model.block_form import with_norms
from model.skeleton import skeleton
from tests.architectures import ARCHITECTURES, WITHOUT_FORM
from tests.mistakes import refusal


def found_in(model_type: str, **more: object) -> Family:
    architecture = ARCHITECTURES[model_type]
    network = architecture.network(**more)
    return with_norms(network, family_of(network, model_type), architecture.task)


def form_of(family: Family) -> tuple[object, ...]:
    pre_norm = family.pre_norm(None)
    return pre_norm, family.norm1, family.norm2, family.ends, family.starts(pre_norm), family.returns_tuple


@pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - WITHOUT_FORM.keys() - {"opt"}))
def test_the_numbers_tell_what_the_tables_say(name: str):
    found, table = found_in(name), families.for_model_type(name)
    assert found.found
    assert found.has_norms
    assert not found.has_paths
    assert table is None or form_of(found) == form_of(table)


def test_both_forms_of_one_architecture():
    for before in (True, False):
        found = found_in("opt", do_layer_norm_before=before)
        assert found.pre_norm(None) == before
        assert found.ends == ("self_attn.out_proj", "fc2")
    found = found_in("gpt_neox", use_parallel_residual=False)
    assert form_of(found) == form_of(families.get("gpt_neox"))


@pytest.mark.parametrize("name", WITHOUT_FORM)
def test_other_forms_are_refused_with_the_reason(name: str):
    said = refusal(found_in, name)
    assert f"a model of type '{name}' has no table" in said
    assert f"no form that shortcuts know: {WITHOUT_FORM[name]}; give --model lora, or see docs/own-model.md" in said


def test_the_copy_has_blocks_of_every_kind():
    """The first three blocks of DeepSeek-V3 have no experts, so two blocks would not tell about the others."""
    config = AutoConfig.for_model("deepseek_v3", num_hidden_layers=6, hidden_size=64, n_routed_experts=4, n_group=1,
                                  topk_group=1, num_experts_per_tok=2)  # fmt: skip
    network = skeleton(config, "causal_language_modeling")
    found = with_norms(network, family_of(network, "deepseek_v3"), "causal_language_modeling")
    assert found.ends == ("self_attn.o_proj", "mlp")
