"""A sharded base in 4 bits gives bit for bit what a replicated one gives, with bitsandbytes' own layers on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

import actions.training.trainer
from dataset import registry
from heterolora import saliency
from heterolora.choosing import history, scores
from heterolora.common.distributed import own_rows
from heterolora.saliency.problem import Problem
from heterolora.saliency.score import score
from model import family
from model.checkpoint import BaseSource
from model.load import Base, load_base, load_config, load_tokenizer
from model.quantize import quantize
from model.sharding import Sharding, shard
from tests.adapted import Adapted, lora_config, put_into, shortcut_config
from tests.quick import some_slow
from tests.scoring import problem
from tests.tiny import tiny_batch
from tests.together import STRATEGIES, assert_same, both, run_commands, together
from tests.world import World, metrics_of, model_folder, same_weights, text_folder, write_shortcuts
from tools import export
from tools.planning.base import base_of, packed_layers

bitsandbytes = pytest.importorskip("bitsandbytes")

CPU = torch.device("cpu")
WIDE = {"hidden_size": 64, "ffn_dim": 128, "word_embed_proj_dim": 64}  # bitsandbytes quantises blocks of 64 weights
LLAMA = {"hidden_size": 64, "intermediate_size": 128}
UNEVEN = {"hidden_size": 36, "intermediate_size": 9, "num_attention_heads": 2}  # 162 bytes are no float32 values


@pytest.fixture(autouse=True, scope="module")
def on_cpu() -> Iterator[None]:
    """Quantise on the CPU, which the program refuses.

    On processors with AVX512-BF16, bitsandbytes repacks the weights in evaluation, and cannot train with them then.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actions.training.trainer, "check_quantize", lambda *_: None)
        patch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)
        yield


def loaded(folder: Path, precision: str, sharded: bool, task: str = "wikitext2", kind: str | None = "nf4") -> Base:
    spec = registry.get(task)
    config = load_config(str(folder), spec)
    tokenizer = load_tokenizer(str(folder), config)
    return load_base(BaseSource(str(folder)), config, tokenizer, spec.task, precision, kind, sharded=sharded)


# ---- one process


@pytest.mark.parametrize(
    ("name", "shape", "task", "precision", "storage"),
    some_slow(
        [
            ("opt", WIDE, "sst2", "bf16-mixed", torch.bfloat16),
            ("llama", LLAMA, "wikitext2", "16-mixed", torch.float16),
            ("llama", UNEVEN, "wikitext2", "32", torch.uint8),
        ],
        quick=[("opt", WIDE, "sst2", "bf16-mixed", torch.bfloat16)],
    ),
)
def test_the_layers_are_those_of_transformers(
    tmp_path: Path, name: str, shape: dict[str, int], task: str, precision: str, storage: torch.dtype
) -> None:
    folder = model_folder(tmp_path, name, **shape)
    theirs, ours = (loaded(folder, precision, sharded, task) for sharded in (False, True))
    assert (ours.sha256, ours.untrained_head) == (theirs.sha256, theirs.untrained_head)
    for layer in ours.network.modules():
        quantize(layer, CPU)
    found, expected = (dict(base.network.named_modules()) for base in (ours, theirs))
    assert found.keys() == expected.keys()
    layers = [path for path, layer in expected.items() if isinstance(layer, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 2 * len(family.get(name).linears)
    for path in layers:
        one, other = found[path].weight, expected[path].weight
        assert torch.equal(one.view(torch.uint8).flatten(), other.flatten())
        state, of_theirs = (weight.quant_state.as_dict(packed=True) for weight in (one, other))
        assert all(torch.equal(state[key], value) for key, value in of_theirs.items())
        assert found[path].compute_dtype == expected[path].compute_dtype
    assert storage in {found[path].weight.dtype for path in layers}
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        one, other = (base.network.eval()(**tiny_batch()).logits for base in (ours, theirs))
    assert torch.equal(one, other)


# ---- two processes


def scores_of(folder: Path, sharded: bool) -> dict[str, dict[str, float]]:
    """Heuristic → scores. Three batches on two processes, so that one of them needs a filler."""
    network = loaded(folder, "32", sharded, "sst2").network
    torch.manual_seed(0)
    made = Adapted(network, put_into(network, family.get("opt"), lora_config(), shortcut_config()), {}).train_b()
    rank, fillers = distributed.get_rank(), []
    if sharded:
        shard(network, made.space, Sharding(2, torch.float32, quantized=True), CPU)
        fillers = [tiny_batch(1, 3) | {"labels": torch.tensor([0])}] * rank
    batches = [tiny_batch(seed=seed) | {"labels": torch.tensor([0, 1, seed % 2])} for seed in range(3)]
    asked = Problem(**{**vars(problem(made, batches[rank::2])), "fillers": fillers})
    return {name: score(name, asked) for name in saliency.names() if not saliency.get(name).needs_base_weights}


def held(folder: Path) -> dict[str, int]:
    """Bytes of a base on this process: measured, and as `--plan` has them."""
    networks = [loaded(folder, "bf16-mixed", kind == "nf4", kind=kind).network for kind in ("nf4", None)]
    network, plain = networks
    space, of_plain = (put_into(each, family.get("llama"), lora_config()) for each in networks)
    planned = base_of(plain, of_plain, packed_layers(plain, "nf4", "bf16-mixed"), "bf16-mixed")
    shard(network, space, Sharding(2, torch.float32, quantized=True), CPU)
    frozen = [p for p in network.parameters() if not p.requires_grad]
    states = [module.quant_state for module in network.modules() if hasattr(module, "quant_state")]
    constants = [t for s in states for t in (s.absmax, s.code, s.offset, s.state2.absmax, s.state2.code)]
    return {
        "own": sum(own_rows(p).nbytes for p in frozen),
        "whole": sum(p.nbytes for p in frozen),
        "constants": sum(t.nbytes for t in constants),
        "buffers": sum(b.nbytes for b in network.buffers()),
        "planned": planned.whole,
        "planned constants": planned.constants,
    }


def work(commands: list[list[object]], wide: Path, llama: Path) -> dict[str, Any]:
    run_commands(commands)
    return {"held": held(llama), "scores": [scores_of(wide, sharded) for sharded in (False, True)]}


@pytest.fixture(scope="module")
def pair(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("pair")
    wide, llama = model_folder(folder / "wide", **WIDE), model_folder(folder / "llama", "llama", **LLAMA)
    _, _, *rest = world.training("--load", wide, "--batch-size", 2, "--max-epochs", 1, "--quantize", "nf4")
    nf4, snip = (*rest, "--precision", "bf16-mixed"), ("--importance-test-name", "snip", "--imp-limit-test-batches", 3)
    dynamic = ("train-dyrealloc", "opt_lora_ags", *nf4, "--shortcut-config", write_shortcuts(folder / "shortcut.toml"))
    dynamic += ("--realloc-N", 4, "--accumulate-grad-batches", 2, "--gradient-clip-val", 0.5)
    commands = both(*dynamic, *snip, "--gradient-checkpointing", "--project-dir", folder / "dynamic")
    whole, sharded = both("train", "opt_lora", *nf4, "--project-dir", folder / "train")
    last = folder / "train" / "part" / "checkpoints" / "last.ckpt"
    commands += [whole, sharded, [*sharded[:-1], "part", "--max-steps", 5]]
    commands += [["train", "--resume-training", "--load", last, "--max-steps", 12]]
    commands += both("test", "--load", last, "--project-dir", folder / "test", "--precision", "bf16-mixed")
    commands += both("imp-test", "opt_lora", *nf4, *snip, "--imp-warmup-batches", 2, "--project-dir", folder / "scores")
    return folder, together(2, work, commands, wide, llama)


@pytest.mark.slow
class TestTwoProcesses:
    def test_reallocation(self, pair) -> None:
        assert_same(pair[0] / "dynamic")
        ours, theirs = (history.read(pair[0] / "dynamic" / strategy) for strategy in STRATEGIES)
        assert ours.decisions == theirs.decisions
        assert len({decision.on for decision in ours.decisions}) > 1

    def test_training_and_resuming(self, pair) -> None:
        folder = pair[0] / "train"
        assert_same(folder)
        assert same_weights(folder / "ddp/checkpoints/last.ckpt", folder / "part/checkpoints/last.ckpt")

    def test_what_is_measured_and_counted(self, pair) -> None:
        ours, theirs = (pair[0] / "test" / strategy for strategy in STRATEGIES)
        assert metrics_of(ours) == metrics_of(theirs)
        assert (ours / "parameters.json").read_text() == (theirs / "parameters.json").read_text()

    def test_scores(self, pair) -> None:
        ours, theirs = (scores.read(pair[0] / "scores" / strategy / "scores.toml") for strategy in STRATEGIES)
        assert ours == theirs
        first, second = (found["scores"] for found in pair[1])
        assert first == second
        replicated, sharded = first
        assert sharded == replicated
        assert {len({*sharded[name].values()}) > 1 for name in ("snip", "gain", "spectral")} == {True}

    def test_a_merged_export(self, pair, tmp_path: Path) -> None:
        """One process dequantises the base of a run on two."""
        found = []
        for strategy in STRATEGIES:
            finished = pair[0] / "train" / strategy
            export.main([str(finished), "--format", "merged", "--output", str(tmp_path / strategy), "--dequantize"])
            found.append(load_file(tmp_path / strategy / "model.safetensors"))
        ours, theirs = found
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    def test_each_process_holds_its_share(self, pair) -> None:
        for found in (each["held"] for each in pair[1]):
            assert found["own"] == found["whole"] / 2
            assert found["planned constants"] == found["constants"]
            assert found["planned"] == found["whole"] + found["constants"] + found["buffers"]


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "more"), [("32", ()), ("bf16-true", ("--gradient-checkpointing",))])
def test_language_models(tmp_path: Path, precision: str, more: tuple[str, ...]) -> None:
    base, texts = model_folder(tmp_path / "base", "llama", **LLAMA), text_folder(tmp_path / "wikitext2")
    shared = ("train", "llama_lora", "wikitext2", "--load", base, "--dataset-saved-path", texts, *more)
    shared += ("--max-token-len", 8, "--batch-size", 3, "--learning-rate", 1e-2, "--max-epochs", 1)
    shared += ("--quantize", "nf4", "--precision", precision, "--project-dir", tmp_path)
    together(2, run_commands, both(*shared))
    assert_same(tmp_path)
