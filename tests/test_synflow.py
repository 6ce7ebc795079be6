"""synflow against the sum over paths of products of absolute weights, in NumPy, with every position written out."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import nn

from heterolora.common.errors import UserError
from heterolora.elements.adapt import wrap
from heterolora.elements.element import Settings
from heterolora.elements.search_space import SearchSpace
from heterolora.elements.targets import lora_elements
from heterolora.saliency.positive import PositiveNetwork
from heterolora.saliency.problem import Problem
from heterolora.saliency.score import score
from model import family
from tests.adapted import VARIANTS, Adapted, adapted, lora_config, shortcut_config
from tests.tiny import tiny_network

TOKENS = 64
_LLAMA = {
    "block": "model.layers.{}.",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "q_proj": "self_attn.q_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "w1": "mlp.up_proj",
    "w2": "mlp.down_proj",
    "gate": "mlp.gate_proj",
    "after": ("model.norm",),
}
_ENCODER = {
    "norm1": "attention.output.LayerNorm",
    "norm2": "output.LayerNorm",
    "v_proj": "attention.self.value",
    "o_proj": "attention.output.dense",
    "w1": "intermediate.dense",
    "w2": "output.dense",
}
_OPT = {
    "block": "model.decoder.layers.{}.",
    "norm1": "self_attn_layer_norm",
    "norm2": "final_layer_norm",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.out_proj",
    "w1": "fc1",
    "w2": "fc2",
    "before": ("model.decoder.project_in",),
    "after": ("model.decoder.final_layer_norm", "model.decoder.project_out"),
}
_PATHS: Mapping[str, Mapping[str, object]] = {
    "opt": _OPT,
    "roberta": {
        **_ENCODER,
        "block": "roberta.encoder.layer.{}.",
        "before": ("roberta.embeddings.LayerNorm",),
    },
    "bert": {**_ENCODER, "block": "bert.encoder.layer.{}.", "before": ("bert.embeddings.LayerNorm",)},
    "gemma": _LLAMA,
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "mistral": _LLAMA,
}


class Paths:
    """R of an adapted network, made linear and positive: the sum over all paths.

    It knows the pretrained weights by their names and the elements, and neither the library's modules nor the tables.
    """

    def __init__(self, made: Adapted, renormalize: bool) -> None:
        self.config, self.renormalize = made.network.config, renormalize
        self.family = self.config.model_type
        self.paths = _PATHS[self.family]
        self.weights = {name: np.abs(value.double().numpy()) for name, value in made.pretrained.items()}
        if self.family == "gemma":  # its norms multiply by 1 + weight
            norms = {name: value for name, value in made.pretrained.items() if "norm" in name}
            self.weights |= {name: np.abs(1 + value.double().numpy()) for name, value in norms.items()}
        self.deltas = {
            (low_rank.element.layer, low_rank.element.name): low_rank.scaling
            * np.abs(low_rank.B.detach().double().numpy())
            @ np.abs(low_rank.A.detach().double().numpy())
            for low_rank in made.space
        }
        causal = self.family not in ("roberta", "bert")
        visible = np.tril(np.ones((TOKENS, TOKENS))) if causal else np.ones((TOKENS, TOKENS))
        self.average = visible / visible.sum(1, keepdims=True)

    def R(self, without: tuple[int, str] | None = None) -> float:
        """The sum over all paths, or over those that do not pass one element."""
        deltas = {place: delta for place, delta in self.deltas.items() if place != without}

        def through(names: object, x: np.ndarray) -> np.ndarray:
            for name in names or ():
                weight = self.weights.get(f"{name}.weight")
                if weight is not None:
                    x = x @ weight.T if weight.ndim == 2 else x * weight
            return x

        width = getattr(self.config, "word_embed_proj_dim", self.config.hidden_size)
        x, before = through(self.paths.get("before"), np.ones((TOKENS, width))), None
        for layer in range(self.config.num_hidden_layers):
            x, before = self.block(layer, deltas, x, before)
        return float(through(self.paths.get("after"), x).sum())

    def block(self, layer, deltas, x, before):
        def weight(name: str) -> np.ndarray:
            return self.weights[self.paths["block"].format(layer) + self.paths[name] + ".weight"]

        def delta(name: str, source: np.ndarray) -> np.ndarray | float:
            return source @ deltas[layer, name].T if (layer, name) in deltas else 0.0

        def linear(name: str, source: np.ndarray) -> np.ndarray:
            return source @ weight(name).T + delta(name, source)

        def attention(source: np.ndarray) -> np.ndarray:
            heads = self.config.num_attention_heads
            groups = getattr(self.config, "num_key_value_heads", None) or heads
            values = self.average @ linear("v_proj", source)
            per_head = values.reshape(TOKENS, groups, -1).repeat(heads // groups, axis=1)
            return linear("o_proj", per_head.reshape(TOKENS, -1))

        def feed_forward(source: np.ndarray) -> np.ndarray:
            inner = linear("w1", source)
            return linear("w2", inner + linear("gate", source) if "gate" in self.paths else inner)

        norm1, norm2, again = weight("norm1"), weight("norm2"), self.renormalize
        cross = 0.0 if before is None else delta("shortcut2", before)
        pre_norm = getattr(self.config, "do_layer_norm_before", self.paths is _LLAMA)
        if pre_norm:
            h = x + delta("residual1", x) + attention(x * norm1) + cross
            h = h * norm1 if again and layer > 0 else h
            y = h + delta("residual2", h) + feed_forward(h * norm2) + delta("shortcut1", x)
            return (y * norm2 if again else y), h
        h = x + delta("residual1", x) + attention(x)
        h = (h * norm1 + cross) * norm1 if again and layer > 0 else (h + cross) * norm1
        y = h + delta("residual2", h) + feed_forward(h)
        return ((y * norm2 + delta("shortcut1", x)) * norm2 if again else (y + delta("shortcut1", x)) * norm2), h


def made(variant: str, renormalize: bool = False, **overrides: object) -> Adapted:
    return adapted(variant, lora=lora_config(), shortcut=shortcut_config(renormalize), **overrides).train_b()


def synflow(network: nn.Module, space: SearchSpace) -> dict[str, float]:
    def no_data(_: object) -> None:
        raise AssertionError("synflow needs no data")

    return score("synflow", Problem(network, space, no_data, []))


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_sum_over_paths(variant: str, renormalize: bool) -> None:
    """A path passes an element once at most, so that Σ|A ∘ ∂R/∂A| is the sum of the paths through it; likewise of B."""
    trained = made(variant, renormalize)
    paths, scores = Paths(trained, renormalize), synflow(trained.network, trained.space)
    whole = paths.R()
    for low_rank in trained.space:
        through_it = whole - paths.R(without=(low_rank.element.layer, low_rank.element.name))
        if low_rank.element.name in ("q_proj", "k_proj"):
            assert scores[low_rank.element.key] == 0
        else:
            assert scores[low_rank.element.key] == pytest.approx(2 * through_it, rel=1e-7)


def test_elements_before_and_after_the_blocks() -> None:
    """The library also scores the projections around OPT-350M's blocks. R - R(without) is the sum of the paths."""
    network = tiny_network("opt", "causal_language_modeling", do_layer_norm_before=False, word_embed_proj_dim=16)
    table, outside = family.get("opt"), ["project_in", "project_out"]
    elements = lora_elements(network, [*outside, "v_proj"], Settings(rank=2, alpha=4.0))
    blocks = tuple(network.base_model.get_submodule(table.blocks))
    space = SearchSpace(wrap(network, elements), blocks, table, pre_norm=False)
    for low_rank in space:
        nn.init.normal_(low_rank.B)

    def flow() -> float:
        positive = PositiveNetwork(network, space)
        return float(positive.flow().detach()) * 2.0**positive.power

    scores, whole = synflow(network, space), flow()
    for low_rank in space:
        if low_rank.element.module.endswith(tuple(outside)):
            low_rank.switch(False)
            assert scores[low_rank.element.key] == pytest.approx(2 * (whole - flow()), rel=1e-7)
            low_rank.switch(True)


@pytest.mark.parametrize("variant", ["opt-post", "gemma"])
def test_finite_on_many_blocks(variant: str) -> None:
    """24 blocks whose weights are as large as those of wide models: each multiplies by about a million."""
    trained = made(variant, num_hidden_layers=24)
    with torch.no_grad():
        for block in trained.space.blocks:
            for parameter in block.parameters():
                parameter.mul_(8)
    scores = synflow(trained.network, trained.space)
    assert all(math.isfinite(value) for value in scores.values())
    assert min(value for key, value in scores.items() if not key.endswith(("q_proj", "k_proj"))) > 0
    assert math.isfinite(sum(scores.values()))


def test_beyond_what_a_float_holds_ratios_stay() -> None:
    """Without shortcuts a path of a post-norm network passes every norm once, so that all scale alike."""
    trained = adapted("opt-post", lora=lora_config(), num_hidden_layers=24).train_b()
    scores = synflow(trained.network, trained.space)
    with torch.no_grad():
        for block in trained.space.blocks:
            for norm in ("self_attn_layer_norm", "final_layer_norm"):
                block.get_submodule(norm).weight.mul_(2.0**60)
    beyond = synflow(trained.network, trained.space)  # in truth 2 ** (24 * 2 * 60) times as much
    ratios = {beyond[key] / value for key, value in scores.items() if value}
    assert len(ratios) == 1
    assert 2.0**999 <= max(beyond.values()) < 2.0**1000


def test_no_weight_is_touched() -> None:
    trained = made("roberta")
    before = {name: (value.data_ptr(), value._version) for name, value in trained.network.named_parameters()}
    synflow(trained.network, trained.space)
    assert {name: (value.data_ptr(), value._version) for name, value in trained.network.named_parameters()} == before


class Packed(nn.Module):
    """A linear layer that hides its weights, as a quantised one does."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(torch.zeros(linear.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)


@pytest.mark.parametrize("path", ["fc1.base", "self_attn.v_proj.base"])
def test_a_quantised_base_is_refused(path: str) -> None:
    trained = made("opt-pre")
    block = trained.space.blocks[1]
    block.set_submodule(path, Packed(block.get_submodule(path)))
    with pytest.raises(UserError, match="synflow needs the weights of the base"):
        synflow(trained.network, trained.space)
