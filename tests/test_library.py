"""The library's face: any network, any batches, and the network unchanged afterwards."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

import heterolora as hl
from heterolora.choosing import scores as scores_file
from heterolora.elements.config import ElementConfig, parse_config
from heterolora.elements.found import family_of
from model import family
from tests.tiny import tiny_network
from tests.world import ROOT

VOCABULARY = 64


def neox(**keys: object) -> GPTNeoXForCausalLM:
    """A Transformers model of a family without a table."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    return GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=VOCABULARY, max_position_embeddings=32, **shape, **keys))


def batches(count: int = 3, rows: int = 2) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(VOCABULARY, (rows, 8), generator=generator) for _ in range(count)]
    return [{"input_ids": ids, "labels": ids} for ids in drawn]


class Own(nn.Module):
    """A hand-written network: two linear layers in a list, one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 5), nn.Linear(5, 4)])
        self.dropout = nn.Dropout(0.5)
        self.last = nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.last(self.dropout(x))


def squared(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (network(batch[0]) - batch[1]).square().mean()


def own_batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(4, 6, generator=generator), torch.randn(4, 3, generator=generator)) for _ in range(2)]


def test_scores_of_a_hand_written_network_equal_its_gradients() -> None:
    """With B = 0, ∂L/∂A = 0 and ∂L/∂B = s · G (x Aᵀ) with G the gradient of the layer's output."""
    torch.manual_seed(0)
    network, data = Own().eval(), own_batches()
    scores = hl.score(network, data, "grad_norm", loss=squared, rank=2, alpha=6.0, seed=7)
    assert set(scores.by_module()) == {"layers.0", "layers.1", "last"}

    torch.manual_seed(7)  # the elements are drawn in the network's order, block by block
    starts = {}
    for item in scores.scored:
        starts[item.element.module] = torch.empty(2, item.element.in_features)
    for path in ("layers.0", "last", "layers.1"):
        nn.init.kaiming_uniform_(starts[path], a=5**0.5)
    expected = {}
    for path, A in starts.items():
        total = 0.0
        for batch in data:
            seen: list[Tensor] = []

            def keep(_module: nn.Module, inputs: tuple[Tensor], output: Tensor, seen: list[Tensor] = seen) -> None:
                seen[:] = [inputs[0].detach(), output]

            hook = network.get_submodule(path).register_forward_hook(keep)
            loss = squared(network, batch)
            (G,) = torch.autograd.grad(loss, seen[1])
            hook.remove()
            total = total + 3.0 * G.T @ (seen[0] @ A.T)  # (out, rank), alpha / rank = 3
        expected[path] = float(total.norm())
    assert scores.by_module() == pytest.approx(expected, rel=1e-5)


def state_of(network: nn.Module) -> dict[str, object]:
    return {
        "weights": {name: value.clone() for name, value in network.state_dict().items()},
        "modules": [(name, type(module)) for name, module in network.named_modules()],
        "training": [module.training for module in network.modules()],
        "requires_grad": [parameter.requires_grad for parameter in network.parameters()],
        "gradients": [parameter.grad for parameter in network.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules()],
        "random": torch.get_rng_state(),
    }


def assert_same_state(found: dict[str, object], expected: dict[str, object]) -> None:
    assert all(torch.equal(found["weights"][name], value) for name, value in expected["weights"].items())
    assert torch.equal(found["random"], expected["random"])
    for what in ("modules", "training", "requires_grad", "gradients", "hooks"):
        assert found[what] == expected[what], what


@pytest.mark.parametrize("heuristic", [name for name in hl.heuristics() if name != "synflow"])
def test_a_model_without_a_family_table_is_unchanged(heuristic: str) -> None:
    network = neox(hidden_dropout=0.2).train()
    network.gpt_neox.embed_in.weight.requires_grad_(False)
    before = state_of(network)
    scores = hl.score(network, batches(), heuristic, warmup_batches=2)
    assert_same_state(state_of(network), before)
    assert len(scores.scored) == 3 * 4  # four linear layers a block, and not the output layer
    assert "embed_out" not in scores.by_module()
    assert hl.score(network, batches(), heuristic, warmup_batches=2) == scores


def test_a_model_is_unchanged_after_an_error_or_an_interruption() -> None:
    network = neox()
    before = state_of(network)

    def broken(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        network(**batch)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hl.score(network, batches(), loss=broken)
    assert_same_state(state_of(network), before)


def test_the_command_lines_scores_are_the_librarys() -> None:
    """With a family's table, names are canonical, and scoring is the code of `imp-test`."""
    from heterolora.elements.adapt import adapt, placement_of
    from heterolora.saliency.score import score
    from tests.adapted import lora_config
    from tests.scoring import problem

    network = tiny_network("opt", "causal_language_modeling")
    drawn = [batch["input_ids"] for batch in batches()]
    data = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in drawn]
    found = hl.score(
        network,
        data,
        "synflow",
        family=family.get("opt"),
        rank=3,
        alpha=6,
        seed=5,
        warmup_batches=2,
        loss=lambda network, batch: nn.functional.cross_entropy(
            network(**batch).logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten()
        ),
    )
    torch.manual_seed(5)
    from heterolora.saliency.warm_up import WarmUp
    from tests.adapted import Adapted

    space = adapt(network, placement_of(network, family.get("opt"), lora_config()))
    expected = score("synflow", problem(Adapted(network, space, {}), data), WarmUp(data[:2]))
    assert {item.element.key: item.score for item in found.scored} == pytest.approx(expected, rel=1e-6)


def test_targets_are_chosen_as_in_peft() -> None:
    network = neox()
    assert set(hl.score(network, [], "constant", target_modules=["dense"]).by_module()) == {
        f"gpt_neox.layers.{layer}.attention.dense" for layer in range(3)
    }
    found = hl.score(network, [], "constant", target_modules=r".*\.2\.mlp\..*").by_module()
    assert {path.rsplit(".", 1)[1] for path in found} == {"dense_h_to_4h", "dense_4h_to_h"}
    everything = peft.get_peft_model(copy.deepcopy(network), peft.LoraConfig(target_modules="all-linear"))
    theirs = {name.removeprefix("base_model.model.") for name in everything.targeted_module_names}
    assert set(hl.score(network, [], "constant").by_module()) == theirs


def test_the_block_is_the_first_number_of_a_path() -> None:
    def halves() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))

    network = nn.Sequential(halves(), halves(), nn.Linear(4, 2))
    data = [torch.ones(3, 4)]
    scores = hl.score(network, data, "constant", loss=lambda network, x: network(x).sum())
    assert [item.element.key for item in scores.scored] == [
        "layer_0.0", "layer_0.2", "layer_1.0", "layer_1.2", "layer_2.2",
    ]  # fmt: skip


@pytest.mark.parametrize("heuristic", ["grad_norm", "spectral", "weight_grad_norm", "weight_gradient", "activation"])
def test_a_network_may_change_outputs_in_place_and_have_single_rows(heuristic: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    changing = copy.deepcopy(network)
    changing[1].inplace = True
    rows = [torch.randn(6) for _ in range(8)]
    found = [
        hl.score(each, rows, heuristic, rank=2, loss=lambda network, row: network(row).square().sum()).by_module()
        for each in (network, changing)
    ]
    assert found[0] == pytest.approx(found[1])
    assert min(found[0].values()) > 0


@pytest.mark.parametrize("policy", ["proportional", "topk"])
def test_a_configuration_spends_the_budget_in_peft(policy: str) -> None:
    network = neox()
    scores = hl.score(network, batches())
    config = hl.lora_config(scores, parameters=3000, policy=policy, task_type="CAUSAL_LM", bias="none")
    model = peft.get_peft_model(network, config)
    trained = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert 2700 < trained <= 3000
    layers = [m for m in model.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    assert {layer.scaling["default"] for layer in layers} == {2.0}  # as scored: alpha 16 at rank 8
    if policy == "proportional":
        assert len({layer.r["default"] for layer in layers}) > 1


def test_conv1d_of_gpt2_can_be_scored() -> None:
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    network = GPT2LMHeadModel(config)
    scores = hl.score(network, batches())
    widths = {item.element.name: (item.element.in_features, item.element.out_features) for item in scores.scored}
    assert widths["attn.c_attn"] == (32, 96)
    model = peft.get_peft_model(network, hl.lora_config(scores, share=0.5, fan_in_fan_out=True))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) > 0


def test_end_to_end_through_trainer(tmp_path: Path) -> None:
    network, data = neox(), batches(count=16, rows=1)
    scores = hl.score(network, data[:4], max_batches=3)
    assert scores.batches == 3
    model = peft.get_peft_model(network, hl.lora_config(scores, parameters=4000, task_type="CAUSAL_LM"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = [{name: values[0] for name, values in batch.items()} for batch in data]
    arguments = TrainingArguments(str(tmp_path), max_steps=5, learning_rate=1e-2, report_to="none", use_cpu=True)
    outcome = Trainer(model, arguments, train_dataset=rows).train()
    assert outcome.global_step == 5
    changed = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    assert changed
    assert all("lora_" in name for name in changed)


def meta(network: PreTrainedModel) -> list[dict[str, Tensor]]:
    return [{name: values.to("meta") for name, values in batch.items()} for batch in batches()]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n: hl.score(n, meta(n)), "the batches are on meta, the model is on cpu; move the batches"),
        (lambda n: hl.score(n, []), "no batches to score on"),
        (lambda n: hl.score(n, batches(), "grad_nrm"), "did you mean 'grad_norm'"),
        (lambda n: hl.score(n, batches(), target_modules=["q_proj"]), "matches none; expected ends of paths"),
        (lambda n: hl.score(n, [{"input_ids": batches()[0]["input_ids"]}]), "has no loss; add labels to the batches"),
        (lambda n: hl.score(n, own_batches()), "a batch is a tuple; give batches that are dictionaries"),
        (lambda n: hl.score(n, batches(), loss=lambda n, b: n(**b).logits), "expected a scalar tensor"),
        (lambda n: hl.score(n, batches(), loss=lambda n, b: n(**b).loss * float("nan")), "expected a finite score"),
        (lambda n: hl.score(n, batches(), "synflow"), "synflow needs a family table; give family="),
        (lambda n: hl.score(n, batches(), family=family.get("opt")), "does not fit a model of type 'gpt_neox'"),
        (
            lambda n: hl.score(peft.get_peft_model(n, peft.LoraConfig()), batches(), target_modules=["q_proj"]),
            "LoRA layers already, and target_modules",
        ),
        (lambda n: hl.lora_config(hl.score(n, batches())), "0 budgets are given; give one of"),
        (lambda n: hl.lora_config(hl.score(n, batches()), parameters=1), "pays for no element; expected at least"),
        (
            lambda n: hl.lora_config(hl.score(n, batches()), parameters=float("nan")),
            "parameters is nan; expected a number",
        ),
        (lambda n: hl.lora_config(hl.score(n, batches()), share="half"), "share is 'half'; expected a number above 0"),
        (lambda n: hl.lora_config(hl.score(n, batches()), share=0.5, policy="top"), "did you mean 'topk'"),
        (
            lambda n: hl.lora_config(hl.score(n, batches()), share=0.5, policy="topk", rank=0),
            "rank is 0; expected a whole number, 1 or more",
        ),
        (
            lambda n: hl.lora_config(hl.score(n, batches()), share=0.5, max_rank=0),
            "max_rank is 0; expected a whole number",
        ),
        (
            lambda n: hl.lora_config(hl.score(n, batches()), share=0.5, rank=4),
            "does not use the given limit; rank is for",
        ),
        (lambda n: hl.score(n, batches(), rank=0), "rank is 0; expected a whole number, 1 or more"),
        (lambda n: hl.score(n, batches(), rank=-1), "rank is -1; expected a whole number, 1 or more"),
        (lambda n: hl.score(n, batches(), alpha=0), "alpha is 0; expected a number above 0"),
        (lambda n: hl.score(n, batches(), max_batches=0), "no batches to score on"),
        (lambda n: hl.score(n, batches(), max_batches=-1), "max_batches is -1; expected a whole number, 0 or more"),
        (lambda n: hl.score(n, batches(), warmup_batches=-2), "warmup_batches is -2; expected a whole number"),
        (lambda n: hl.score(n, batches(), warmup_lr=-1e-3), "warmup_lr is -0.001; expected a number above 0"),
        (lambda n: hl.score(n, batches(), seed=-1), "seed is -1; expected a whole number, 0 or more"),
        (lambda n: hl.score(n, batches(), seed=0.5), "seed is 0.5; expected a whole number"),
        (lambda n: hl.score(n.to("meta"), batches()), "without values .* load the whole model first"),
        (lambda n: hl.score(made_in_inference_mode(), own_batches(), loss=squared), "made in inference mode; make it"),
        (
            lambda n: hl.score(n, batches(), loss=lambda n, b: n(**b).loss.detach()),
            "does not depend on the scored layers",
        ),
    ],
)
def test_mistakes_are_one_line(call: Callable[[PreTrainedModel], object], message: str) -> None:
    with pytest.raises(hl.UserError, match=message):
        call(neox())


def test_scores_of_the_command_line_make_a_peft_configuration(tmp_path: Path) -> None:
    network = tiny_network("opt", "causal_language_modeling")
    scores = hl.score(network, [], "constant", family=family.get("opt"))
    scores_file.write(tmp_path / "scores.toml", scores)
    again = scores_file.read(tmp_path / "scores.toml")
    config = hl.lora_config(again, share=0.5)
    assert config.to_dict() == hl.lora_config(replace(scores, modules=None), share=0.5).to_dict()
    # A file does not have the paths of the other modules, so the chosen ones are named by whole paths.
    chosen = hl.lora_config(scores, share=0.5).target_modules
    assert {path for path in scores.modules if re.fullmatch(config.target_modules, path)} == set(chosen)


def test_scores_of_any_network_come_back(tmp_path: Path) -> None:
    """Their names are parts of paths, which a configuration of the command line may have."""
    path = tmp_path / "scores.toml"
    for scores in (hl.score(neox(), batches()), hl.score(Own(), own_batches(), loss=squared)):
        scores_file.write(path, scores)
        assert scores_file.read(path) == scores
    network = neox()
    elements = [item.element for item in hl.score(network, batches()).scored]
    given = parse_config(ElementConfig.of(elements, "lora").to_document(), "lora", any_name=True)
    named = given.named(family_of(network, "gpt_neox").accepted)
    assert {name for _, name in named.sites} == {"query_key_value", "o_proj", "w1", "w2"}
    with pytest.raises(hl.UserError, match=r"\[model_layer_0\.layers\]: 'layers' is not known; valid: "):
        ElementConfig.of([item.element for item in scores.scored], "lora").named({"q_proj": "q_proj"})


# ---- unusual callers and networks


def test_gradients_of_an_open_accumulation_window_are_kept() -> None:
    network = Own()
    squared(network, own_batches()[0]).backward()
    kept = [(parameter.grad, parameter.grad.clone()) for parameter in network.parameters()]
    hl.score(network, own_batches(), "snip", loss=squared, warmup_batches=1)
    for parameter, (gradient, values) in zip(network.parameters(), kept, strict=True):
        assert parameter.grad is gradient
        assert torch.equal(gradient, values)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_gets_the_same_scores(mode: Callable[[], object]) -> None:
    network, data = Own(), own_batches()
    expected = hl.score(network, data, "snip", loss=squared, warmup_batches=1)
    with mode():
        found = hl.score(
            network, (tuple(t + 0 for t in batch) for batch in data), "snip", loss=squared, warmup_batches=1
        )
        assert not torch.is_grad_enabled()
    assert found == expected


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_of_either_kind_gives_the_same_scores(reentrant: bool) -> None:
    network = neox().train()
    expected = hl.score(network, batches())
    network.activation_checkpointing_enable({"use_reentrant": reentrant})
    block = network.gpt_neox.layers[0]
    before, kept = state_of(network), block._gradient_checkpointing_func
    assert hl.score(network, batches()) == expected
    assert_same_state(state_of(network), before)
    assert block._gradient_checkpointing_func is kept


def test_a_one_shot_generator_is_read_once_and_no_further_than_needed() -> None:
    read: list[int] = []

    def stream() -> Iterator[dict[str, Tensor]]:
        for index, batch in enumerate(batches()):
            read.append(index)
            yield batch

    network = neox()
    assert hl.score(network, stream(), "snip", max_batches=2) == hl.score(network, batches(2), "snip")
    assert read == [0, 1]


def test_the_random_numbers_of_a_data_loader_are_restored() -> None:
    rows = list(zip(torch.randn(8, 6), torch.randn(8, 3), strict=True))
    loader = torch.utils.data.DataLoader(rows, batch_size=2, shuffle=True)
    network, before = Own(), torch.get_rng_state()
    scores = hl.score(network, loader, loss=squared)
    assert torch.equal(torch.get_rng_state(), before)
    assert hl.score(network, loader, loss=squared) == scores


class SharedLayer(nn.Module):
    """One layer under two names; a method with the name of a classification head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = self.first
        self.last = nn.Linear(6, 3)

    def score(self, x: Tensor) -> Tensor:
        return self.last(self.second(torch.tanh(self.first(x))))

    forward = score


def test_a_shared_layer_is_one_element_and_stays_shared() -> None:
    network = SharedLayer()
    assert set(hl.score(network, own_batches(), loss=squared).by_module()) == {"first", "last"}
    assert network.first is network.second
    assert type(network.first) is nn.Linear


class Encoder(nn.Module):
    """Torch's own Transformer, whose fast path reads the weights of its layers and does not call them."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.encoder(x.unsqueeze(1))).squeeze(1)


def test_torchs_own_transformer_can_be_scored() -> None:
    network = Encoder()
    scores = hl.score(network, own_batches(), loss=squared).by_module()
    linears = {f"encoder.layers.{layer}.linear{index}" for layer in (0, 1) for index in (1, 2)}
    assert set(scores) == {*linears, "last"}  # not attention's out_proj, which is never called
    assert all(score > 0 for score in scores.values())
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_network_that_reads_the_weight_of_a_layer_can_be_scored() -> None:
    shape = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}
    network = T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, **shape))
    assert "encoder.block.0.layer.1.DenseReluDense.wo" in hl.score(network, batches()).by_module()


class ReadsWidths(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) / (self.body.in_features + 10 * self.body.out_features)


def test_a_network_that_reads_the_widths_of_a_layer_can_be_scored() -> None:
    assert hl.score(ReadsWidths(), own_batches(), loss=squared).by_module()["body"] > 0


class Headed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 5)
        self.classifier = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.tanh(self.body(x)))


def test_a_head_that_is_scored_is_trained_once_in_the_warm_up(recwarn: pytest.WarningsRecorder) -> None:
    network = Headed()
    before = state_of(network)
    hl.score(network, own_batches(), "snip", loss=squared, target_modules=["body", "classifier"], warmup_batches=2)
    assert_same_state(state_of(network), before)
    assert not [one for one in recwarn if "duplicate parameters" in str(one.message)]
    assert set(hl.score(network, own_batches(), loss=squared).by_module()) == {"body"}


def test_a_quantised_layer_keeps_its_own_widths() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    network = nn.Sequential(bitsandbytes.nn.Linear4bit(64, 48, bias=False), nn.Linear(48, 3))
    items = hl.score(network, [], "constant").scored
    assert [(item.element.in_features, item.element.out_features) for item in items] == [(64, 48), (48, 3)]


def test_a_quantised_layer_has_no_weight_to_score_by() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    # 32 outputs: on a CPU with AVX512-BF16, bitsandbytes packs layers in groups of 32.
    network = nn.Sequential(bitsandbytes.nn.Linear4bit(64, 32, bias=False), nn.Linear(32, 3)).to("cpu")
    batches = [(torch.randn(4, 64), torch.randn(4, 3))]
    with pytest.raises(hl.UserError, match="weight_gradient needs the weights of the base"):
        hl.score(network, batches, "weight_gradient", loss=squared)


def test_a_loss_function_may_move_the_batches() -> None:
    moved = [(index, *batch) for index, batch in enumerate(own_batches())]
    data = [(torch.tensor(index, device="meta"), x, y) for index, x, y in moved]
    found = hl.score(Own(), data, loss=lambda network, batch: squared(network, batch[1:]))
    assert len(found.scored) == 3


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return Own()


# ---- examples


def run_example(*command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT / "examples", env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_example_with_trainer() -> None:
    out = run_example("finetune_with_trainer.py", "--steps", "4")
    assert "trainable params" in out
    assert "train_runtime" in out


@pytest.mark.slow
def test_the_example_with_images() -> None:
    out = run_example("finetune_vit.py", "--steps", "20")
    assert "vit.layers.0" in out
    assert "trainable params" in out
    assert float(out.rsplit("loss after training: ", 1)[1]) < 0.3  # 0.69 is chance


@pytest.mark.slow
def test_the_example_with_a_network_of_ones_own() -> None:
    assert run_example("score_your_own_network.py").count("best layer: blocks.") == 3


@pytest.mark.slow
def test_the_notebook(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)  # it trains, in a run folder
    monkeypatch.setenv("EXAMPLE_MODEL", str(ROOT / "model" / "toy_opt"))
    notebook = json.loads((ROOT / "examples" / "choose_ranks.ipynb").read_text(encoding="utf-8"))
    scope: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), scope)
    assert scope["config"].rank_pattern
    assert (scope["run"].folder / "reallocation_curve.png").is_file()
