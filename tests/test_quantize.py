"""Quantised bases: bitsandbytes where it is installed, and a stand-in whose layers have no usual weight."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

import actions.training.experiment
import actions.training.trainer
from actions.command.command import Command
from actions.request.elements import request_of
from dataset import registry
from heterolora.common.errors import UserError
from heterolora.elements.search_space import SearchSpace
from heterolora.saliency.problem import Loss, Problem
from heterolora.saliency.score import score
from model import family, quantize
from model.checkpoint import BaseSource
from model.load import Base, enable_gradient_checkpointing, load_base, load_config, load_tokenizer
from model.parameters import count
from model.quantize import check_quantize
from tests.adapted import gradients, lora_config, put_into, shortcut_config
from tests.packed import PackedLinear, pack, round_to_packed
from tests.tiny import tiny_batch, tiny_network
from tests.world import World, metrics_of, model_folder, run, same_weights, weights

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
FAMILIES = {"opt": "causal_language_modeling", "roberta": "classification", "gemma": "classification"}
KINDS = ("nf4", "int8")


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantise on the CPU, which the program refuses because it is slow."""
    monkeypatch.setattr(actions.training.trainer, "check_quantize", lambda *_: None)


# ---- a stand-in


def twins(name: str, elements_seed: int = 0) -> tuple[tuple[nn.Module, SearchSpace], tuple[nn.Module, SearchSpace]]:
    """The same adapted network with packed layers, and with plain ones of the same values; B as if trained."""
    made = []
    for change in (pack, round_to_packed):
        network = tiny_network(name, FAMILIES[name])
        change(network)
        torch.manual_seed(elements_seed)
        space = put_into(network, family.get(name), lora_config(), shortcut_config())
        for low_rank in space:
            nn.init.normal_(low_rank.B, std=0.1)
        made.append((network, space))
    return made[0], made[1]


def loss_of(network: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return network(**batch).logits.square().mean()


@pytest.mark.parametrize("name", FAMILIES)
class TestStandIn:
    def test_every_linear_of_a_block_is_wrapped(self, name: str) -> None:
        (network, space), _ = twins(name)
        wrapped = [network.get_submodule(low_rank.element.module).base for low_rank in space.of_kind("lora")]
        assert len(wrapped) == 2 * len(family.get(name).linears)
        assert all(isinstance(base, PackedLinear) for base in wrapped)
        assert not any(parameter.requires_grad for base in wrapped for parameter in base.parameters())

    def test_adapting_changes_nothing(self, name: str) -> None:
        network, batch = tiny_network(name, FAMILIES[name]), tiny_batch()
        pack(network)
        before = network(**batch).logits
        put_into(network, family.get(name), lora_config(), shortcut_config())
        assert torch.equal(network(**batch).logits, before)

    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_gradients_are_those_of_plain_layers(self, name: str, checkpointing: bool) -> None:
        found = []
        for network, space in twins(name):
            if checkpointing:
                enable_gradient_checkpointing(network, space)
            loss_of(network.train(), tiny_batch()).backward()
            found.append(gradients(space))
        assert found[0].keys() == found[1].keys()
        for key, gradient in found[0].items():
            torch.testing.assert_close(gradient, found[1][key], rtol=1e-5, atol=1e-7)

    def test_training_leaves_the_base(self, name: str) -> None:
        (network, _), _ = twins(name)
        frozen = {name: p.clone() for name, p in network.named_parameters() if not p.requires_grad}
        frozen |= {name: buffer.clone() for name, buffer in network.named_buffers()}
        optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-3)
        losses = []
        for _ in range(4):
            loss = loss_of(network, tiny_batch())
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert losses[-1] < losses[0]
        assert any(name.endswith("packed") for name in frozen)
        after = network.state_dict(keep_vars=True) | dict(network.named_buffers())
        assert all(torch.equal(after[name], value) for name, value in frozen.items())

    def test_scores_are_those_of_plain_layers(self, name: str) -> None:
        def evaluate_with(network: nn.Module):
            def evaluate(batch: dict[str, torch.Tensor]) -> Loss:
                logits = network(**batch).logits
                return Loss(logits.square().sum(), torch.tensor(logits.numel()), logits)

            return evaluate

        batches = [tiny_batch(seed=seed) for seed in (0, 1)]
        packed, plain = (
            score("grad_norm", Problem(network, space, evaluate_with(network), batches))
            for network, space in twins(name)
        )
        assert packed == pytest.approx(plain, rel=1e-4)
        assert min(packed.values()) > 0


@pytest.fixture
def packed_bases(monkeypatch: pytest.MonkeyPatch, on_cpu: None) -> None:
    """`--quantize` packs layers by the stand-in."""

    def load_and_pack(*arguments: object, **named: object) -> Base:
        *plain, kind = arguments
        base = load_base(*plain, **named)
        if kind is not None:
            pack(base.network)
        return base

    monkeypatch.setattr(actions.training.experiment, "load_base", load_and_pack)


def test_a_packed_run_from_training_to_testing(packed_bases: None, world: World, tmp_path: Path) -> None:
    options = ("--quantize", "nf4", "--project-dir", tmp_path, "--precision", "bf16-mixed")
    assert run(*world.training(*options, "--project", "whole", "--max-steps", 6)) == 0
    whole = tmp_path / "whole" / "checkpoints" / "last.ckpt"
    state = weights(whole)
    assert {name.rsplit(".", 1)[1] for name in state if "low_rank" in name} == {"A", "B"}
    assert not any("packed" in name or "scale" in name for name in state)

    assert run(*world.training(*options, "--project", "cut", "--max-steps", 3)) == 0
    cut = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    assert run("train", "--resume-training", "--load", cut, "--max-steps", 6) == 0
    assert same_weights(whole, cut)

    best = tmp_path / "whole" / "checkpoints" / "best.ckpt"
    # The same batches as after training: bfloat16 products may round by the shape of the batch.
    test = ("test", "--load", best, "--project-dir", tmp_path, "--precision", "bf16-mixed", "--batch-size", "4")
    assert run(*test, "--project", "again") == 0  # the checkpoint says that its base is quantised
    assert metrics_of(tmp_path / "again") == metrics_of(tmp_path / "whole")


# ---- bitsandbytes itself, on the CPU


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers of 64 and 128 inputs: bitsandbytes quantises in blocks of 64."""
    return model_folder(tmp_path_factory.mktemp("wide"), hidden_size=64, ffn_dim=128, word_embed_proj_dim=64)


def loaded(folder: Path, kind: str | None, task: str = "sst2", precision: str = "32") -> Base:
    spec = registry.get(task)
    config = load_config(str(folder), spec)
    return load_base(BaseSource(str(folder)), config, load_tokenizer(str(folder), config), spec.task, precision, kind)


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
class TestBitsAndBytes:
    def test_what_is_quantised(self, wide: Path, kind: str) -> None:
        import bitsandbytes

        layer = {"nf4": bitsandbytes.nn.Linear4bit, "int8": bitsandbytes.nn.Linear8bitLt}[kind]
        base = loaded(wide, kind)
        block = base.network.model.decoder.layers[0]
        assert all(isinstance(block.get_submodule(path), layer) for path in family.get("opt").linears.values())
        assert type(base.network.score) is nn.Linear
        assert base.network.score.weight.dtype == torch.float32
        assert base.network.model.decoder.embed_tokens.weight.dtype == torch.float32
        assert base.untrained_head
        assert type(loaded(wide, kind, "wikitext2").network.lm_head) is nn.Linear
        if kind == "nf4":
            assert block.fc1.weight.quant_state.quant_type == "nf4"

    def test_the_same_base_whether_quantised_or_not(self, wide: Path, kind: str, tmp_path: Path) -> None:
        plain = loaded(wide, None)
        quantised = loaded(wide, kind, precision="bf16-true")
        assert quantised.sha256 == plain.sha256
        assert quantised.network.model.decoder.embed_tokens.weight.dtype == torch.bfloat16
        other = model_folder(tmp_path / "other", hidden_size=64, ffn_dim=128, word_embed_proj_dim=64, seed=1)
        assert loaded(other, kind).sha256 != plain.sha256

    def test_counts_weights_and_not_bytes(self, wide: Path, kind: str) -> None:
        plain, quantised = loaded(wide, None).network, loaded(wide, kind).network
        spaces = [put_into(network, family.get("opt"), lora_config()) for network in (plain, quantised)]
        assert count(quantised, spaces[1]) == count(plain, spaces[0])

    def test_close_to_the_base(self, wide: Path, kind: str) -> None:
        batch = tiny_batch()
        plain, quantised = loaded(wide, None).network, loaded(wide, kind).network
        quantised.score.load_state_dict(plain.score.state_dict())
        found, expected = (network.eval()(**batch).logits for network in (quantised, plain))
        assert 0 < (found - expected).abs().max() < 0.3 * expected.abs().max()

    @pytest.mark.slow
    def test_a_run_from_training_to_testing(self, on_cpu: None, world: World, wide: Path, tmp_path: Path, kind) -> None:
        options = ("--load", wide, "--quantize", kind, "--project-dir", tmp_path, "--limit-val-batches", 2)
        assert run(*world.training(*options, "--project", "whole", "--max-steps", 4)) == 0
        assert run(*world.training(*options, "--project", "cut", "--max-steps", 2)) == 0
        whole, cut = (tmp_path / name / "checkpoints" / "last.ckpt" for name in ("whole", "cut"))
        assert run("train", "--resume-training", "--load", cut, "--max-steps", 4) == 0
        assert same_weights(whole, cut)
        best = tmp_path / "whole" / "checkpoints" / "best.ckpt"
        assert run("test", "--load", best, "--project-dir", tmp_path, "--project", "again") == 0
        assert run("test", "--load", best, "--project-dir", tmp_path, "--project", "plain", "--quantize", "none") == 0
        for name in ("again", "plain"):
            loss = metrics_of(tmp_path / name)["validation"]["loss"]
            assert loss == pytest.approx(metrics_of(tmp_path / "whole")["validation"]["loss"], rel=0.05)


# ---- mistakes


class TestMistakes:
    def test_no_gpu_is_said_before_anything_loads(self, capsys, world: World, tmp_path: Path) -> None:
        arguments = ("--quantize", "nf4", "--load", tmp_path / "nowhere", "--project-dir", tmp_path / "runs")
        assert run(*world.training(*arguments)) == 2
        assert capsys.readouterr().err.splitlines() == [
            "error: --quantize nf4 needs a GPU; leave it out here; for a quantised checkpoint give --quantize none"
        ]
        assert not (tmp_path / "runs").exists()

    def test_packages_that_are_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(quantize.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match="--quantize int8 needs bitsandbytes and accelerate; pip install"):
            check_quantize("int8", "32", on_gpu=True)

    def test_double_precision(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(quantize.importlib.util, "find_spec", lambda name: object())
        check_quantize("nf4", "bf16-true", on_gpu=True)
        with pytest.raises(UserError, match="does not go with --precision 64"):
            check_quantize("nf4", "64", on_gpu=True)

    def test_a_plain_model(self, capsys, world: World) -> None:
        model = ("train", world.opt, "sst2", "--pretrained", "--dataset-saved-path", world.sst2)
        assert run(*model, "--quantize", "nf4") == 2
        assert "--quantize nf4 is given, but" in capsys.readouterr().err

    def test_weights_that_are_made_anew(self, world: World) -> None:
        typed = {"model": "opt_lora", "dataset": "sst2", "load": str(world.opt), "quantize": "nf4"}
        with pytest.raises(UserError, match="needs pretrained weights"):
            request_of(Command("train", {**typed, "pretrained": False}))
        request_of(Command("train", typed))

    @pytest.mark.parametrize("name", ["synflow", "weight_gradient"])
    def test_a_score_that_reads_the_base(self, world: World, name: str) -> None:
        typed = {"model": "opt_lora", "dataset": "sst2", "load": str(world.opt), "quantize": "int8"}
        by_weights = {**typed, "importance_test_name": name}
        with pytest.raises(UserError, match=f"{name} cannot be used with --quantize"):
            request_of(Command("imp-test", by_weights))
        request_of(Command("train", by_weights))  # nothing is scored
        request_of(Command("imp-test", typed))

    def test_a_base_that_is_quantised_already(self, capsys, world: World, tmp_path: Path) -> None:
        folder = model_folder(tmp_path / "quantised")
        config = (folder / "config.json").read_text()
        (folder / "config.json").write_text(config.replace("{", '{"quantization_config": {"load_in_4bit": true},', 1))
        assert run(*world.training("--load", folder)) == 2
        assert "is quantised already; give the unquantised model, and --quantize" in capsys.readouterr().err
