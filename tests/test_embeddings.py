"""LoRA outside of the blocks: on the token embedding and on the output layer, where they are named."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from heterolora import saliency
from heterolora.elements.adapt import adapt, placement_of
from heterolora.elements.config import ElementConfig, parse_config
from heterolora.elements.element import OUTSIDE
from heterolora.elements.found import family_of
from heterolora.saliency.from_training import TrainingGradients
from heterolora.saliency.heuristics.grad_norm import GradNorm
from heterolora.saliency.probe import Watch
from heterolora.saliency.score import score
from model.checkpoint import BaseSource, ModelRecord
from model.merge import fold, unwrap
from model.peft_format.writing import write_adapter
from model.task.token_losses import Head
from tests.adapted import Adapted, lora_config
from tests.architectures import ARCHITECTURES, ENCODER_DECODERS, LM, Architecture
from tests.mistakes import complaint, refusal
from tests.scoring import problem
from tests.test_any_model import Commands, batch_for, labels_for, logits, matrix, places_of
from tests.tiny import tiny_batch
from tests.together import assert_same, both, run_commands, together
from tests.world import command, metrics_of, run, same_weights, weights
from tools import export, inspect_model, realloc_lora_rank

BOTH = tuple(OUTSIDE)
EVERY = "all,embed_tokens,lm_head"


def with_outside(*names: str) -> ElementConfig:
    config = lora_config()
    return replace(config, sites={(OUTSIDE[name], name): config.default for name in names})


def adapted_outside(architecture: Architecture, *names: str) -> Adapted:
    network = architecture.network()
    family = family_of(network, architecture.model_type)
    return Adapted(network, adapt(network, placement_of(network, family, with_outside(*names or BOTH))), {})


def outside(made: Adapted) -> dict[str, torch.nn.Module]:
    return {each.element.name: each for each in made.space if each.element.is_outside}


@matrix
def test_start_step_adapter_and_merge(architecture: Architecture, tmp_path: Path) -> None:
    """In PEFT's files and merged, the model computes the same. A weight that both share is untied."""
    base, batch, made = architecture.network(), batch_for(architecture), adapted_outside(architecture)
    expected = BOTH if architecture.task == LM else ("embed_tokens",)
    assert tuple(outside(made)) == expected
    assert made.space.elements[0].name == "embed_tokens", "before the blocks"
    assert torch.equal(logits(made.network, batch), logits(base, batch)), "it starts as the base"
    made.network.train()(**batch, labels=labels_for(architecture, batch)).loss.backward()
    assert all(low_rank.B.grad.any() for low_rank in outside(made).values())

    trained = logits(made.train_b(std=0.1).network, batch)
    base.save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    record = ModelRecord("train", {}, BaseSource(str(tmp_path / "base")), "")
    write_adapter(tmp_path / "adapter", made.network, made.space, architecture.task, record)
    loaded = peft.PeftModel.from_pretrained(architecture.network(), tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded, batch), trained, rtol=1e-5, atol=1e-5)

    transposed = unwrap(made.network, made.space)
    fold(made.space, dict(made.network.named_parameters()).__getitem__, transposed)
    made.network.save_pretrained(tmp_path / "merged")
    merged = type(base).from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged, batch), trained, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "distilbert"])
def test_every_action(name: str, tmp_path: Path, capfd) -> None:
    """The layer's own name and its path are names too."""
    commands = Commands(ARCHITECTURES[name], tmp_path)
    target = {"gemma2": EVERY, "gpt2": "all,wte,lm_head", "distilbert": "all,word_embeddings"}[name]
    number = target.count(",")
    base = ("--load", commands.base, "--target", target)
    trained = commands.run("train", "train", *base, "--max-steps", 4)
    last, best = (trained / "checkpoints" / file for file in ("last.ckpt", "best.ckpt"))
    found = {key: value for key, value in weights(last).items() if "embed" in key or "wte" in key or "lm_head" in key}
    assert len(found) == 2 * number
    assert all(value.any() for value in found.values()), "they were trained"
    cut = commands.run("train", "cut", *base, "--max-steps", 2) / "checkpoints" / "last.ckpt"
    assert run("train", "--resume-training", "--load", cut, "--max-steps", 4) == 0
    assert same_weights(last, cut), "a resumed run ends with the same bits"
    again = commands.run("train", "again", "--config", trained / "config.toml")
    assert same_weights(last, again / "checkpoints" / "last.ckpt")

    export.main([str(trained), "--format", "merged", "--output", str(tmp_path / "merged")])
    measured = metrics_of(trained)
    results = {"checkpoint": ("--load", best), "adapter": ("--load", trained / "adapter")}
    for kind, result in {**results, "merged": ("--model", tmp_path / "merged")}.items():
        found = metrics_of(commands.run("test", f"test-{kind}", *result))
        for split in measured.keys() & found.keys():
            assert found[split]["loss"] == pytest.approx(measured[split]["loss"], abs=1e-5), kind

    few = ("--importance-test-name", "grad_norm", "--imp-limit-test-batches", 2)
    scored = commands.run("imp-test", "scores", *base, *few)
    assert (scored / "scores.toml").read_text().count("[outside.") == number
    realloc_lora_rank.main([str(scored), "--turn-on-percentile", "1.0", "--output", str(tmp_path / "all.toml")])
    chosen = commands.run("train", "chosen", "--load", commands.base, "--lora-config", tmp_path / "all.toml")
    assert weights(chosen / "checkpoints" / "last.ckpt").keys() == weights(last).keys()
    for source in ("dedicated", "training"):
        search = ("--max-steps", 4, "--realloc-N", 2, "--imp-source", source)
        searched = commands.run("train-dyrealloc", source, *base, *few, *search)
        assert 'name = "embed_tokens"' in (searched / "reallocation_history.toml").read_text()
        assert "[outside]" in (searched / "reallocation_frequency.toml").read_text()
        assert (searched / "lora.toml").read_text().count("[outside.") == number
        assert "| outside |" in (searched / "adapter" / "README.md").read_text()
    capfd.readouterr()
    inspect_model.main(["--load", str(trained)])
    assert "outside" in capfd.readouterr().out


@pytest.mark.parametrize("name", ["gemma3_text", "opt"])
def test_the_loss_in_chunks_has_the_gradients_of_all_logits(name: str, monkeypatch) -> None:
    made = adapted_outside(ARCHITECTURES[name]).train_b()
    monkeypatch.setattr("model.task.token_losses.CHUNK_ELEMENTS", 1)
    batch = tiny_batch()
    targets, kept = batch["input_ids"].roll(-1, 1), batch["attention_mask"].bool()
    total, _ = Head(made.network).losses(batch, targets, kept)
    found = torch.autograd.grad(total, made.space.parameters)
    total = F.cross_entropy(made.network(**batch).logits[kept], targets[kept], reduction="sum")
    for ours, theirs in zip(found, torch.autograd.grad(total, made.space.parameters), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


class _Gradient(Watch):
    """∂L/∂W of a place."""

    def __init__(self) -> None:
        self.anchor, self.G = torch.zeros(0, requires_grad=True), torch.zeros(())

    def add(self, x: Tensor, G: Tensor) -> None:
        self.G = self.G + G.t() @ x

    def add_weight(self, G: Tensor) -> None: ...


def test_a_heuristic_sees_the_gradient_of_the_mean_loss_at_the_output_layer() -> None:
    """Not that of the sum, which the loss in chunks computes."""
    made = adapted_outside(ARCHITECTURES["llama"], "lm_head").train_b()
    low_rank, batch = outside(made)["lm_head"], tiny_batch()
    low_rank.probe = watch = _Gradient()
    targets, kept = batch["input_ids"].roll(-1, 1), batch["attention_mask"].bool()
    (Head(made.network).losses(batch, targets, kept)[0] / 10).backward()
    of_B = low_rank.scaling * watch.G @ low_rank.A.t()
    torch.testing.assert_close(of_B, low_rank.B.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["gemma3_text", "llama"])
def test_a_probe_of_an_embedding_that_is_off_has_the_gradients_of_one_that_is_on(name: str) -> None:
    """Also where the embedding scales its rows. B is not changed by switching, and is 0 in both."""
    made, found = adapted_outside(ARCHITECTURES[name], "embed_tokens"), []
    embedding, batch = outside(made)["embed_tokens"], tiny_batch()
    for on in (True, False):
        made.space.switch({each.key for each in made.space.elements if on or not each.is_outside})
        gradients = TrainingGradients(made.space, GradNorm())
        gradients.start()
        made.network(**batch, labels=batch["input_ids"]).loss.backward()
        gradients.collect()
        found.append(gradients.scores()[embedding.element.key])
        gradients.stop()
        made.network.zero_grad()
    assert found[0] > 0
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_every_heuristic_scores_it_or_says_that_it_cannot() -> None:
    made = adapted_outside(ARCHITECTURES["llama"]).train_b()
    of_network = problem(made, [tiny_batch() for _ in range(2)])
    without_vectors = ("activation", "spectral", "weight_grad_norm", "weight_gradient")
    for name in saliency.names():
        if name == "synflow" or name in without_vectors:
            said = refusal(score, name, of_network)
            assert said.startswith(f"{name} cannot score embed_tokens, which is outside of the blocks; leave it"), name
            continue
        assert all(map(math.isfinite, score(name, of_network).values())), name
    of_output = problem(adapted_outside(ARCHITECTURES["llama"], "lm_head").train_b(), [tiny_batch() for _ in range(2)])
    assert "synflow cannot score lm_head" in refusal(score, "synflow", of_output)
    for name in without_vectors:
        assert score(name, of_output)["outside.lm_head"] > 0, name


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_encoder_decoders(name: str, tmp_path: Path, capfd) -> None:
    """Their embedding is several modules, and the output layer may be one of them."""
    commands = Commands(ENCODER_DECODERS[name], tmp_path)
    base = ("--load", commands.base, "--max-steps", 1)
    said = complaint(capfd, *command("train", *commands.data, *base, "--target", "all,embed_tokens"))
    assert f"{name} has no embed_tokens" in said
    trained = commands.run("train", "train", *base, "--target", "all,lm_head")
    loss = metrics_of(trained)["test"]["loss"]
    again = metrics_of(commands.run("test", "test", "--load", trained / "adapter"))["test"]["loss"]
    assert again == pytest.approx(loss, abs=1e-5)
    said = refusal(export.main, [str(trained), "--format", "merged", "--output", str(tmp_path / "merged")])
    assert "the output layer has LoRA, and shares its weight with the embeddings of encoder and decoder" in said


def test_an_adapter_that_peft_trained(tmp_path: Path, capfd) -> None:
    """PEFT writes the weights of the base too. Others than those of the base are refused."""
    commands = Commands(ARCHITECTURES["gpt_neox"], tmp_path)
    network = AutoModelForCausalLM.from_pretrained(commands.base)
    targets = ["query_key_value", "embed_in", "lm_head"]
    model = peft.get_peft_model(network, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=targets))
    trained = [value for key, value in model.named_parameters() if "lora_" in key]
    with torch.no_grad():
        for value in trained:
            value.normal_(std=0.05)
    model.save_pretrained(tmp_path / "adapter")  # of itself with the weights of both
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    for file in commands.base.glob("*token*"):
        (tmp_path / "merged" / file.name).write_bytes(file.read_bytes())
    ours = metrics_of(commands.run("test", "ours", "--load", tmp_path / "adapter"))["test"]["loss"]
    theirs = metrics_of(commands.run("test", "theirs", "--model", tmp_path / "merged"))["test"]["loss"]
    assert ours == pytest.approx(theirs, abs=1e-5)
    other = AutoModelForCausalLM.from_pretrained(commands.base)
    other.gpt_neox.embed_in.weight.data += 1
    other.save_pretrained(commands.base)
    said = complaint(capfd, *command("test", *commands.data, "--load", tmp_path / "adapter"))
    assert "has other weights of gpt_neox.embed_in than the base" in said


def test_mistakes(tmp_path: Path, capfd) -> None:
    commands = Commands(ARCHITECTURES["gpt2"], tmp_path)

    def refused(*more: object) -> str:
        return complaint(capfd, *command("train", *commands.data, "--load", commands.base, *more))

    assert "'wpe' is not known" in refused("--target", "all,wpe")
    assert "--lora-init gradient cannot start LoRA on embed_tokens, which is outside" in refused(
        "--target", "wte", "--lora-init", "gradient"
    )
    (tmp_path / "lora.toml").write_text('granularity = "network"\n[outside.head]\nr = 2\nlora_alpha = 4\n')
    said = refused("--lora-config", tmp_path / "lora.toml")
    assert "lora.toml: [outside.head]: 'head' is not known; did you mean 'lm_head'?" in said
    run("train", *commands.data, "--load", commands.base, "--target", "lm_head", "--project-dir", tmp_path / "runs",
        "--project", "run", "--max-steps", 1)  # fmt: skip
    for_vllm = [str(tmp_path / "runs" / "run"), "--format", "vllm", "--output", str(tmp_path / "vllm")]
    assert "--format vllm cannot hold LoRA on lm_head, which is outside of the blocks; use" in refusal(
        export.main, for_vllm
    )


def test_a_classifier_has_no_output_layer(tmp_path: Path, capfd) -> None:
    commands = Commands(ARCHITECTURES["bert"], tmp_path)
    words = (*commands.data, "--load", commands.base)
    assert "bert has no lm_head" in complaint(capfd, *command("train", *words, "--target", "all,lm_head"))
    assert "'classifier' is not known" in complaint(capfd, *command("train", *words, "--target", "classifier"))


def test_a_configuration_names_it_in_both_kinds_of_granularity() -> None:
    for granularity in ("network", "layer"):
        document = {"granularity": granularity, "default": {"r": 4, "lora_alpha": 8}, "outside": {"lm_head": {"r": 2}}}
        config = parse_config(document, "lora")
        assert config.lookup(OUTSIDE["lm_head"], "lm_head").rank == 2
        assert config.lookup(OUTSIDE["embed_tokens"], "embed_tokens") is None, "only where it is named"
        assert config.lookup(0, "q_proj").rank == 4
        assert parse_config(config.to_document(), "lora") == config


def test_the_blocks_below_the_output_layer_are_frozen(tmp_path: Path) -> None:
    """--cache-frozen-prefix keeps the output of all blocks, and gives the same bits."""
    commands = Commands(ARCHITECTURES["llama"], tmp_path)
    words = ("--load", commands.base, "--target", "lm_head", "--max-epochs", 2, "--learning-rate", 1e-2)
    plain = commands.run("train", "plain", *words)
    assert len(places_of(plain, "network.")) == 1
    cached = commands.run("train", "cached", *words, "--cache-frozen-prefix")
    assert same_weights(*(folder / "checkpoints" / "last.ckpt" for folder in (plain, cached)))


def test_a_configuration_may_have_the_own_names(tmp_path: Path, capfd) -> None:
    commands = Commands(ARCHITECTURES["gpt2"], tmp_path)
    tables = "".join(f"[outside.{name}]\nr = 2\n" for name in ("wte", '"lm_head"'))
    head = 'granularity = "network"\n[default]\nr = 0\nlora_alpha = 4\n'
    (tmp_path / "lora.toml").write_text(f"{head}{tables}")
    words = ("--load", commands.base, "--max-steps", 1, "--lora-config", tmp_path / "lora.toml")
    trained = commands.run("train", "train", *words)
    assert places_of(trained, "network.") == {"transformer.wte", "lm_head"}
    (tmp_path / "lora.toml").write_text(f"{head}{tables}[outside.embed_tokens]\nr = 2\n")
    said = complaint(capfd, *command("train", *commands.data, *words))
    assert "[outside.embed_tokens] names embed_tokens a second time" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma2", "gpt_neox"])
def test_training_with_a_sharded_base(name: str, tmp_path: Path) -> None:
    """On two processes, it gives the bits of a replicated one."""
    commands = Commands(ARCHITECTURES[name], tmp_path)
    shared = ("--load", commands.base, "--target", EVERY, "--max-steps", 2, "--project-dir", tmp_path)
    together(2, run_commands, both("train", *commands.data, *shared))
    assert_same(tmp_path)
