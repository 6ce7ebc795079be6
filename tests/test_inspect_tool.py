"""`tools/inspect_model.py`: the search space as a table, and for programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from heterolora.elements import config
from model import family
from tests.adapted import put_into
from tests.architectures import ARCHITECTURES
from tests.mistakes import refusal
from tests.test_any_model import Commands
from tests.tiny import tiny_network
from tests.world import ROOT, World, model_folder, run, write_lora, write_shortcuts
from tools import inspect_model


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    capsys.readouterr()
    inspect_model.main([*map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def configs(tmp_path: Path) -> tuple[object, ...]:
    lora = write_lora(tmp_path / "lora.toml", "q_proj", "w1", r=3, use_rslora="true")
    return ("--lora-config", lora, "--shortcut-config", write_shortcuts(tmp_path / "shortcut.toml", r=2))


@pytest.mark.parametrize("name", ["opt", "roberta", "gemma"])
def test_every_element_of_a_base(tmp_path: Path, capsys, configs, name: str) -> None:
    base = model_folder(tmp_path / name, name)
    (base / "model.safetensors").unlink()  # no weight is read
    found = shown(capsys, "--model", f"{name}_lora_ags", "--load", base, *configs)
    network = tiny_network(name, num_labels=2)
    heads = ("score", "classifier")
    base_size = sum(p.numel() for key, p in network.named_parameters() if key.split(".")[0] not in heads)
    linears = [
        module.weight.numel()
        for path, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and path.split(".")[0] not in heads
    ]
    lora, shortcut = (config.load(path, kind) for path, kind in zip(configs[1::2], ("lora", "shortcut"), strict=True))
    space = put_into(network, family.get(name), lora, shortcut)
    assert [row["element"] for row in found["elements"]] == [low_rank.element.key for low_rank in space]
    for row, low_rank in zip(found["elements"], space, strict=True):
        assert row["module"] == low_rank.element.module
        assert (row["in_features"], row["out_features"]) == (low_rank.A.shape[1], low_rank.B.shape[0])
        assert row["parameters"] == row["multiply_adds"] == low_rank.A.numel() + low_rank.B.numel()
        assert row["on"] is True
    assert found["elements"][0]["scaling"] == pytest.approx(8 / 3**0.5)
    assert found["totals"]["base"]["parameters"] == base_size
    assert found["totals"]["base"]["multiply_adds"] == sum(linears)
    assert found["totals"]["shortcut"]["elements"] == 7
    assert found["totals"]["shortcut"]["parameters_on"] == 7 * 2 * 64


@pytest.fixture(scope="module")
def dynamic(world: World) -> Path:
    arguments = world.training("--project", "inspected")[3:]
    scoring = ("--turn-on-percentile", 0.25, "--imp-limit-test-batches", 1, "--max-steps", 2)
    assert run("train-dyrealloc", "opt_lora_ags", "sst2", *arguments, *scoring) == 0
    return world.runs / "inspected"


def test_a_checkpoint_says_what_is_on(dynamic: Path, capsys) -> None:
    checkpoint = dynamic / "checkpoints" / "best.ckpt"
    on = torch.load(checkpoint, weights_only=True)["heterolora"]["on"]
    found = shown(capsys, "--load", checkpoint)
    assert (found["model"], found["load"]) == ("opt_lora_ags", str(checkpoint))
    assert {row["element"] for row in found["elements"] if row["on"]} == set(on)
    assert len(found["elements"]) == 11
    assert [row["multiply_adds"] for row in found["elements"]] == [
        row["parameters"] if row["on"] else 0 for row in found["elements"]
    ]
    for kind, total in found["totals"].items():
        rows = [row for row in found["elements"] if row["kind"] == kind]
        if kind != "base":
            assert (total["elements"], total["on"]) == (len(rows), sum(row["on"] for row in rows))
            assert total["parameters"] == sum(row["parameters"] for row in rows)
            assert total["parameters_on"] == total["multiply_adds"] == sum(row["multiply_adds"] for row in rows)


def test_an_adapter(dynamic: Path, capsys) -> None:
    on = {
        row["element"]
        for row in shown(capsys, "--load", dynamic / "checkpoints" / "best.ckpt")["elements"]
        if row["on"]
    }
    found = {row["element"]: row["on"] for row in shown(capsys, "--load", dynamic / "adapter")["elements"]}
    assert {key for key, is_on in found.items() if is_on} == on


def test_the_table(dynamic: Path, capsys) -> None:
    checkpoint = dynamic / "checkpoints" / "best.ckpt"
    rows = shown(capsys, "--load", checkpoint)["elements"]
    inspect_model.main(["--load", str(checkpoint)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for row in rows:
        layer, name = row["element"].split(".")
        start = lines.index([layer, f"model.decoder.layers.{layer[-1]}"])
        line = next(line for line in lines[start:] if line[:1] == [f".{name}"])
        assert (
            line[-6:]
            == [
                *("32", "→", "32"),
                str(row["rank"]),
                "on" if row["on"] else "off",
                *(str(row["parameters"]), str(row["multiply_adds"])),
            ][-6:]
        )
    assert ["LoRA", str(sum(r["on"] for r in rows if r["kind"] == "lora")), "4"] in [line[:3] for line in lines]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--load {opt} --model {opt}", "plain model, which has no search space"),
        ("--load {opt} --model gemma_lora", "does not fit a model of type 'opt'"),
        ("--load {opt} --model opt_lra", "did you mean 'opt_lora'"),
        ("--load nowhere/at-all", "nowhere/at-all"),
        ("--load {opt} --lora-config nowhere.toml", "nowhere.toml"),
        ("--load {opt} --jsn", "--jsn"),
    ],
)
def test_mistakes(world: World, arguments: str, message: str) -> None:
    assert message in refusal(inspect_model.main, arguments.format(opt=world.opt).split())


@pytest.mark.slow
def test_as_a_script(world: World, tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "tools" / "inspect_model.py")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    how = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([*script, "--load", str(world.opt), "--json"], **how)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["elements"]) == 12
    wrong = subprocess.run([*script, "--load", "nowhere/at-all"], **how)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


def test_experts_and_an_embedding_compute_less_than_all_their_parameters(tmp_path: Path, capsys) -> None:
    """Of 4 experts 2 act on a token, and of the embedding's A a column is looked up."""
    architecture = ARCHITECTURES["mixtral"]
    commands = Commands(architecture, tmp_path)
    base = ("--load", commands.base, "--max-steps", 1, "--target", "experts,embed_tokens,lm_head")
    trained = commands.run("train", "train", *base)
    capsys.readouterr()
    found = shown(capsys, "--load", trained)
    for row in found["elements"]:
        if "experts" in row["element"]:
            assert row["multiply_adds"] == row["parameters"] / 2
    embedding, output = (found["elements"][place] for place in (0, -1))
    assert embedding["multiply_adds"] == embedding["rank"] * embedding["out_features"] < embedding["parameters"]
    assert output["multiply_adds"] == output["parameters"]
    network = architecture.network()
    stacked = sum(p.numel() for p in network.parameters() if p.ndim == 3)
    linears = sum(m.weight.numel() for m in network.modules() if isinstance(m, torch.nn.Linear))
    assert found["totals"]["base"]["multiply_adds"] == linears + stacked / 2
    inspect_model.main(["--load", str(trained)])
    assert "multiply-adds count the 2 experts that act on a token" in capsys.readouterr().out
