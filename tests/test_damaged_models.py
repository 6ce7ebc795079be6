"""Folders of a model whose files do not belong together, leave the folder, or hold what no model has."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.world import World, run


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def one_bad_weight(value: float) -> Callable[[Path], None]:
    def change(weights: dict[str, torch.Tensor]) -> None:
        next(tensor for name, tensor in weights.items() if "fc1.weight" in name)[0, 0] = value

    return lambda folder: change_weights(folder, change)


def indexed(*names: object) -> Callable[[Path], None]:
    """The weights in a file with a list, which gives one of them other places."""

    def change(folder: Path) -> None:
        shard = (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        places = dict.fromkeys(load_file(shard), shard.name) | dict(zip(load_file(shard), names, strict=False))
        index = {"metadata": {}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


def as_integers(folder: Path) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        name = next(name for name in weights if "fc1.weight" in name)
        weights[name] = weights[name].to(torch.int32)

    change_weights(folder, change)


def as_folder(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return change


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a device": (indexed("/dev/zero"), "names '/dev/zero', which is no file in its folder"),
    "a file above": (indexed("../other/secret"), "names '../other/secret', which is no file in its folder"),
    "an absolute path": (indexed("{other}/secret"), "/secret', which is no file in its folder"),
    "no file": (indexed("gone.safetensors"), "names 'gone.safetensors', which is no file in its folder"),
    "a number": (indexed(1), "names 1, which is no file in its folder"),
    "NaN": (one_bad_weight(float("nan")), "has values that are NaN or infinite"),
    "infinity": (one_bad_weight(float("-inf")), "has values that are NaN or infinite"),
    "whole numbers": (as_integers, "has the type I32; expected real numbers"),
    "fewer layers": (
        lambda folder: change_json(folder / "config.json", num_hidden_layers=1),
        "weights of blocks that its configuration leaves out, such as",
    ),
    "text_config": (lambda folder: change_json(folder / "config.json", text_config=[1]), "the configuration"),
    "text_config of another form": (
        lambda folder: change_json(folder / "config.json", text_config={"a": 1}),
        "the configuration",
    ),
    "half a token": (
        lambda folder: change_json(folder / "tokenizer_config.json", model_max_length=10.5),
        "model_max_length is 10.5",
    ),
    "a folder for the tokenizer": (as_folder("tokenizer_config.json"), "tokenizer_config.json' is no file"),
    "a folder for the generation": (as_folder("generation_config.json"), "generation_config.json' is no file"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_line(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    change, said = DAMAGE[name]
    folder, other = tmp_path / "model", tmp_path / "other"
    shutil.copytree(world.opt, folder)
    other.mkdir()
    shutil.copy(folder / "model.safetensors", other / "secret")
    change(folder)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        index.write_text(index.read_text().replace("{other}", str(other)))
    command = world.training("--load", folder, "--project-dir", tmp_path)
    assert run("test", *command[1:]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_a_list_of_files_in_the_folder_is_followed(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(world.opt, folder)
    indexed()(folder)
    command = world.training("--load", folder, "--project-dir", tmp_path, "--limit-test-batches", 1)
    assert run("test", *command[1:]) == 0


# ---- checkpoints and adapters


def in_checkpoint(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def applied(folder: Path) -> None:
        path = folder / "checkpoints" / "last.ckpt"
        contents = torch.load(path, weights_only=True)
        change(contents)
        torch.save(contents, path)

    return applied


def first_weight(contents: dict[str, Any]) -> torch.Tensor:
    return next(iter(contents["state_dict"].values()))


def without_values(contents: dict[str, Any]) -> None:
    name = next(iter(contents["state_dict"]))
    contents["state_dict"][name] = contents["state_dict"][name].to("meta")


def forget_a_moment(contents: dict[str, Any]) -> None:
    del contents["optimizer_states"][0]["state"][0]["exp_avg"]


CHECKPOINTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "NaN": (lambda contents: first_weight(contents).fill_(float("nan")), "has values that are NaN or infinite"),
    "no values": (without_values, "is damaged or of another kind (it has tensors without values)"),
    "no optimizer state": (
        lambda contents: contents["optimizer_states"][0]["state"].clear(),
        "its training state is damaged (ValueError: the optimizer has no state after 2 steps)",
    ),
    "half an optimizer state": (forget_a_moment, "the state of the optimizer is not that of Adam"),
    "no optimizer": (lambda contents: contents["optimizer_states"].clear(), "optimizer_states has 0 entries"),
    "no schedule": (lambda contents: contents["lr_schedulers"].clear(), "lr_schedulers has 0 entries"),
}


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    words = ("--project-dir", folder, "--project", "run", "--max-steps", 2, "--max-epochs", 1)
    assert run(*world.training(*words)) == 0
    return folder / "run"


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_that_cannot_go_on(trained: Path, tmp_path: Path, capsys, name: str) -> None:
    change, said = CHECKPOINTS[name]
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    in_checkpoint(change)(folder)
    last = folder / "checkpoints" / "last.ckpt"
    capsys.readouterr()
    assert run("train", "--resume-training", "--load", last, "--max-steps", 4) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("action", ["test", "imp-test"])
def test_an_adapter_with_nan(trained: Path, tmp_path: Path, capsys, action: str) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(trained / "adapter", folder)
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    next(iter(weights.values())).fill_(float("nan"))
    save_file(weights, path)
    assert run(action, "--load", folder, "--dataset", "toy_nli", "--project-dir", tmp_path) == 2
    assert "has values that are NaN or infinite" in capsys.readouterr().err
