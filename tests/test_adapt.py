"""What a network becomes: plan, search space, what trains, dtypes, parameter counts."""

from __future__ import annotations

import copy
import io
import json

import pytest
import torch
from rich.console import Console
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from heterolora.common.errors import UserError
from heterolora.elements import config
from heterolora.elements.adapt import heads, placement_of
from heterolora.elements.element import PROJECTIONS, Kind
from model import family
from model.load import enable_gradient_checkpointing
from model.parameters import count, render
from model.skeleton import skeleton
from tests.adapted import CASES, VARIANTS, adapted, gradients, lora_config, put_into, shortcut_config
from tests.tiny import tiny_batch, tiny_network


def parse(kind: Kind, **tables: object) -> config.ElementConfig:
    return config.parse_config(tables, kind)


OPT = tiny_network("opt")
SMALL = {"r": 2, "lora_alpha": 4}


def test_a_plan_lists_every_element_by_block_then_kind():
    planned = placement_of(OPT, family.get("opt"), lora_config(), shortcut_config())
    lora = ("q_proj", "k_proj", "v_proj", "o_proj", "w1", "w2")
    assert [(item.layer, item.name) for item in planned.elements] == [
        *((0, name) for name in (*lora, "residual1", "residual2", "shortcut1")),
        *((1, name) for name in (*lora, "residual1", "residual2", "shortcut1", "shortcut2")),
    ]
    assert {item.kind for item in planned.elements[:6]} == {"lora"}
    assert planned.notes == ()


def test_plans_are_equal_when_configurations_say_the_same_of_the_model():
    network = parse("lora", granularity="network", default={"r": 0}, all_layers={"fc1": SMALL, "gate": SMALL})
    layer = {f"model_layer_{i}": {"w1": SMALL, "v_proj": {"r": 0}} for i in (0, 1)}
    layer = parse("lora", granularity="layer", default={"r": 0}, **layer)
    opt = family.get("opt")
    assert network != layer
    assert placement_of(OPT, opt, network) == placement_of(OPT, opt, layer)
    assert placement_of(OPT, opt, network) != placement_of(tiny_network("opt", num_hidden_layers=3), opt, network)
    renormalized = placement_of(OPT, opt, None, shortcut_config(renormalize=True))
    assert placement_of(OPT, opt, None, shortcut_config()) != renormalized


def test_a_name_that_the_family_lacks_is_ignored_with_a_note():
    lora = parse("lora", granularity="network", all_layers={"gate_proj": SMALL, "q_proj": SMALL})
    planned = placement_of(OPT, family.get("opt"), lora)
    assert [item.name for item in planned.elements] == ["q_proj", "q_proj"]
    assert planned.notes == ("lora configuration: gate is ignored: opt has none",)
    assert placement_of(tiny_network("gemma"), family.get("gemma"), lora).notes == ()


@pytest.mark.parametrize(
    ("kind", "table"),
    [("lora", {"model_layer_2": {"q_proj": SMALL}}), ("shortcut", {"model_layer_2": {"residual1": {"r": 0}}})],
)
def test_a_block_beyond_the_model_is_refused_before_weights_load(kind, table):
    found = parse(kind, granularity="layer", **table)
    with pytest.raises(UserError, match=r"\[model_layer_2\.\w+\] is beyond the model; it has 2 blocks, 0 to 1"):
        placement_of(OPT, family.get("opt"), *((found,) if kind == "lora" else (None, found)))


def test_a_table_of_another_architecture_is_refused_before_weights_load():
    with pytest.raises(UserError, match="the family 'gemma' does not fit a model of type 'gemma2'"):
        placement_of(skeleton(AutoConfig.for_model("gemma2"), "classification"), family.get("gemma"), lora_config())


@pytest.mark.parametrize(
    ("name", "key", "value"), [("opt", "layerdrop", 0.1), ("roberta", "chunk_size_feed_forward", 4)]
)
def test_shortcuts_refuse_blocks_that_run_in_part(name, key, value):
    network = tiny_network(name)
    setattr(network.config, key, value)
    assert placement_of(network, family.get(name), lora_config()).elements
    with pytest.raises(UserError, match=f"shortcuts do not work with {key} = {value}"):
        placement_of(network, family.get(name), lora_config(), shortcut_config())


# --- the adapted network


@pytest.mark.parametrize(("variant", "task"), CASES)
def test_elements_and_a_classification_head_train_and_nothing_else(variant, task):
    model = adapted(variant, task, lora_config(), shortcut_config())
    trained = {id(p) for p in model.network.parameters() if p.requires_grad}
    expected = {id(p) for e in model.space for p in e.parameters()}
    head = list(heads(model.network))
    assert len(head) == (task == "classification")
    for module in head:
        expected |= {id(p) for p in module.parameters()}
    assert trained == expected
    if task != "classification":
        assert not any(p.requires_grad for p in model.network.get_output_embeddings().parameters())


@pytest.mark.parametrize(("variant", "task"), CASES)
def test_elements_bear_the_librarys_own_paths(variant, task):
    model = adapted(variant, task, lora_config(), shortcut_config())
    name, keys = VARIANTS[variant]
    library = dict(tiny_network(name, task, **keys).named_modules())
    for low_rank in model.space.of_kind("lora"):
        linear = library[low_rank.element.module]
        assert (low_rank.element.in_features, low_rank.element.out_features) == (
            linear.in_features,
            linear.out_features,
        )
        assert low_rank.element.parameters == 3 * (linear.in_features + linear.out_features)
    for low_rank in model.space.of_kind("shortcut"):
        assert library[low_rank.element.module] is not None
        assert low_rank.element.module.split(".")[-1] == str(low_rank.element.layer)
    assert len({low_rank.element.key for low_rank in model.space}) == len(model.space)
    assert [type(block) for block in model.space.blocks] == [
        type(library[e.element.module]) for e in model.space.of_kind("shortcut") if e.element.name == "residual1"
    ]


def test_the_frozen_base_keeps_its_weights():
    model = adapted("opt-pre", "classification", lora_config(), shortcut_config())
    state = {key.replace(".base.", "."): value for key, value in model.network.state_dict().items()}
    elements = {key for key in state if "low_rank" in key or "shortcuts" in key}
    assert state.keys() - elements == model.pretrained.keys()
    for key, value in model.pretrained.items():
        assert torch.equal(state[key], value), key


def test_ranks_differ_from_place_to_place():
    lora = parse(
        "lora",
        granularity="layer",
        default={"r": 2, "lora_alpha": 6, "lora_dropout": 0.1},
        model_layer_0={"q_proj": {"r": 5}, "w2": {"disable_adapter": True}},
        model_layer_1={"k_proj": {"r": 0}, "out_proj": {"lora_alpha": 7, "use_rslora": True, "lora_dropout": 0.3}},
    )
    model = adapted("opt-pre", lora=lora)
    found = {e.element.key: (e.element.rank, e.element.settings.alpha, e.element.settings.dropout) for e in model.space}
    assert found["layer_0.q_proj"] == (5, 6.0, 0.1)
    assert found["layer_1.q_proj"] == (2, 6.0, 0.1)
    assert found["layer_1.o_proj"] == (2, 7.0, 0.3)
    assert {"layer_0.w2", "layer_1.k_proj"} & found.keys() == set()
    scalings = {e.element.key: e.scaling for e in model.space}
    assert scalings["layer_1.o_proj"] == pytest.approx(7 / 2**0.5)
    assert scalings["layer_0.q_proj"] == pytest.approx(6 / 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_bases_of_other_dtypes(variant, dtype):
    name, keys = VARIANTS[variant]
    network, batch = tiny_network(name, **keys).to(dtype), tiny_batch()
    plain = network(**batch).logits
    space = put_into(network, family.get(name), lora_config(), shortcut_config())
    for parameter in network.parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else dtype)
    network, space = copy.deepcopy((network, space))  # the head's cast must come along
    logits = network(**batch).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, plain.float(), rtol=0.02, atol=0.02)
    with torch.no_grad():
        for low_rank in space:
            nn.init.normal_(low_rank.B, std=0.1)
    network(**batch).logits.sum().backward()
    assert len(gradients(space)) == 2 * len(space)
    assert all(gradient.isfinite().all() for gradient in gradients(space).values())
    assert all(p.grad.isfinite().all() for head in heads(network) for p in head.parameters())


@pytest.mark.parametrize("variant", ["opt-pre", "roberta"])
def test_mixed_precision_trains_everything(variant):
    model, batch = adapted(variant, "classification", lora_config(), shortcut_config()).train_b(std=0.1), tiny_batch()
    exact = model.network(**batch).logits
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.network(**batch).logits
    torch.testing.assert_close(logits.float(), exact, rtol=0.1, atol=0.1)
    logits.float().square().sum().backward()
    assert len(gradients(model.space)) == 2 * len(model.space)
    assert all(gradient.dtype == torch.float32 for gradient in gradients(model.space).values())


def test_elements_are_made_where_the_base_is():
    network = tiny_network("opt").to("meta")
    space = put_into(network, family.get("opt"), lora_config(), shortcut_config())
    assert {p.device.type for e in space for p in e.parameters()} == {"meta"}


def test_the_seed_decides_the_start():
    def start(seed: int) -> list[torch.Tensor]:
        network = tiny_network("opt")
        torch.manual_seed(seed)
        return [e.A for e in put_into(network, family.get("opt"), lora_config(), shortcut_config())]

    assert all(map(torch.equal, start(1), start(1)))
    assert not any(map(torch.equal, start(1), start(2)))


@pytest.mark.parametrize("kind", ["plain", "lora"])
def test_gradient_checkpointing_without_shortcuts(kind):
    def run(checkpointing: bool) -> dict[str, torch.Tensor]:
        network, space = tiny_network("opt"), None
        if kind == "lora":
            torch.manual_seed(0)
            space = put_into(network, family.get("opt"), lora_config())
        if checkpointing:
            enable_gradient_checkpointing(network, space)
        network.train()
        network(**tiny_batch()).logits.square().sum().backward()
        return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}

    expected, found = run(False), run(True)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_gradient_checkpointing_spares_the_blocks_activations():
    def saved(checkpointing: bool) -> int:
        model = adapted("opt-pre", "classification", lora_config(), shortcut_config())
        if checkpointing:
            enable_gradient_checkpointing(model.network, model.space)
        model.network.train()
        sizes = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.network(**tiny_batch(rows=8, length=32)).logits.sum()
        return sum(sizes)

    assert saved(True) < saved(False) / 4


# --- the parameter table


def test_parameters_are_counted_by_kind():
    lora = parse("lora", granularity="network", default={"r": 0}, all_layers={"q_proj": SMALL, "w2": SMALL})
    model = adapted("opt-pre", "classification", lora, shortcut_config())
    switched = [e for e in model.space if e.element.name == "residual1"]
    switched[0].switch(False)
    table = count(model.network, model.space)
    rows = {row.name: row for row in table.rows}
    assert list(rows) == ["q_proj", "w2", "residual1", "residual2", "shortcut1", "shortcut2", "head", "base"]
    assert rows["q_proj"].total == rows["q_proj"].trainable == 2 * 2 * (32 + 32)
    assert rows["w2"].total == 2 * 2 * (64 + 32)
    assert (rows["residual1"].total, rows["residual1"].trainable) == (2 * 2 * 64, 2 * 64)
    assert (rows["residual1"].on, rows["residual1"].off, rows["residual1"].ranks) == (1, 1, (2,))
    assert (rows["shortcut2"].on, rows["shortcut2"].total) == (1, 2 * 64)
    assert rows["head"].total == rows["head"].trainable == 3 * 32
    assert rows["base"].trainable == 0
    plain = AutoModelForSequenceClassification.from_config(OPT.config)
    assert rows["base"].total == sum(p.numel() for p in plain.parameters()) - 3 * 32
    assert table.total == sum(p.numel() for p in model.network.parameters())
    assert table.trainable == sum(p.numel() for p in model.network.parameters() if p.requires_grad)


def test_a_plain_network_trains_its_base():
    table = count(tiny_network("gemma", "causal_language_modeling"))
    assert [row.kind for row in table.rows] == ["base"]
    assert table.trainable == table.total > 0


def test_the_table_is_shown_and_saved():
    model = adapted("gemma", "classification", lora_config(), shortcut_config())
    table = count(model.network, model.space)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render(table))
    text = console.export_text()
    for name in (*PROJECTIONS, *config.SHORTCUTS, "head", "base"):
        assert name in text
    assert f"{table.trainable:,}" in text
    assert json.loads(json.dumps(table.as_dict()))["total"] == table.total
