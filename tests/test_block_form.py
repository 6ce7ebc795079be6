"""The form of the blocks, which shortcuts need, is found in the numbers of a forward pass, or is refused."""

from __future__ import annotations

import pytest

import model.family as families
from heterolora.elements.family import Family
from heterolora.elements.found import family_of
from model.block_form import with_norms
from tests.architectures import ARCHITECTURES, WITHOUT_FORM
from tests.mistakes import refusal


def found_in(model_type: str, **more: object) -> Family:
    architecture = ARCHITECTURES[model_type]
    network = architecture.network(**more)
    return with_norms(family_of(network, model_type), network.config, architecture.task)


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
