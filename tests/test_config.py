"""LoRA and shortcut configurations: what files mean, and what is said about mistakes in them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from heterolora.common.errors import UserError
from heterolora.elements import config
from heterolora.elements.config import ElementConfig
from heterolora.elements.element import Element, Settings, check_ranks, order_of
from tests.mistakes import refusal

ROOT = Path(__file__).parent.parent
FILES = [("lora", path) for path in sorted((ROOT / "configs/lora").glob("*.toml"))] + [
    ("shortcut", path) for path in sorted((ROOT / "configs/shortcut").glob("*.toml"))
]


def read(text: str, tmp_path: Path, kind: str = "lora") -> ElementConfig:
    path = tmp_path / "file.toml"
    path.write_text(text)
    return config.load(path, kind)


def everywhere(found: ElementConfig, names: tuple[str, ...], layers: int = 3) -> dict[tuple[int, str], object]:
    return {(layer, name): found.lookup(layer, name) for layer in range(layers) for name in names}


NETWORK = """
granularity = "network"
[default]
r = 8
lora_alpha = 16
lora_dropout = 0.1
adapter_name = "mine"
disable_adapter = true
[all_layers.q_proj]
disable_adapter = false
[all_layers.fc1]
r = 2
lora_alpha = 3
disable_adapter = false
use_rslora = true
"""

LAYER = """
granularity = "layer"
[default]
r = 4
lora_alpha = 8
[model_layer_0.q_proj]
r = 0
[model_layer_1.gate_proj]
lora_dropout = 0.5
[model_layer_11.out_proj]
r = 1
"""


def test_tables_are_merged_over_the_default_key_by_key(tmp_path):
    found = read(NETWORK, tmp_path)
    for layer in (0, 7):
        assert found.lookup(layer, "q_proj") == Settings(rank=8, alpha=16.0, dropout=0.1)
        assert found.lookup(layer, "q_proj").adapter == "mine"
        assert found.lookup(layer, "w1") == Settings(rank=2, alpha=3.0, dropout=0.1, use_rslora=True)
        assert found.lookup(layer, "v_proj") is None


def test_a_layer_wise_file_speaks_of_single_places(tmp_path):
    found = read(LAYER, tmp_path)
    assert found.lookup(0, "q_proj") is None
    assert found.lookup(1, "q_proj") == Settings(rank=4, alpha=8.0)
    assert found.lookup(1, "gate") == Settings(rank=4, alpha=8.0, dropout=0.5)
    assert found.lookup(11, "o_proj") == Settings(rank=1, alpha=8.0)
    assert found.lookup(2, "gate") == Settings(rank=4, alpha=8.0)


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ("out_proj", "o_proj"),
        ("fc1", "w1"),
        ("up_proj", "w1"),
        ("fc2", "w2"),
        ("down_proj", "w2"),
        ("gate_proj", "gate"),
    ],
)
def test_the_other_names_mean_the_canonical_ones(tmp_path, other, name):
    text = 'granularity = "network"\n[default]\nr = 0\nlora_alpha = 4\n[all_layers.{}]\nr = 2\n'
    assert read(text.format(other), tmp_path) == read(text.format(name), tmp_path)
    assert read(text.format(other), tmp_path).lookup(0, name).rank == 2


def test_shortcuts_have_keys_of_their_own(tmp_path):
    text = """
    granularity = "network"
    renormalize = true
    [default]
    r = 4
    shortcut_alpha = 8
    proj_dropout = 0.2
    projector_name = "ags"
    disable_projector = false
    [all_layers.residual2]
    disable_projector = true
    """
    found = read(text, tmp_path, "shortcut")
    assert found.renormalize
    assert found.lookup(0, "residual1") == Settings(rank=4, alpha=8.0, dropout=0.2)
    assert found.lookup(0, "residual2") is None
    assert found.lookup(0, "shortcut2") is None, "the first block has no block before it"
    assert found.lookup(1, "shortcut2") == Settings(rank=4, alpha=8.0, dropout=0.2)


def test_old_keys_are_read(tmp_path):
    text = NETWORK.replace("r = 8", "r = 8\ninit_lora_weights = true\ninit_lora_weghts = true\nfan_in_fan_out = false")
    assert read(text, tmp_path) == read(NETWORK, tmp_path)
    assert read(text, tmp_path).notes == ()
    noted = read(NETWORK.replace("r = 8", "r = 8\ninit_lora_weghts = false"), tmp_path)
    assert noted == read(NETWORK, tmp_path)
    assert "init_lora_weghts = false has no effect" in noted.notes[0]


@pytest.mark.parametrize(("kind", "path"), FILES, ids=lambda value: getattr(value, "name", value))
def test_every_shipped_file_loads_and_comes_back_from_what_it_writes(kind, path, tmp_path):
    found = config.load(path, kind)
    assert path.read_text().startswith("#"), "each file says what it is for"
    assert found.notes == ()
    assert config.parse_config(found.to_document(), kind) == found
    again = read(found.to_toml(), tmp_path, kind)
    assert again == found
    assert again.to_document() == found.to_document()
    names = tuple(config.PROJECTIONS if kind == "lora" else config.SHORTCUTS)
    assert any(everywhere(found, names).values()) == (path.stem != "none")


def test_the_shipped_files_say_what_their_names_say():
    def on(name: str, kind: str = "lora") -> set[str]:
        found = config.load(ROOT / f"configs/{kind}/{name}.toml", kind)
        places = everywhere(found, tuple(config.PROJECTIONS if kind == "lora" else config.SHORTCUTS), layers=2)
        return {f"{layer}.{element}" for (layer, element), settings in places.items() if settings}

    def both(*names: str) -> set[str]:
        return {f"{layer}.{name}" for layer in (0, 1) for name in names}

    assert on("lora_qv") == both("q_proj", "v_proj")
    assert on("lora_all") == both(*config.PROJECTIONS)
    assert on("lora_networkwise") == both(*config.PROJECTIONS)
    assert on("ags_networkwise", "shortcut") == both(*config.SHORTCUTS) - {"0.shortcut2"}


@pytest.mark.parametrize("text", [NETWORK, LAYER], ids=["network", "layer"])
def test_plain_values_and_text_give_the_configuration_back(text, tmp_path):
    found = read(text, tmp_path)
    assert read(found.to_toml(), tmp_path) == found
    assert read(found.to_toml(), tmp_path).lookup(5, "q_proj") == found.lookup(5, "q_proj")
    assert config.parse_config(found.to_document(), "lora") == found


def test_a_label_makes_no_difference(tmp_path):
    assert read(NETWORK, tmp_path) == read(NETWORK.replace('"mine"', '"yours"'), tmp_path)
    assert read(NETWORK, tmp_path) != read(NETWORK.replace("r = 2", "r = 3"), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"network"', '"block"'), 'granularity is \'block\'; expected "network" or "layer"'),
        (('granularity = "network"', ""), "granularity is missing"),
        (("r = 8", "r = -1"), "[default]: r is -1; expected a whole number, 0 or more"),
        (("r = 8", "r = 1.5"), "r is 1.5"),
        (("r = 8", "r = true"), "r is True"),
        (("r = 8", 'r = "8"'), "r is '8'"),
        (("lora_alpha = 16", "lora_alpha = -1"), "lora_alpha is -1"),
        (("lora_alpha = 16", "lora_alpha = nan"), "lora_alpha is nan"),
        (("lora_alpha = 16", ""), "[all_layers.q_proj]: r is 8 but lora_alpha is 0; expected lora_alpha > 0"),
        (("lora_dropout = 0.1", "lora_dropout = 1.0"), "lora_dropout is 1.0; expected a number in [0, 1)"),
        (("lora_dropout = 0.1", "lora_dropout = -0.1"), "lora_dropout is -0.1"),
        (("disable_adapter = true", "disable_adapter = 1"), "disable_adapter is 1; expected true or false"),
        (("use_rslora = true", 'use_rslora = "yes"'), "use_rslora is 'yes'; expected true or false"),
        (('"mine"', "3"), "adapter_name is 3; expected a text"),
        (("r = 8", "r = 8\nfan_in_fan_out = true"), "fan_in_fan_out is true; expected false"),
        (("r = 8", "r = 8\ninit_lora_weights = 1"), "init_lora_weights is 1; expected true or false"),
        (("lora_dropout", "lora_droput"), "[default]: 'lora_droput' is not known; did you mean 'lora_dropout'?"),
        (("q_proj", "q_porj"), "[all_layers.q_porj]: 'q_porj' is not known; did you mean 'q_proj'?"),
        (("q_proj", "residual1"), "'residual1' is not known"),
        (("q_proj", "lm_head"), "[all_layers.lm_head] is no place of a block; expected [outside.lm_head]"),
        (("q_proj", "w1"), "[all_layers.fc1] names w1 a second time"),
        (("all_layers.q_proj", "all_layer.q_proj"), "'all_layer' is not known; did you mean 'all_layers'?"),
        (("all_layers.q_proj", "model_layer_0.q_proj"), '[model_layer_0] does not match granularity = "network"'),
        (('granularity = "network"', 'granularity = "network"\nrenormalize = true'), "'renormalize' is not known"),
        (('granularity = "network"', 'granularity = "network"\nall_layers = 3\n[x]'), "all_layers is 3"),
        (("[all_layers.q_proj]", "[all_layers]\nq_proj = 3\n[all_layers.k_proj]"), "[all_layers.q_proj] is 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_named_with_the_file(tmp_path, change, message):
    text = NETWORK.replace(*change, 1)
    if "all_layers = 3" in text:
        text = 'granularity = "network"\nall_layers = 3\n'
    assert text != NETWORK
    line = refusal(read, text, tmp_path)
    assert message in line
    assert str(tmp_path / "file.toml") in line


def test_shortcut2_of_the_first_block_is_an_error_that_says_why(tmp_path):
    text = 'granularity = "layer"\n[model_layer_{}.shortcut2]\nr = 2\nshortcut_alpha = 2\n'
    assert read(text.format(1), tmp_path, "shortcut").lookup(1, "shortcut2").rank == 2
    with pytest.raises(UserError, match="has no previous block; shortcut2 starts in the previous block"):
        read(text.format(0), tmp_path, "shortcut")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('granularity = "network"\nrenormalize = "no"\n', "renormalize is 'no'; expected true or false"),
        ('granularity = "network"\n[default]\nlora_alpha = 3\n', "'lora_alpha' is not known"),
        ('granularity = "network"\n[all_layers.q_proj]\nr = 3\n', "'q_proj' is not known"),
        ('granularity = "network"\n[default]\nuse_rslora = true\n', "'use_rslora' is not known"),
    ],
)
def test_mistakes_in_shortcut_files(tmp_path, text, message):
    assert message in refusal(read, text, tmp_path, "shortcut")


def test_an_element_has_a_place_in_tables_and_a_highest_rank():
    assert sorted(("x", "shortcut1", "w1", "a", "q_proj"), key=order_of) == ["q_proj", "w1", "shortcut1", "a", "x"]
    with pytest.raises(UserError, match=r"layer_0\.q_proj is 4, but its widths are 8 and 3; expected at most 3"):
        check_ranks([Element(0, "q_proj", "lora", "q", 8, 3, Settings(4, 1.0))])


def test_help_needs_nothing_heavy():
    imports = "import sys, heterolora.elements.config; from model import family; family.names()"
    code = imports + "; print([m for m in sys.modules if m in {}])"
    heavy = {"torch", "transformers", "datasets", "numpy"}
    done = subprocess.run([sys.executable, "-c", code.format(heavy)], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
