"""Rows that share a sequence: loss and gradients are those of the rows apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    FalconForCausalLM,
    GPTNeoForCausalLM,
    Lfm2ForCausalLM,
    PreTrainedModel,
    RobertaForCausalLM,
)

from dataset.batching.collate import Collator
from dataset.batching.packing import first_fit, pack
from tests.tiny import PAD, VOCABULARY, tiny_network, word_tokenizer
from tests.world import World, instruction_folder, run, weights, write_lora

LENGTHS, CONTEXTS, SIZE = (9, 4, 6, 12, 3), (3, 0, 1, 5, 2), 16


@pytest.fixture(scope="module")
def rows() -> list[dict[str, object]]:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in LENGTHS]
    return [
        {"input_ids": own, "context": context, "length": len(own), "weight": 1.0}
        for own, context in zip(ids, CONTEXTS, strict=True)
    ]


def test_first_fit() -> None:
    packs = first_fit(LENGTHS, SIZE)
    assert sorted(row for members in packs for row in members) == list(range(len(LENGTHS)))
    assert packs == [[3, 1], [0, 2], [4]]  # 12 + 4 = 16, 9 + 6 = 15, 3
    assert first_fit([20, 2], SIZE) == [[0], [1]]


@pytest.mark.parametrize("family", ["opt", "gemma", "llama", "qwen2"])
def test_loss_and_gradients(rows, family: str) -> None:
    network = tiny_network(family, "causal_language_modeling").requires_grad_(True)
    apart = torch.zeros(())
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        first = max(row["context"], 1)
        logits = network(input_ids=ids).logits[0, first - 1 : -1]
        apart = apart + F.cross_entropy(logits, ids[0, first:], reduction="sum")
    expected = torch.autograd.grad(apart, list(network.parameters()))
    batch = pack(rows, SIZE, PAD)
    assert batch["input_ids"].shape == (3, 16)
    names = ("input_ids", "position_ids", "attention_mask")
    logits = network(**{name: batch[name] for name in names}).logits
    together = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=0)
    for found, wanted in zip(torch.autograd.grad(together, list(network.parameters())), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max() + 1))


def test_a_filler_row_has_no_target(rows) -> None:
    fillers = [{**row, "weight": 0.0} for row in rows]
    assert (pack(fillers, SIZE, PAD)["labels"] == -100).all()


@pytest.fixture(scope="module")
def instructions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return instruction_folder(tmp_path_factory.mktemp("data") / "alpaca", 22)


def trained(world: World, folder: Path, data: Path, name: str, *more: object) -> dict[str, torch.Tensor]:
    arguments = ("opt_lora", "alpaca", "--dataset-saved-path", data, "--load", world.opt, "--pretrained")
    lora = write_lora(folder / "lora.toml", "q_proj", "v_proj", "w1")  # without dropout
    arguments += ("--lora-config", lora, "--max-token-len", 60, "--batch-size", 4, "--max-epochs", 1)
    arguments += ("--optimizer", "sgd", "--learning-rate", 0.05, "--project-dir", folder, "--project", name)
    assert run("train", *arguments, *more) == 0
    return weights(folder / name / "checkpoints" / "last.ckpt")


def test_a_run_with_packing_or_another_attention_gives_the_same_weights(world, instructions, tmp_path, capfd) -> None:
    plain = trained(world, tmp_path, instructions, "plain")
    for name, more in {"packed": ("--packing",), "eager": ("--attention", "eager")}.items():
        found = trained(world, tmp_path, instructions, name, *more)
        assert found.keys() == plain.keys()
        for key in plain:
            torch.testing.assert_close(found[key], plain[key], rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(found[key], plain[key]) for key in plain)  # another kernel did the work
    capfd.readouterr()
    arguments = ("opt_lora", "alpaca", "--dataset-saved-path", instructions, "--load", world.opt)
    for more, words in {
        ("--packing", "--attention", "eager"): "--packing does not work with --attention eager",
        ("--attention", "flash_attention_2"): "flash_attention_2 needs",
        ("--attention", "sdp"): "did you mean 'sdpa'",
    }.items():
        assert run("train", *arguments, *more) == 2
        assert words in capfd.readouterr().err


def test_packing_and_reused_blocks(world, instructions, tmp_path) -> None:
    """Two epochs, which pack the rows in other ways."""
    upper = tmp_path / "upper.toml"
    upper.write_text(
        'granularity = "layer"\n[default]\nr = 4\nlora_alpha = 8\ndisable_adapter = true\n'
        "[model_layer_1.q_proj]\ndisable_adapter = false\n[model_layer_1.w1]\ndisable_adapter = false\n"
    )
    more = ("--lora-config", upper, "--max-epochs", 2)
    plain = trained(world, tmp_path, instructions, "whole", *more)
    found = trained(world, tmp_path, instructions, "reused", *more, "--packing", "--cache-frozen-prefix")
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-6)


def test_packs_longer_than_the_attention_window(world, instructions, tmp_path, capfd) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world.opt)
    tokenizer.save_pretrained(tmp_path)
    tiny_network("mistral", "causal_language_modeling", sliding_window=32, vocab_size=len(tokenizer)).save_pretrained(
        tmp_path
    )
    arguments = ("mistral_lora", "alpaca", "--dataset-saved-path", instructions, "--load", tmp_path, "--packing")
    assert run("train", *arguments, "--max-token-len", 33, "--project-dir", tmp_path) == 2
    assert "give --max-token-len of at most 32" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("made", "has"),
    [
        (GPTNeoForCausalLM, "it has the attention 'eager'"),
        (Lfm2ForCausalLM, "it has layers of the type conv"),
        (RobertaForCausalLM, "a packed row gets other outputs than alone"),
        (FalconForCausalLM, "it fails on packed rows"),
    ],
)
def test_models_whose_packed_rows_would_see_each_other(
    world: World, instructions: Path, tmp_path: Path, capfd, made: type[PreTrainedModel], has: str
) -> None:
    AutoTokenizer.from_pretrained(world.opt).save_pretrained(tmp_path)
    shape: dict[str, object] = {
        "vocab_size": 600,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_heads": 4,
        "num_key_value_heads": 4,
    }
    if made is GPTNeoForCausalLM:
        shape |= {"num_layers": 2, "attention_types": [[["global"], 2]]}
    elif made is RobertaForCausalLM:  # positions start after the padding index
        shape |= {"num_hidden_layers": 2, "is_decoder": True}
    elif made is FalconForCausalLM:
        shape |= {"num_hidden_layers": 2, "alibi": True}
    else:
        shape |= {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}
    made(made.config_class(**shape)).save_pretrained(tmp_path)
    data = ("--dataset", "alpaca", "--dataset-saved-path", instructions, "--packing")
    assert run("train", "--model", tmp_path, *data, "--project-dir", tmp_path) == 2
    said = capfd.readouterr().err
    assert f"--packing does not work with {made.config_class.model_type}: " in said
    assert has in said


def test_packing_without_effect(world, tmp_path, capfd) -> None:
    assert run(*world.training("--packing", "--max-steps", 1, "--project-dir", tmp_path)) == 0
    assert "--packing has no effect on classification" in capfd.readouterr().out


@pytest.mark.parametrize("size", [None, SIZE], ids=["padded", "packed"])
def test_the_numbers_of_tokens_and_targets(rows, size: int | None) -> None:
    some = [{**row, "index": place, "weight": float(place > 0)} for place, row in enumerate(rows)]
    batch = Collator(word_tokenizer(["a"]), pack_to=size)(some)
    labels = batch["labels"][:, 1:] if size else batch["labels"][1:, 1:]  # row 0 is a filler
    assert (batch["tokens"], batch["targets"]) == (sum(LENGTHS), int((labels != -100).sum()))
