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

from heterolora import config
from heterolora.adapt import adapt, enable_gradient_checkpointing, heads, plan
from heterolora.errors import UserError
from heterolora.family import PROJECTIONS
from model import family
from model.parameters import count, render
from tests.adapted import CASES, VARIANTS, adapted, gradients, lora_config, shortcut_config
from tests.tiny import tiny_batch, tiny_network


def parse(kind: config.Kind, **tables: object) -> config.ElementConfig:
    return config.parse(tables, kind)


OPT = tiny_network("opt").config
SMALL = {"r": 2, "lora_alpha": 4}


def test_a_plan_lists_every_element_by_block_then_kind():
    planned = plan(family.get("opt"), OPT, lora_config(), shortcut_config())
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
    assert plan(opt, OPT, network) == plan(opt, OPT, layer)
    assert plan(opt, OPT, network) != plan(opt, AutoConfig.for_model("opt", num_hidden_layers=3), network)
    assert plan(opt, OPT, None, shortcut_config()) != plan(opt, OPT, None, shortcut_config(renormalize=True))


def test_a_name_that_the_family_lacks_is_ignored_with_a_note():
    lora = parse("lora", granularity="network", all_layers={"gate_proj": SMALL, "q_proj": SMALL})
    planned = plan(family.get("opt"), OPT, lora)
    assert [item.name for item in planned.elements] == ["q_proj", "q_proj"]
    assert planned.notes == ("lora configuration: gate is ignored: opt has none",)
    assert plan(family.get("gemma"), tiny_network("gemma").config, lora).notes == ()


@pytest.mark.parametrize(
    ("kind", "table"),
    [("lora", {"model_layer_2": {"q_proj": SMALL}}), ("shortcut", {"model_layer_2": {"residual1": {"r": 0}}})],
)
def test_a_block_beyond_the_model_is_refused_before_weights_load(kind, table):
    found = parse(kind, granularity="layer", **table)
    with pytest.raises(UserError, match=r"\[model_layer_2\.\w+\] is beyond the model; it has 2 blocks, 0 to 1"):
        plan(family.get("opt"), OPT, *((found,) if kind == "lora" else (None, found)))


def test_a_table_of_another_architecture_is_refused_before_weights_load():
    with pytest.raises(UserError, match="the family 'gemma' does not fit a model of type 'gemma2'"):
        plan(family.get("gemma"), AutoConfig.for_model("gemma2"), lora_config())


@pytest.mark.parametrize(
    ("name", "key", "value"), [("opt", "layerdrop", 0.1), ("roberta", "chunk_size_feed_forward", 4)]
)
def test_shortcuts_refuse_blocks_that_run_in_part(name, key, value):
    hf_config = copy.deepcopy(tiny_network(name).config)
    setattr(hf_config, key, value)
    assert plan(family.get(name), hf_config, lora_config()).elements
    with pytest.raises(UserError, match=f"shortcuts do not go with {key} = {value}"):
        plan(family.get(name), hf_config, lora_config(), shortcut_config())


# --- the adapted network


@pytest.mark.parametrize(("variant", "task"), CASES)
def test_elements_and_a_classification_head_train_and_nothing_else(variant, task):
    model = adapted(variant, task, lora_config(), shortcut_config())
    trained = {id(p) for p in model.network.parameters() if p.requires_grad}
    expected = {id(p) for e in model.space for p in e.low_rank.parameters()}
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
    for element in model.space.of_kind("lora"):
        linear = library[element.module]
        assert (element.low_rank.in_features, element.low_rank.out_features) == (
            linear.in_features,
            linear.out_features,
        )
        assert element.parameters == 3 * (linear.in_features + linear.out_features)
    for element in model.space.of_kind("shortcut"):
        assert library[element.module] is not None
        assert element.module.split(".")[-1] == str(element.layer)
    assert len({element.key for element in model.space}) == len(model.space)
    assert [type(block) for block in model.space.blocks] == [
        type(library[e.module]) for e in model.space.of_kind("shortcut") if e.name == "residual1"
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
    found = {e.key: (e.low_rank.rank, e.low_rank.alpha, e.low_rank.dropout) for e in model.space}
    assert found["layer_0.q_proj"] == (5, 6.0, 0.1)
    assert found["layer_1.q_proj"] == (2, 6.0, 0.1)
    assert found["layer_1.o_proj"] == (2, 7.0, 0.3)
    assert {"layer_0.w2", "layer_1.k_proj"} & found.keys() == set()
    scalings = {e.key: e.low_rank.scaling for e in model.space}
    assert scalings["layer_1.o_proj"] == pytest.approx(7 / 2**0.5)
    assert scalings["layer_0.q_proj"] == pytest.approx(6 / 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_bases_of_other_dtypes(variant, dtype):
    name, keys = VARIANTS[variant]
    network, batch = tiny_network(name, **keys).to(dtype), tiny_batch()
    plain = network(**batch).logits
    space = adapt(network, family.get(name), lora_config(), shortcut_config())
    for parameter in network.parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else dtype)
    network, space = copy.deepcopy((network, space))  # the head's cast must come along
    logits = network(**batch).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, plain.float(), rtol=0.02, atol=0.02)
    with torch.no_grad():
        for element in space:
            nn.init.normal_(element.low_rank.B, std=0.1)
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
    space = adapt(network, family.get("opt"), lora_config(), shortcut_config())
    assert {p.device.type for e in space for p in e.low_rank.parameters()} == {"meta"}


def test_the_seed_decides_the_start():
    def start(seed: int) -> list[torch.Tensor]:
        network = tiny_network("opt")
        torch.manual_seed(seed)
        return [e.low_rank.A for e in adapt(network, family.get("opt"), lora_config(), shortcut_config())]

    assert all(map(torch.equal, start(1), start(1)))
    assert not any(map(torch.equal, start(1), start(2)))


@pytest.mark.parametrize("kind", ["plain", "lora"])
def test_gradient_checkpointing_without_shortcuts(kind):
    def run(checkpointing: bool) -> dict[str, torch.Tensor]:
        network, space = tiny_network("opt"), None
        if kind == "lora":
            torch.manual_seed(0)
            space = adapt(network, family.get("opt"), lora_config())
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
    switched = [e for e in model.space if e.name == "residual1"]
    switched[0].low_rank.switch(False)
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
    plain = AutoModelForSequenceClassification.from_config(OPT)
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
