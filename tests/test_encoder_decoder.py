"""LoRA on T5 and BART: both parts are adapted, for summaries and for classification."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, distributed

from dataset.batching.targets import IGNORE
from heterolora.elements.adapt import adapt, placement_of
from heterolora.elements.found import family_of
from model.base_family import tasks_of
from model.checkpoint import BaseSource, ModelRecord
from model.merge import fold, unwrap
from model.packing import packing_fails
from model.peft_format.writing import write_adapter
from model.sharding import Sharding, shard
from model.task.encoder_decoder import encoder_inputs, two_parts
from tests.adapted import Adapted, lora_config, put_into
from tests.architectures import CLASSIFICATION, ENCODER_DECODERS, SUMMARIZATION, Architecture
from tests.mistakes import complaint, refusal
from tests.test_any_model import Commands, packed_as_loaded
from tests.tiny import PAD, tiny_batch
from tests.together import together
from tests.world import command, run
from tools import realloc_lora_rank

both = pytest.mark.parametrize("architecture", ENCODER_DECODERS.values(), ids=ENCODER_DECODERS.keys())
tasks = pytest.mark.parametrize("task", [SUMMARIZATION, CLASSIFICATION])


@torch.no_grad()
def logits(network: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return network.eval()(**batch).logits


def batch_for(task: str) -> dict[str, Tensor]:
    batch = tiny_batch(padding=None)
    batch["input_ids"][:, -1] = 2  # a classifier reads the end of each row
    return batch if task == CLASSIFICATION else {**batch, "decoder_input_ids": tiny_batch(seed=1)["input_ids"]}


@both
@tasks
def test_start_adapter_and_merge(architecture: Architecture, task: str, tmp_path: Path) -> None:
    base, network, batch = architecture.network(task=task), architecture.network(task=task), batch_for(task)
    space = adapt(network, placement_of(network, family_of(network, architecture.model_type), lora_config()))
    assert {element.name for element in space.elements} == set(architecture.places.split())
    assert [element.layer for element in space.elements] == [0] * 6 + [1] * 6 + [2] * 10 + [3] * 10
    assert all("decoder" in element.module.split(".") for element in space.elements if element.layer >= 2)
    assert torch.equal(logits(network, batch), logits(base, batch)), "it starts as the base"
    torch.manual_seed(0)
    with torch.no_grad():
        for low_rank in space:
            low_rank.B.normal_(std=0.1)
    trained = logits(network, batch)
    assert (trained - logits(base, batch)).abs().max() > 1e-3

    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", network, space, task, ModelRecord("train", {}, BaseSource("base"), ""))
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["task_type"] == ("SEQ_CLS" if task == CLASSIFICATION else "SEQ_2_SEQ_LM")
    loaded = peft.PeftModel.from_pretrained(architecture.network(task=task), tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded, batch), trained, rtol=1e-5, atol=1e-5)

    transposed = unwrap(network, space)
    fold(space, dict(network.named_parameters()).__getitem__, transposed)
    torch.testing.assert_close(logits(network, batch), trained, rtol=1e-5, atol=1e-5)


@both
def test_the_loss_is_that_of_transformers(architecture: Architecture) -> None:
    network = architecture.network()
    ids = torch.tensor([[10, 11, 12, 20, 21, 2], [13, 14, 22, 2, PAD, PAD]])
    labels = torch.tensor([[IGNORE, IGNORE, IGNORE, 20, 21, 2], [IGNORE, IGNORE, 22, 2, IGNORE, IGNORE]])
    batch = {"input_ids": ids, "labels": labels, "attention_mask": (ids != PAD).long(), "weight": torch.ones(2)}
    inputs, targets, kept = two_parts(batch, network.config)
    assert inputs["input_ids"].tolist() == [[10, 11, 12, 2], [13, 14, 2, PAD]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert targets.tolist() == [[20, 21, 2], [22, 2, IGNORE]]
    assert torch.equal(kept, targets != IGNORE)
    own = torch.nn.functional.cross_entropy(logits(network, inputs)[kept], targets[kept])
    prompts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    theirs = network(**prompts, labels=targets).loss
    torch.testing.assert_close(own, theirs)
    batch["weight"][1] = 0
    assert two_parts(batch, network.config)[2].sum(1).tolist() == [3, 0], "a filler row has no target"


def test_prompts_end_and_are_padded_on_the_right() -> None:
    config = ENCODER_DECODERS["bart"].network().config
    left, right = torch.tensor([[PAD, 10, 11], [12, 13, 14]]), torch.tensor([[10, 11, PAD], [12, 13, 14]])
    for ids in (left, right):
        found, mask = encoder_inputs(ids, (ids != PAD).long(), config)
        assert found.tolist() == [[10, 11, 2, PAD], [12, 13, 14, 2]]
        assert mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


@both
def test_what_they_do(architecture: Architecture) -> None:
    config = architecture.network().config
    assert tasks_of(config) == (CLASSIFICATION, SUMMARIZATION)
    assert "it has an encoder" in packing_fails(config, SUMMARIZATION)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "task"),
    [("t5", SUMMARIZATION), ("t5", CLASSIFICATION), ("bart", SUMMARIZATION), ("bart", CLASSIFICATION)],
)
def test_every_action(name: str, task: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    commands = Commands(replace(ENCODER_DECODERS[name], task=task), tmp_path)
    commands.check_all(tmp_path)
    capfd.readouterr()
    trained = commands.runs / "train"
    assert run("predict", "--load", trained, "--text", "a great film", "--output", tmp_path / "said.jsonl") == 0
    (row,) = map(json.loads, (tmp_path / "said.jsonl").read_text().splitlines())
    assert row.keys() == {"input", *(("label", "probability") if task == CLASSIFICATION else ("text",))}


def test_they_are_no_causal_models(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    commands = Commands(ENCODER_DECODERS["t5"], tmp_path)
    data = ("--dataset", "wikitext2", "--dataset-saved-path", tmp_path, "--load", commands.base)
    assert "t5 models cannot write text, they classify texts and summarise texts" in complaint(
        capfd, *command("train", *data)
    )


@both
def test_shortcuts_are_refused(architecture: Architecture, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    commands = Commands(architecture, tmp_path)
    said = complaint(capfd, *command("train", *commands.data, "--load", commands.base, "--model", "lora_ags"))
    assert f"a model of type '{architecture.model_type}' has no table" in said


def step_of(architecture: Architecture, sharded: bool) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the gradients of all elements."""
    network = architecture.network()
    torch.manual_seed(0)
    space = put_into(network, family_of(network, architecture.model_type), lora_config(), None)
    Adapted(network, space, {}).train_b()
    if sharded:
        shard(network, space, Sharding(2, torch.float32), torch.device("cpu"))
    output = network.train()(**tiny_batch(padding=None), labels=tiny_batch(padding=None)["input_ids"])
    output.loss.backward()
    return output.logits.detach(), [parameter.grad for parameter in space.parameters]


def compare_sharded() -> None:
    distributed.init_process_group("gloo")
    for architecture in ENCODER_DECODERS.values():
        (logits, gradients), (of_sharded, others) = (step_of(architecture, sharded) for sharded in (False, True))
        assert torch.equal(logits, of_sharded)
        for ours, theirs in zip(gradients, others, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_sharded_base_computes_the_same() -> None:
    """On two processes. The blocks of the decoder add to the gradient of the encoder's output in another order."""
    together(2, compare_sharded)


@both
def test_a_base_in_4_bits(architecture: Architecture, tmp_path: Path) -> None:
    """Layers are packed as transformers packs them when it loads a base, which leaves `wo` of T5 in float32."""
    bits = pytest.importorskip("bitsandbytes")
    network, batch = architecture.network(), batch_for(SUMMARIZATION)
    loaded = packed_as_loaded(network, batch, architecture.model_type, tmp_path)
    space = adapt(loaded, placement_of(loaded, family_of(loaded, architecture.model_type), lora_config()))
    for element in space.elements:
        packed = isinstance(loaded.get_submodule(element.module).base, bits.nn.Linear4bit)
        assert packed == (not element.module.endswith(".wo")), element.module
    loaded.train()(**batch).logits.square().sum().backward()
    assert all(low_rank.B.grad.any() for low_rank in space)


def test_a_choice_for_peft_is_of_two_parts(tmp_path: Path) -> None:
    """PEFT's type of the task is that of an adapter of the program. Other trainers train decoders only."""
    commands = Commands(ENCODER_DECODERS["t5"], tmp_path)
    few = ("--importance-test-name", "grad_norm", "--imp-limit-test-batches", 1)
    scored = commands.run("imp-test", "scores", "--load", commands.base, *few)
    words = [str(scored), "--turn-on-percentile", "0.5", "--output", str(tmp_path / "lora.json"), "--format"]
    realloc_lora_rank.main([*words, "peft"])
    assert json.loads((tmp_path / "lora.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    assert "--format axolotl is for decoders" in refusal(realloc_lora_rank.main, [*words, "axolotl"])
