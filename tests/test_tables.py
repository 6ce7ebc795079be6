"""Shortcuts on newer architectures: the equations, with halves that Transformers' own modules compute.

Two of them have no table: the form of their blocks is found.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import model.family as families
from heterolora.elements.adapt import adapt, placement_of
from heterolora.elements.blocks import blocks_of, replaced
from heterolora.elements.family import Family
from heterolora.elements.found import family_of
from heterolora.saliency.positive import PositiveNetwork
from model.block_form import with_norms
from tests.adapted import lora_config, shortcut_config
from tests.architectures import ARCHITECTURES, LM
from tests.mistakes import refusal
from tests.tiny import tiny_batch, tiny_network

#: Block and the input h of its feed-forward half -> the output f of this half, before the sum.
HALVES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "qwen3": lambda block, h: block.mlp(block.post_attention_layernorm(h)),
    "gemma2": lambda block, h: block.post_feedforward_layernorm(block.mlp(block.pre_feedforward_layernorm(h))),
    "gemma3_text": lambda block, h: block.post_feedforward_layernorm(block.mlp(block.pre_feedforward_layernorm(h))),
    "phi3": lambda block, h: block.mlp(block.post_attention_layernorm(h)),
    "gpt2": lambda block, h: block.mlp(block.ln_2(h)),
    "modernbert": lambda block, h: block.mlp(block.mlp_norm(h)),
    "distilbert": lambda block, h: block.ffn(h),
    "electra": lambda block, h: block.output.dense(block.intermediate(h)),
    "deberta_v2": lambda block, h: block.output.dense(block.intermediate(h)),
    "gpt_neox": lambda block, h: block.mlp(block.post_attention_layernorm(h)),
    "olmo2": lambda block, h: block.post_feedforward_layernorm(block.mlp(h)),
    "smollm3": lambda block, h: block.mlp(block.post_attention_layernorm(h)),
    "llama4_text": lambda block, h: block.feed_forward(block.post_attention_layernorm(h))[0].view_as(h),
}
#: The same of architectures without a table.
FOUND: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "starcoder2": lambda block, h: block.mlp(block.post_attention_layernorm(h)),
    "mixtral": lambda block, h: block.mlp(block.post_attention_layernorm(h)),
}
#: Keys of the models that can have shortcuts, where others can't.
_KEYS = {"gpt_neox": {"use_parallel_residual": False}}


def network_of(name: str) -> PreTrainedModel:
    model_type = name if name in FOUND else families.get(name).model_types[0]
    return ARCHITECTURES[model_type].network(**_KEYS.get(name, {}))


def table_of(name: str) -> Family:
    if name not in FOUND:
        return families.get(name)
    network = network_of(name)
    return with_norms(network, family_of(network, name), LM)


def test_every_table_is_tested():
    assert HALVES.keys() | {"opt", "roberta", "bert", "gemma", "llama", "qwen2", "mistral"} == {*families.names()}


@pytest.mark.parametrize("renormalize", [False, True], ids=["plain", "renormalize"])
@pytest.mark.parametrize("name", [*HALVES, *FOUND])
def test_blocks_compute_the_equations(name: str, renormalize: bool):
    table, batch = table_of(name), tiny_batch(padding=None)
    clean, network = (network_of(name) for _ in range(2))
    if renormalize and not table.norm1:
        line = refusal(placement_of, network, table, None, shortcut_config(renormalize))
        assert f"renormalize is true, but {name} has no norm of its sums" in line
        return
    space = adapt(network, placement_of(network, table, None, shortcut_config(renormalize)))
    network.config.use_cache = False  # the arguments of a block are used twice
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for low_rank in space:
            low_rank.B.normal_(std=0.3, generator=generator)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    outputs: list[Tensor] = []
    for block in space.blocks:
        block.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
        block.register_forward_hook(lambda _, __, output: outputs.append(tensor_of(output)))
    with torch.no_grad():
        network(**batch)
        before = None
        for layer, block in enumerate(blocks_of(clean, table)):
            args, kwargs = calls[layer]
            delta = partial(delta_of, space, layer)
            y, before = expected(table, block, args, kwargs, delta, before, renormalize)
            torch.testing.assert_close(outputs[layer], y, rtol=1e-5, atol=1e-5)
            assert (y - tensor_of(block(*args, **kwargs))).abs().max() > 0.01, "the shortcuts matter"


def tensor_of(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def delta_of(space: Any, layer: int, name: str, source: Tensor | None) -> Tensor | float:
    found = [each for each in space if (each.element.layer, each.element.name) == (layer, name)]
    return found[0].scaling * source @ found[0].A.T @ found[0].B.T if found else 0.0


def expected(
    table: Family, block: nn.Module, args: Any, kwargs: Any, delta: Any, before: Tensor | None, again: bool
) -> tuple[Tensor, Tensor]:
    """The output of a block with shortcuts, and its h. The sum x + a is taken from a block without."""
    x, first = args[0], before is None
    norm1, norm2 = block.get_submodule(table.norm1), block.get_submodule(table.norm2)
    sums: list[Tensor] = []
    after = table.norm1 if not table.pre_norm(None) else table.norm2 or table.linears["w1"]
    hook = block.get_submodule(after).register_forward_pre_hook(lambda _, got: sums.append(got[0]))
    block(*args, **kwargs)
    hook.remove()
    residual, crossing = sums[0] + delta("residual1", x), delta("shortcut2", before)
    half = partial((HALVES | FOUND)[table.name], block)
    if table.pre_norm(None):
        h = residual + crossing
        h = norm1(h) if again and not first else h
        y = h + delta("residual2", h) + half(h) + delta("shortcut1", x)
        return (norm2(y) if again else y), h
    h = norm1(norm1(residual) + crossing) if again and not first else norm1(residual + crossing)
    y = h + delta("residual2", h) + half(h)
    return (norm2(norm2(y) + delta("shortcut1", x)) if again else norm2(y + delta("shortcut1", x))), h


@pytest.mark.parametrize("name", HALVES)
def test_a_forward_pass_continues_from_a_block(name: str):
    """`--cache-frozen-prefix` and `alpha_test` replace blocks by their output."""
    network, batch, inputs, table = network_of(name), tiny_batch(), [], families.get(name)
    blocks = blocks_of(network, table)
    blocks[1].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        logits = network(**batch).logits
        with replaced(blocks, range(1), table, inputs[0]):
            assert torch.equal(network(**batch).logits, logits)


def test_halves_with_the_same_input_have_no_shortcuts():
    """The published models of GPT-NeoX."""
    network = ARCHITECTURES["gpt_neox"].network()
    assert len(placement_of(network, families.get("gpt_neox"), lora_config()).elements) == 8
    line = refusal(placement_of, network, families.get("gpt_neox"), lora_config(), shortcut_config())
    assert "both halves of a block of this gpt_neox model have the same input" in line


def test_synflow_of_a_block_with_norms_at_the_ends_of_its_halves():
    """Such a norm multiplies by a weight, as larger weights of the last layer do."""
    keys = {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
    gemma, gemma2 = tiny_network("gemma", "causal_language_modeling", **keys), ARCHITECTURES["gemma2"].network()
    names = {"input_layernorm": "input_layernorm", "post_attention_layernorm": "pre_feedforward_layernorm"}
    with torch.no_grad():
        for name, parameter in gemma.named_parameters():
            *start, part, last = name.split(".")
            parameter.copy_(dict(gemma2.named_parameters())[".".join((*start, names.get(part, part), last))])
        for ours, theirs in zip(gemma.model.layers, gemma2.model.layers, strict=True):
            theirs.post_attention_layernorm.weight.fill_(0.5)  # 1.5 times
            theirs.post_feedforward_layernorm.weight.fill_(1.0)  # twice
            ours.self_attn.o_proj.weight.mul_(1.5)
            ours.mlp.down_proj.weight.mul_(2.0)
    flows = []
    for network in (gemma, gemma2):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            table = families.get(network.config.model_type)
            positive = PositiveNetwork(network, adapt(network, placement_of(network, table, lora_config())))
            flows.append(float(positive.flow().detach()) * 2.0**positive.power)
    assert flows[1] == pytest.approx(flows[0])
