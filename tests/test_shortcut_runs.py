"""LoRA with shortcuts from the command line: every family and task, checkpoints, resuming, two processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.adapted import CASES, VARIANTS
from tests.quick import some_slow
from tests.world import (
    World,
    metrics_of,
    model_folder,
    run,
    run_apart,
    same_weights,
    summary_folder,
    text_folder,
    weights,
    write_lora,
    write_shortcuts,
)

DATA = {"classification": "sst2", "causal_language_modeling": "wikitext2", "summarization": "xsum"}
METRIC = {"classification": "accuracy", "causal_language_modeling": "perplexity", "summarization": "rouge1"}


@pytest.fixture(scope="module")
def shortcuts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shortcuts(tmp_path_factory.mktemp("configs") / "shortcut.toml")


@pytest.fixture(scope="module")
def data(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    return {
        "classification": world.sst2,
        "causal_language_modeling": text_folder(folder / "text"),
        "summarization": summary_folder(folder / "summaries"),
    }


def training(world: World, shortcuts: Path, *more: object) -> list[str]:
    arguments = world.training("--shortcut-config", shortcuts, *more)
    return ["opt_lora_ags" if part == "opt_lora" else part for part in arguments]


@pytest.mark.parametrize(
    ("variant", "task"),
    some_slow(
        [*CASES, *((variant, "summarization") for variant, task in CASES if task == "causal_language_modeling")],
        quick=[*dict(CASES).items(), ("gemma", "summarization")],  # one task of each variant, and the third task
    ),
)
def test_every_family_and_task(world, shortcuts, data, tmp_path, variant, task) -> None:
    family, keys = VARIANTS[variant]
    base = model_folder(tmp_path / family, family, task, **keys)
    what = ("--model", f"{family}_lora_ags", "--dataset", DATA[task], "--task", task)
    start = ("--load", base, "--pretrained", "--dataset-saved-path", data[task])
    elements = ("--lora-config", world.lora, "--shortcut-config", shortcuts)
    sizes = ("--max-token-len", 24, "--max-target-len", 3, "--max-steps", 2, "--learning-rate", 1e-2)
    assert run("train", *what, *start, *elements, *sizes, "--project-dir", tmp_path, "--project", "run") == 0
    figures = metrics_of(tmp_path / "run")
    assert all(METRIC[task] in row for row in figures.values())
    state = weights(tmp_path / "run" / "checkpoints" / "last.ckpt")
    trained = {name for name in state if name.endswith(".B") and state[name].any()}
    assert len(trained) == 2 * 2 + 7  # q and v of two blocks; four shortcuts each, but for the first one's shortcut2
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert run("test", "--load", best, "--project-dir", tmp_path, "--project", "tested") == 0
    tested = metrics_of(tmp_path / "tested")
    assert tested == {split: row for split, row in figures.items() if split in tested}


def test_parameters_are_listed_by_shortcut(world, shortcuts) -> None:
    assert run(*training(world, shortcuts, "--max-steps", 1, "--project", "listed")) == 0
    table = json.loads((world.runs / "listed" / "parameters.json").read_text())
    rows = {row["name"]: row for row in table["rows"] if row["kind"] == "shortcut"}
    assert {name: (row["on"], row["trainable"]) for name, row in rows.items()} == {
        "residual1": (2, 2 * 4 * 64),
        "residual2": (2, 2 * 4 * 64),
        "shortcut1": (2, 2 * 4 * 64),
        "shortcut2": (1, 4 * 64),
    }
    state = weights(world.checkpoint("listed"))
    assert sum(tensor.numel() for tensor in state.values()) == table["trainable"]


@pytest.mark.parametrize("renormalize", some_slow(["false", "true"], quick=["true"]))
def test_a_resumed_run_ends_as_the_one_that_was_never_cut(world, tmp_path, renormalize) -> None:
    file = write_shortcuts(tmp_path / "shortcut.toml", proj_dropout=0.2)
    file.write_text(f"renormalize = {renormalize}\n{file.read_text()}")
    options = ("--project-dir", tmp_path, "--max-epochs", 2, "--gradient-checkpointing")
    assert run(*training(world, file, *options, "--project", "whole")) == 0
    assert run(*training(world, file, *options, "--project", "cut", "--max-steps", 5)) == 0
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    assert run("train", "--resume-training", "--load", last, "--max-steps", -1) == 0
    assert same_weights(tmp_path / "whole" / "checkpoints" / "last.ckpt", last)
    record = torch.load(last, weights_only=True)["heterolora"]
    assert record["shortcut"]["renormalize"] is (renormalize == "true")


@pytest.mark.slow
def test_two_processes_train_and_test_as_one(world, tmp_path) -> None:
    """45 rows in global batches of 4: one process has no row of the last batch. Nothing is dropped out."""
    lora, file = write_lora(tmp_path / "lora.toml"), write_shortcuts(tmp_path / "shortcut.toml")
    shared = ("--lora-config", lora, "--project-dir", tmp_path, "--max-epochs", 2, "--gradient-checkpointing")
    assert run(*training(world, file, *shared, "--project", "one")) == 0
    two = ("--batch-size", 2, "--num-devices", 2, "--strategy", "ddp", "--project", "two")
    finished = run_apart(*training(world, file, *shared, *two))
    assert finished.returncode == 0, finished.stderr
    one, two = tmp_path / "one", tmp_path / "two"
    expected, found = (weights(folder / "checkpoints" / "last.ckpt") for folder in (one, two))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5, msg=name)
    for split, figures in metrics_of(one).items():
        assert metrics_of(two)[split] == pytest.approx(figures, abs=1e-5)


def test_shortcut2_of_the_first_block_is_refused_in_one_line(capfd, world, tmp_path) -> None:
    file = tmp_path / "shortcut.toml"
    file.write_text('granularity = "layer"\n[model_layer_0.shortcut2]\nr = 2\nshortcut_alpha = 4\n')
    assert run(*training(world, file)) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "leave it out of block 0" in said


def test_a_checkpoint_with_shortcuts_is_none_of_lora_alone(capfd, world, shortcuts) -> None:
    assert run(*training(world, shortcuts, "--max-steps", 1, "--project", "with")) == 0
    other = ("--load", world.checkpoint("with"), "--model", "opt_lora", "--project-dir", world.runs)
    capfd.readouterr()
    assert run("test", *other) == 2
    assert capfd.readouterr().err.startswith("error: ")
