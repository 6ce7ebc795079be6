"""What follows from an element: its names, its sizes, and the checks of many."""

from __future__ import annotations

from dataclasses import replace

from heterolora.elements.element import OUTSIDE, Element, Place, Settings, check_outside, check_ranks
from tests.mistakes import refusal

LINEAR = Element(2, "q_proj", "lora", "layers.2.self_attn.q_proj", 8, 4, Settings(rank=3, alpha=6.0))
EXPERTS = replace(LINEAR, name="experts.down_proj", module="layers.2.mlp.experts.down_proj", experts=5)
EMBEDDING = replace(LINEAR, layer=OUTSIDE["embed_tokens"], name="embed_tokens", module="embed_tokens")
OUTPUT = replace(LINEAR, layer=OUTSIDE["lm_head"], name="lm_head", module="lm_head")


def test_places_have_a_block_or_are_outside() -> None:
    places = (Place(0, "w1"), Place(12, "w1"), EMBEDDING, OUTPUT)
    assert [place.key for place in places] == ["layer_0.w1", "layer_12.w1", "outside.embed_tokens", "outside.lm_head"]
    assert [place.block for place in places] == ["0", "12", "outside", "outside"]
    assert [place.after(16) for place in places] == [0, 12, 0, 16]
    assert [element.is_embedding for element in (LINEAR, EXPERTS, EMBEDDING, OUTPUT)] == [False, False, True, False]


def test_experts_share_a_module_and_a_parameter() -> None:
    assert (LINEAR.host, LINEAR.weight) == ("layers.2.self_attn.q_proj", "layers.2.self_attn.q_proj.weight")
    assert (EXPERTS.host, EXPERTS.weight) == ("layers.2.mlp.experts", "layers.2.mlp.experts.down_proj")
    assert (LINEAR.parameters, EXPERTS.parameters) == (3 * (8 + 4), 5 * 3 * (8 + 4))


def test_a_single_rank_keeps_the_scaling() -> None:
    for settings in (LINEAR.settings, replace(LINEAR.settings, use_rslora=True)):
        single = replace(LINEAR, settings=settings).single(1)
        assert (single.name, single.rank, single.settings.scaling) == ("q_proj.1", 1, settings.scaling)
        assert single.parameters == 8 + 4


def test_a_rank_may_be_that_of_a_full_matrix() -> None:
    full = replace(LINEAR, settings=replace(LINEAR.settings, rank=4))
    check_ranks([LINEAR, full])
    higher = replace(full, settings=replace(full.settings, rank=5))
    expected = "the rank of layer_2.q_proj is 5, but its widths are 8 and 4; expected at most 4"
    assert refusal(check_ranks, [full, higher]) == expected


def test_some_places_outside_may_be_possible() -> None:
    check_outside([LINEAR, OUTPUT], ("lm_head",), "it cannot merge", "leave it out")
    said = refusal(check_outside, [LINEAR, OUTPUT, EMBEDDING], ("lm_head",), "it cannot merge", "leave it out")
    assert said == "it cannot merge embed_tokens, which is outside of the blocks; leave it out"
