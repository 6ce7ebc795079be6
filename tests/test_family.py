"""The families' tables against the library's own models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from heterolora.common.errors import UserError
from heterolora.elements.element import PROJECTIONS
from heterolora.elements.family import Family
from heterolora.elements.found import positions_after_padding
from model import family
from tests.adapted import CASES, VARIANTS
from tests.architectures import ARCHITECTURES
from tests.mistakes import refusal
from tests.tiny import PAD, tiny_network


def test_every_file_of_the_folder_is_a_family():
    files = {path.stem for path in Path(family.__file__).parent.glob("*.py")} - {"__init__", "base"}
    assert set(family.names()) == files >= {"bert", "gemma", "llama", "mistral", "opt", "qwen2", "roberta"}
    for name in family.names():
        assert family.get(name).name == name
        assert all(family.for_model_type(each) is family.get(name) for each in family.get(name).model_types)
    assert family.for_model_type("falcon") is None


def test_model_names():
    for name in family.names():
        assert family.parse_model_name(f"{name}_lora") == family.AdaptedName(family.get(name), shortcuts=False)
        assert family.parse_model_name(f"{name}_lora_ags") == family.AdaptedName(family.get(name), shortcuts=True)
    others = ("opt", "facebook/opt-350m", "opt_lora_x", "bloom_lora", "_lora", "my/opt_lora", "opt_lora_lora", "")
    for other in others:
        assert family.parse_model_name(other) is None
    for name in ("lora", "auto_lora"):  # the base says which family it is
        assert family.parse_model_name(name) == family.AdaptedName(family.OF_BASE, shortcuts=False)
        assert family.parse_model_name(f"{name}_ags") == family.AdaptedName(family.OF_BASE, shortcuts=True)
    stems = ("lora", "auto_lora", *(f"{name}_lora" for name in family.names()))
    assert set(family.model_names()) == {f"{stem}{end}" for stem in stems for end in ("", "_ags")}


def test_an_unknown_family_names_the_nearest():
    with pytest.raises(UserError, match="'robreta' is not known; did you mean 'roberta'"):
        family.get("robreta")


@pytest.mark.parametrize(("variant", "task"), CASES)
def test_the_tables_point_at_what_they_say(variant, task):
    name, keys = VARIANTS[variant]
    table, network = family.get(name), tiny_network(name, task, **keys)
    blocks = list(network.base_model.get_submodule(table.blocks))
    assert len(blocks) == network.config.num_hidden_layers
    assert [key for key in PROJECTIONS if key in table.linears] == list(table.linears), "table order"
    in_block = {path for path, module in blocks[0].named_modules() if isinstance(module, nn.Linear)}
    assert set(table.linears.values()) == in_block, "every linear layer of a block, and no other"
    norms = {path for path, module in blocks[0].named_modules() if "norm" in type(module).__name__.lower()}
    assert {table.norm1, table.norm2} == norms

    # The order in which a block calls its parts tells whether the norms come first.
    called: list[str] = []
    watched = {**table.linears, "norm1": table.norm1, "norm2": table.norm2}
    for key, path in watched.items():
        blocks[0].get_submodule(path).register_forward_hook(lambda *_, key=key: called.append(key))
    network(torch.tensor([[3, 4, 5]]))
    if table.pre_norm(network.config):
        order = [("norm1", "q_proj"), ("norm2", "w1")]
    else:
        order = [("o_proj", "norm1"), ("w2", "norm2")]
    for earlier, later in order:
        assert called.index(earlier) < called.index(later)
    half = called.index("o_proj") + 1
    assert {"q_proj", "k_proj", "v_proj"} < set(called[:half])
    assert {"w1", "w2"} < set(called[half:])


@pytest.mark.parametrize("model_type", ["xlm-roberta", "camembert"])
def test_other_models_of_the_roberta_family(model_type):
    """They have the modules of RoBERTa, under the same names, and compute the same."""
    roberta, other, table = tiny_network("roberta"), tiny_network(model_type, seed=1), family.get("roberta")
    assert family.for_model_type(model_type) is table
    table.check(other.config)
    assert other.base_model.get_submodule(table.blocks) is not None
    other.load_state_dict(roberta.state_dict())
    ids = torch.tensor([[0, 3, 4, 5, 2]])
    assert torch.equal(other(ids).logits, roberta(ids).logits)


def test_positions_after_padding():
    """Token i has position i + 2 in these models: the padding index is 1."""
    for name in family.names():
        assert family.get(name).positions_after_padding == (name == "roberta"), name
        network = ARCHITECTURES[family.get(name).model_types[0]].network()
        assert positions_after_padding(network) == (name == "roberta"), name
    row, padded = torch.tensor([[3, 4]]), torch.tensor([[PAD, 3, 4]])
    embeddings = tiny_network("roberta").base_model.embeddings
    assert torch.equal(embeddings(row)[0], embeddings(padded)[0, 1:]), "padding takes no position"


def test_a_model_without_a_head_is_found_too():
    network = AutoModel.from_config(tiny_network("opt").config)
    assert len(network.base_model.get_submodule(family.get("opt").blocks)) == 2


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text", "opt"])
def test_gemma_means_the_first_gemma(model_type):
    line = refusal(family.get("gemma").check, AutoConfig.for_model(model_type))
    assert f"does not fit a model of type '{model_type}'" in line
    assert ("also have norms after the halves" in line) == model_type.startswith("gemma")


@pytest.mark.parametrize("name", ["roberta", "bert"])
def test_encoders_classify(name):
    family.get(name).check_task("classification")
    with pytest.raises(UserError, match=f"{name} models cannot summarise texts, they classify texts; give"):
        family.get(name).check_task("summarization")


def test_decoders_do_every_task():
    for name in ("opt", "gemma", "llama", "qwen2", "mistral"):
        table: Family = family.get(name)
        for task in ("classification", "causal_language_modeling", "summarization"):
            table.check_task(task)
