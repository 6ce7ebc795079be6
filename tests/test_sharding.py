"""A sharded base (`--strategy fsdp`) gives bit for bit what a replicated one gives, on as many processes."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from transformers import GenerationConfig

from heterolora import saliency
from heterolora.choosing import history, scores
from heterolora.saliency.problem import Problem
from heterolora.saliency.score import score
from model.sharding import Sharding, is_sharded, shard, sharded_names
from tests.adapted import adapted, lora_config, shortcut_config
from tests.scoring import labelled, problem
from tests.tiny import tiny_batch
from tests.together import STRATEGIES, assert_same, both, run_commands, together
from tests.world import (
    World,
    metrics_of,
    model_folder,
    run,
    same_weights,
    summary_folder,
    text_folder,
    weights,
    write_lora,
    write_shortcuts,
)

CPU = torch.device("cpu")


# ---- what two processes do in one test: training, all heuristics on an uneven number of batches, generation


def scores_of(sharded: bool) -> dict[str, dict[str, float]]:
    """Heuristic → scores. Three batches on two processes, so that one of them needs a filler."""
    made = adapted("roberta", lora=lora_config(), shortcut=shortcut_config()).train_b()
    rank, world = distributed.get_rank(), distributed.get_world_size()
    batches = labelled(made, 3)
    made.network.requires_grad_(False)
    if sharded:
        shard(made.network, made.space, Sharding(world, torch.float32), CPU)
    mine = problem(made, batches[rank::world])
    fillers = [] if len(mine.batches) == 2 or not sharded else [tiny_batch(1, 3) | {"labels": torch.tensor([0])}]
    mine = Problem(**{**vars(mine), "fillers": fillers})
    return {name: score(name, mine) for name in saliency.names()}


def generated(sharded: bool) -> list[list[int]]:
    """The processes need different numbers of tokens, and the weights of embedding and output are tied."""
    made = adapted("gemma", "causal_language_modeling", lora_config()).train_b()
    made.network.requires_grad_(False)
    if sharded:
        shard(made.network, made.space, Sharding(2, torch.float32), CPU)
    config = GenerationConfig(
        max_new_tokens=3 + 6 * distributed.get_rank(), do_sample=False, pad_token_id=1, eos_token_id=63
    )
    with torch.no_grad():
        ids = made.network.generate(**tiny_batch(2, 5, None), generation_config=config, synced_gpus=sharded)
    return ids.tolist()


def disagree(command: list[object]) -> tuple[int, str]:
    """The exit code and the message if the processes get different options."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = run(*command, "--project", "apart", "--batch-size", 2 + distributed.get_rank())
    return code, said.getvalue()


def work(commands: list[list[object]]) -> dict[str, Any]:
    run_commands(commands)
    found: dict[str, Any] = {"disagreement": disagree(commands[-1])}
    found["scores"] = [scores_of(sharded) for sharded in (False, True)]
    found["generated"] = [generated(sharded) for sharded in (False, True)]
    made = adapted("gemma", "causal_language_modeling", lora_config())
    made.network.requires_grad_(False)
    shard(made.network, made.space, Sharding(2, torch.float64), CPU)
    names = sharded_names(made.network)
    state = made.network.state_dict()
    found["shapes"] = {name: (state[name].shape, state[name].to_local().shape, state[name].dtype) for name in names}
    found["is_sharded"] = is_sharded(made.network)
    found["elements"] = {type(p).__name__ + str(p.dtype) for low_rank in made.space for p in low_rank.parameters()}
    return found


@pytest.fixture(scope="module")
def pair(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("pair")
    _, _, *rest = world.training("--batch-size", 2, "--project-dir", folder, "--max-epochs", 1)
    shared = ("train-dyrealloc", "opt_lora_ags", *rest, "--shortcut-config", write_shortcuts(folder / "shortcut.toml"))
    shared += ("--realloc-N", 4, "--importance-test-name", "snip", "--imp-limit-test-batches", 3)
    shared += ("--accumulate-grad-batches", 2, "--gradient-clip-val", 0.5, "--gradient-checkpointing")
    return folder, together(2, work, both(*shared))


class TestTwoProcesses:
    def test_train(self, pair) -> None:
        """Weights, metrics, adapter and decisions, with shortcuts, windows, clipping and checkpointed blocks."""
        folder, _ = pair
        assert_same(folder)
        ours, theirs = (history.read(folder / strategy) for strategy in STRATEGIES)
        assert ours.decisions == theirs.decisions
        assert len({decision.on for decision in ours.decisions}) > 1

    def test_different_options_are_found_before_the_first_pass(self, pair) -> None:
        (code, said), (other_code, _) = (found["disagreement"] for found in pair[1])
        assert (code, other_code) == (2, 2)
        assert said == (
            "error: the processes disagree about --batch-size; start all of them with the same command, files and "
            "versions\n"
        )

    def test_scores_of_every_heuristic(self, pair) -> None:
        first, second = (found["scores"] for found in pair[1])
        assert first == second
        replicated, sharded = first
        assert sharded == replicated
        assert {len(set(of_each.values())) > 1 for name, of_each in sharded.items() if name != "constant"} == {True}

    def test_generation_of_different_lengths(self, pair) -> None:
        for found in pair[1]:
            replicated, sharded = found["generated"]
            assert sharded == replicated
        assert [len(found["generated"][0][0]) for found in pair[1]] == [8, 14]

    def test_each_process_holds_its_rows(self, pair) -> None:
        """The base is cast block by block; what is trained stays whole and in float32."""
        for found in pair[1]:
            assert found["is_sharded"]
            assert found["elements"] == {"Parametertorch.float32"}
            assert "lm_head.weight" in found["shapes"]
            assert "model.layers.0.self_attn.q_proj.base.weight" in found["shapes"]
        for each in zip(*(found["shapes"].values() for found in pair[1]), strict=True):
            (whole, _, dtype), *_ = each
            assert dtype == torch.float64
            assert sum(own[0] for _, own, _ in each) == whole[0]


# ---- every action, data set and base, each as a run of its own

SHORT = ("--max-token-len", 8)
FAMILIES = {
    "roberta-ags": ("roberta", "sst2", ("--gradient-clip-val", 0.5)),
    "roberta-auto": ("roberta", "sst2", ("--learning-rate", "auto", "--limit-train-batches", 4)),
    "gemma-bf16": (
        "gemma",
        "wikitext2",
        ("--precision", "bf16-true", "--gradient-checkpointing", "--max-token-len", 8),
    ),
    "llama-autocast": ("llama", "wikitext2", ("--precision", "bf16-mixed", "--max-token-len", 8)),
    "gemma-summaries": ("gemma", "xsum", ("--max-token-len", 40, "--max-target-len", 4, "--num-beams", 2)),
}


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lora(tmp_path_factory.mktemp("lora") / "lora.toml", "q_proj", "v_proj", "w1", lora_dropout=0.1)


def folder_of(dataset: str, world: World, folder: Path) -> Path:
    makers = {"wikitext2": text_folder, "xsum": summary_folder}
    return makers[dataset](folder / dataset) if dataset in makers else world.sst2


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_families_and_tasks(world: World, lora: Path, tmp_path: Path, name: str) -> None:
    family, dataset, more = FAMILIES[name]
    base = model_folder(
        tmp_path / "base", family, "classification" if dataset == "sst2" else "causal_language_modeling"
    )
    ags = ("--shortcut-config", write_shortcuts(tmp_path / "shortcut.toml")) if name.endswith("ags") else ()
    shared = ("train", f"{family}_lora{'_ags' if ags else ''}", dataset, "--load", base, "--pretrained", *ags)
    shared += ("--dataset-saved-path", folder_of(dataset, world, tmp_path), "--lora-config", lora, "--batch-size", 3)
    shared += ("--learning-rate", 1e-2, "--max-epochs", 2, "--project-dir", tmp_path)
    together(2, run_commands, both(*shared, *more))
    assert_same(tmp_path)


DYREALLOC = {
    "alpha_test": (),
    "gain": ("--imp-limit-test-batches", 5),
    "synflow": ("--lora-init", "activation"),
    "fisher": ("--imp-source", "training", "--lora-init", "gradient"),
    "weight_gradient": ("--budget-parameters", 900),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DYREALLOC)
def test_reallocation(world: World, lora: Path, tmp_path: Path, name: str) -> None:
    _, _, *rest = world.training("--lora-config", lora, "--batch-size", 2, "--project-dir", tmp_path, "--max-epochs", 2)
    shared = ("train-dyrealloc", "opt_lora", *rest, "--importance-test-name", name, "--realloc-N", 5)
    shared += ("--imp-limit-test-batches", 3, *DYREALLOC[name])
    together(2, run_commands, both(*shared))
    assert_same(tmp_path)
    ours, theirs = (history.read(tmp_path / strategy) for strategy in STRATEGIES)
    assert ours.decisions == theirs.decisions


@pytest.mark.slow
def test_imp_test(world: World, lora: Path, tmp_path: Path) -> None:
    """Every heuristic, in one pair of processes: an odd number of batches, and fewer batches than processes."""
    _, _, *rest = world.training("--lora-config", lora, "--batch-size", 2, "--max-epochs", 1)
    commands = []
    for name in saliency.names():
        shared = ("imp-test", "opt_lora", *rest, "--importance-test-name", name, "--imp-warmup-batches", 4)
        shared += ("--imp-limit-test-batches", 3, "--project-dir", tmp_path / name)
        commands += both(*shared)
    commands += both("imp-test", "opt_lora", *rest, "--imp-limit-test-batches", 1, "--project-dir", tmp_path / "one")
    together(2, run_commands, commands)
    for name in (*saliency.names(), "one"):
        ours, theirs = (tmp_path / name / strategy / "scores.toml" for strategy in STRATEGIES)
        assert scores.read(ours) == scores.read(theirs), name  # but for the measured times


@pytest.mark.slow
def test_resume_and_test(world: World, lora: Path, tmp_path: Path) -> None:
    """A resumed run ends as an uninterrupted one; the strategy may change; one process measures what two do."""
    shared = world.training("--lora-config", lora, "--batch-size", 2, "--project-dir", tmp_path, "--max-epochs", 2)
    whole, fsdp = both(*shared)
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    part = [*fsdp[:-1], "part", "--max-steps", 7]
    resumed = ["train", "--resume-training", "--load", last, "--max-steps", 24]
    other = ["train", "--resume-training", "--load", tmp_path / "again" / "checkpoints" / "last.ckpt"]
    commands = [whole, fsdp, part, resumed, [*part[:-3], "again", *part[-2:]], [*other, "--strategy", "ddp"]]
    commands[-1] += ["--max-steps", 24]
    tested = ["test", "--load", last, "--num-devices", 2, "--strategy", "fsdp", "--batch-size", 2]
    tested += ["--project-dir", tmp_path, "--project", "tested"]
    together(2, run_commands, [*commands, tested])
    for name in ("fsdp", "part", "again"):
        assert same_weights(tmp_path / "ddp/checkpoints/last.ckpt", tmp_path / name / "checkpoints/last.ckpt"), name
    assert run("test", "--load", last, "--project-dir", tmp_path, "--project", "alone") == 0
    assert metrics_of(tmp_path / "alone") == {
        split: pytest.approx(figures, abs=1e-5) for split, figures in metrics_of(tmp_path / "tested").items()
    }


@pytest.mark.slow
def test_two_levels_of_four_processes(world: World, lora: Path, tmp_path: Path) -> None:
    """Two nodes with a copy of the base each, which is sharded over the two devices of the node."""
    shared = world.training("--lora-config", lora, "--batch-size", 1, "--project-dir", tmp_path, "--max-epochs", 1)
    together(4, run_commands, both(*shared, "--num-nodes", 2), nodes=2)
    assert_same(tmp_path)


@pytest.mark.slow
def test_a_plain_model_is_trained_whole_in_shards(world: World, tmp_path: Path) -> None:
    """As with ddp, to rounding; a resumed run ends as an uninterrupted one, and one process measures the same."""
    _, _, *rest = world.training("--batch-size", 2, "--project-dir", tmp_path, "--max-epochs", 1)
    at = rest.index("--lora-config")
    shared = ("train", world.opt, "sst2", *rest[3:at], *rest[at + 2 :], "--optimizer", "sgd")
    shared += ("--gradient-clip-val", 0.5, "--accumulate-grad-batches", 2)
    ddp, fsdp = both(*shared)
    commands = [ddp, fsdp]
    for optimizer in ("sgd", "adamw"):
        last = tmp_path / f"part-{optimizer}" / "checkpoints" / "last.ckpt"
        commands += [[*fsdp, "--optimizer", optimizer, "--project", optimizer]]
        commands += [[*fsdp, "--optimizer", optimizer, "--project", f"part-{optimizer}", "--max-steps", 3]]
        commands += [["train", "--resume-training", "--load", last, "--max-steps", 6]]
    together(2, run_commands, commands)
    names = ("ddp", "fsdp", "sgd", "part-sgd", "adamw", "part-adamw")
    one, other, *resumed = (weights(tmp_path / name / "checkpoints/last.ckpt") for name in names)
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)
    for whole, part in (resumed[:2], resumed[2:]):
        assert all(torch.equal(whole[name], part[name]) for name in one)
    best = last.with_name("best.ckpt")  # what the run has measured
    assert run("test", "--load", best, "--project-dir", tmp_path, "--project", "alone") == 0
    assert metrics_of(tmp_path / "alone") == {
        split: pytest.approx(figures, abs=1e-5) for split, figures in metrics_of(tmp_path / "part-adamw").items()
    }
