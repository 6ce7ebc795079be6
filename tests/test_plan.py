"""`tools/inspect_model.py --plan`: the memory of a step, against what the same step allocates on a CPU."""

from __future__ import annotations

import gc
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig

from heterolora.common.checks import present
from heterolora.elements import config as configurations
from heterolora.elements.family import Family
from heterolora.elements.task import CLASSIFYING
from heterolora.saliency.problem import Loss
from model import family
from model.load import enable_gradient_checkpointing
from model.quantize import loading_arguments
from model.skeleton import skeleton
from model.task.token_losses import Head
from model.task.window import Window
from tests.adapted import put_into
from tests.mistakes import refusal
from tests.quick import some_slow
from tests.world import write_lora
from tools import inspect_model
from tools.planning.base import Base, nf4_constants, packed_layers
from tools.planning.gpus import GPUS
from tools.planning.plan import RESERVED, GpuPlan, Setting, Trained, counts
from tools.planning.step import BatchShape, StepCost, step_cost, steps

ROWS, TOKENS = 4, 64
_COMMON = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 1}
_SHAPES = {
    "opt": {"vocab_size": 1000, "ffn_dim": 512, "word_embed_proj_dim": 128, "dropout": 0.0},
    "gemma": {"vocab_size": 5000, "intermediate_size": 1024, "num_key_value_heads": 1, "head_dim": 64},
    "roberta": {
        "vocab_size": 1000,
        "intermediate_size": 512,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
}


def config_of(name: str) -> PretrainedConfig:
    return AutoConfig.for_model(name, **_COMMON, **_SHAPES[name], max_position_embeddings=TOKENS + 2, use_cache=False)


def peak_of(name: str, lora: Path, checkpointing: bool) -> int:
    """Bytes that torch's allocator has handed out at most, from before the base is made to after the second step."""
    gc.collect()
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # read at the first profile of a process: it writes to stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train_twice(name, lora, checkpointing)
        gc.collect()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def train_twice(name: str, lora: Path, checkpointing: bool, device: str = "cpu") -> None:
    auto = AutoModelForSequenceClassification if name == "roberta" else AutoModelForCausalLM
    network = auto.from_config(config_of(name)).to(device).train()
    space = put_into(network, family.get(name), configurations.load(lora, "lora"))
    if checkpointing:
        enable_gradient_checkpointing(network, space)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad])
    ids = torch.randint(3, 900, (ROWS, TOKENS), device=device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    targets = F.pad(inputs["input_ids"][:, 1:], (0, 1), value=-100)
    head = None if name == "roberta" else Head(network)
    for _ in range(2):
        window = Window()
        window.start()
        if head is None:
            total = F.cross_entropy(network(**inputs).logits, torch.ones_like(ids[:, 0]), reduction="sum")
            count = torch.tensor(float(ROWS), device=device)
        else:
            total, each = head.losses(inputs, targets, targets != -100)
            count = torch.tensor(float(len(each)), device=device)
        window.add(Loss(total, count)).backward()
        window.finish(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        del total


def planned(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    capsys.readouterr()
    inspect_model.main([*map(str, arguments), "--plan", "--json"])
    return json.loads(capsys.readouterr().out)


def plan_of(capsys: pytest.CaptureFixture[str], name: str, folder: Path, lora: Path) -> dict[bool, int]:
    """With gradient checkpointing or without → the peak on one GPU."""
    config_of(name).save_pretrained(folder)
    found = planned(
        capsys,
        *("--model", f"{name}_lora", "--load", folder, "--lora-config", lora, "--batch-size", ROWS),
        *("--dataset", "sst2" if name == "roberta" else "wikitext2", "--max-token-len", TOKENS),
    )
    return {row["checkpointing"]: row["peak"] for row in found["rows"] if row["gpus"] == 1}


@pytest.mark.parametrize("name", some_slow(_SHAPES, quick=["roberta"]))
def test_the_peak_is_that_of_a_step(tmp_path: Path, capsys, name: str) -> None:
    lora = write_lora(tmp_path / "lora.toml", "q_proj", "v_proj", "w1", r=4)
    for checkpointing, peak in plan_of(capsys, name, tmp_path, lora).items():
        assert peak == pytest.approx(peak_of(name, lora, checkpointing), rel=0.05), (name, checkpointing)


_FOLDER = Path(__file__).parent / "fixtures" / "plan"

# As their makers published them: with dropout, and in the dtype of the file. Weights without the head.
_PUBLISHED = {
    "opt-350m": 331_196_416,
    "roberta-base": 124_055_040,  # without the pooler, which a classification head replaces
    "bert-base-uncased": 109_482_240,
    "gemma-7b": 8_537_680_896,
    "llama-2-7b": 6_738_415_616,
    "mistral-7b-v0.1": 7_241_732_096,
    "qwen2-0.5b": 494_032_768,
    "qwen3-0.6b": 596_049_920,
    "gemma-2-2b": 2_614_341_888,
    "gemma-3-1b": 999_885_952,
    "phi-3-mini": 3_821_079_552,
    "gpt2": 124_439_808,
    "electra-base": 108_891_648,
    "distilbert-base-uncased": 66_362_880,
    "modernbert-base": 149_014_272,
    "deberta-v3-base": 183_831_552,
    "pythia-160m": 162_322_944,
    "olmo-2-1b": 1_484_916_736,
    "smollm3-3b": 3_075_098_624,
    "llama-4-scout": 107_769_861_120,  # without the part for images
}


@pytest.mark.parametrize(
    ("name", "weights"),
    some_slow(_PUBLISHED.items(), quick=[("roberta-base", _PUBLISHED["roberta-base"])]),
)
def test_published_models_of_every_family(capsys, name: str, weights: int) -> None:
    table = table_of(name)
    about = ("--model", f"{table.name}_lora", "--load", _FOLDER / name, "--pretrained", "--max-token-len", 128)
    found = planned(capsys, *about, "--dataset", "sst2" if table.tasks == CLASSIFYING else "wikitext2")
    assert found["base"]["whole"] == pytest.approx(4 * weights, rel=0.001)
    assert found["checkpointing"]["activations"] < found["plain"]["activations"] / 2
    assert found["checkpointing"]["flops"] > found["plain"]["flops"]


def test_every_family_has_a_published_model() -> None:
    assert {table_of(name).name for name in _PUBLISHED} == {*family.names()}


def table_of(name: str) -> Family:
    found = json.loads((_FOLDER / name / "config.json").read_text(encoding="utf-8"))["model_type"]
    return present(family.for_model_type(found))


# ---- arithmetic

_BASE = Base(whole=1000, block=100, outside=200, gathered=1800, constants=40)
_STEPS = (StepCost(500, 400, 50, 10**12), StepCost(60, 50, 90, 10**13))
_PLAN = GpuPlan(_BASE, Trained(30, 20, 2), _STEPS, GPUS["h100"], 1500 + RESERVED, True)


@pytest.mark.parametrize(
    ("setting", "share", "peak", "sent"),
    [
        (Setting(1, False, False), 1000, 1000 + 200 + 160 + 500, 0),
        (Setting(1, False, True), 1000, 1000 + 200 + 160 + 140, 0),  # kept + logits
        (Setting(4, False, True), 1000, 1000 + 200 + 160 + 160, 120),  # two copies of the gradient
        (Setting(4, True, False), 280, 280 + 500 + 200 + 160 + 500, 1350 + 120),
    ],
)
def test_bytes(setting: Setting, share: int, peak: int, sent: int) -> None:
    assert (_PLAN.base_share(setting), _PLAN.peak(setting), _PLAN.sent(setting)) == (share, peak, sent)
    assert _PLAN.fits(setting) == (peak <= 1500)


def test_seconds() -> None:
    assert _PLAN.seconds(Setting(1, False, False)) == pytest.approx(1e12 / (0.4 * 989e12))
    assert _PLAN.seconds(Setting(4, False, True)) == pytest.approx(1e13 / (0.4 * 989e12), rel=1e-6)
    assert counts(_PLAN) == [1, 2, 4, 8]
    assert counts(replace(_PLAN, memory=1000 + RESERVED)) == [2**n for n in range(7)]


@pytest.mark.parametrize("weights", [64, 100, 64 * 256 * 3 + 64, 512 * 384])
def test_the_bytes_of_a_layer_in_4_bits(weights: int) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    packed, state = functional.quantize_4bit(
        torch.randn(weights), blocksize=64, quant_type="nf4", compress_statistics=True
    )
    nested = state.state2
    stored = (packed, state.absmax, state.code, state.offset, nested.absmax, nested.code)
    config = loading_arguments("nf4", "bf16-mixed")["quantization_config"]
    assert -(-weights // 2) + nf4_constants(weights, config) == sum(tensor.nbytes for tensor in stored)


def test_a_base_in_4_bits(tmp_path: Path, capsys) -> None:
    config_of("opt").save_pretrained(tmp_path)
    about = ("--model", "opt_lora", "--load", tmp_path, "--pretrained", "--dataset", "wikitext2", "--max-token-len", 64)
    packed = planned(capsys, *about, "--quantize", "nf4")["base"]
    network = AutoModelForCausalLM.from_config(config_of("opt"))
    whole = sum(p.nbytes for p in network.parameters())
    linear = 2 * (4 * 128 * 128 + 2 * 128 * 512)  # in two blocks
    assert whole - packed["whole"] == 4 * linear - linear // 2 - packed["constants"]
    assert packed["constants"] > 0


@pytest.mark.slow
def test_a_step_in_4_bits_is_that_of_bitsandbytes(tmp_path: Path) -> None:
    nn = pytest.importorskip("bitsandbytes.nn")
    lora, batch = configurations.load(write_lora(tmp_path / "lora.toml"), "lora"), BatchShape(ROWS, TOKENS, None)
    network = AutoModelForCausalLM.from_config(config_of("gemma")).train()
    put_into(network, family.get("gemma"), lora)
    for name, dtype in packed_layers(network, "nf4", "bf16-mixed").items():
        linear = network.get_submodule(name)
        layer = nn.Linear4bit(linear.in_features, linear.out_features, False, dtype, quant_type="nf4")
        layer.load_state_dict(linear.state_dict())
        network.set_submodule(name, layer.requires_grad_(False).to("cpu"))
    real = step_cost(network, batch, "bf16-mixed")
    network = skeleton(config_of("gemma"), "causal_language_modeling")
    space = put_into(network, family.get("gemma"), lora)
    plain, _ = steps(network, space, batch, "bf16-mixed", packed_layers(network, "nf4", "bf16-mixed"))
    assert (plain.kept, plain.peak) == (pytest.approx(real.kept, rel=0.1), pytest.approx(real.peak, rel=0.1))


def test_blocks_that_are_alike_run_for_all(tmp_path: Path) -> None:
    """A network of eight blocks: the figures of four and six, extrapolated, are those of all eight."""
    lora = configurations.load(write_lora(tmp_path / "lora.toml"), "lora")
    found = []
    for off in ((), ("layer_7.v_proj",)):
        config = config_of("opt")
        config.num_hidden_layers = 8
        network = skeleton(config, "causal_language_modeling")
        space = put_into(network, family.get("opt"), lora)
        space.switch({low_rank.element.key for low_rank in space} - {*off})
        found.append(steps(network, space, BatchShape(2, 16, None), "32", {}))
    for like, other in zip(*found, strict=True):
        assert like.kept - other.kept in range(2 * 16 * 4 * 8)  # of the rank 4
        assert like.activations == pytest.approx(other.activations, rel=0.01)
        assert like.flops == pytest.approx(other.flops, rel=0.01)


def shown(capsys: pytest.CaptureFixture[str], base: Path, *more: object) -> list[str]:
    """The lines of a plan in a pipe."""
    given = ("--plan", "--dataset", "wikitext2", "--load", base, "--batch-size", 1, *more)
    inspect_model.main([*map(str, given)])
    return capsys.readouterr().out.splitlines()


def test_the_first_line_is_the_answer_and_no_table_is_cut(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    base = Path(__file__).parent / "fixtures" / "plan" / "llama-2-7b"
    lines = shown(capsys, base, "--precision", "bf16-true", "--max-token-len", 2048, "--card", "rtx-4090")
    assert lines[0] == "fits on 1 × 24 GB with --gradient-checkpointing"
    (head,) = (line for line in lines if line.lstrip().startswith("GPUs "))
    assert head.split() == ["GPUs", "base", "share", "gathered", "peak", "seconds", "peak*", "seconds*", "sent"]
    assert "…" not in "".join(lines)


def test_without_a_card_there_are_no_times(capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # which is too narrow for the table
    config_of("opt").save_pretrained(tmp_path)
    lines = shown(capsys, tmp_path, "--gpu-memory", "2GB")
    assert lines[0] == "fits on 1 × 2 GB"
    assert not {"seconds", "rtx", "…"} & {*"\n".join(lines).split()}
    assert "…" not in "".join(lines)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (3000, Setting(1, False, False)),
        (1500, Setting(1, False, True)),
        (1350, Setting(4, True, True)),
        (1, None),
    ],
)
def test_the_smallest_setting(memory: int, expected: Setting | None) -> None:
    assert replace(_PLAN, memory=memory + RESERVED).smallest() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--plan --card rtx4090", "--card 'rtx4090' is not known; did you mean 'rtx-4090'?"),
        ("--plan --gpu-memory much", "--gpu-memory 'much' is no size; give a size such as 4GiB"),
        ("--gpu-memory 24GB", "--gpu-memory has no effect without --plan"),
        ("--plan --load {base} --max-token-len 67", "--max-token-len 67 is more than the model takes; at most 66"),
        ("--plan --load {base} --pretrained --quantize int8", "--plan does not know the memory of --quantize int8"),
        ("--plan --load {base} --precision 64", "--plan has no rates of GPUs for --precision 64"),
        ("--plan --load {base} --model {base}", "is a plain model"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: str, message: str) -> None:
    config_of("opt").save_pretrained(tmp_path)
    assert message in refusal(inspect_model.main, arguments.format(base=tmp_path).split())
