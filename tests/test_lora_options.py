"""`--rank`, `--alpha` and `--target`, and the configurations that a run's own options file holds."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import model.family as families
from actions.command.parse import parse_command
from actions.command.request import Request
from actions.request.elements import request_of
from actions.run.run_folder import CONFIG, write_config
from heterolora.elements.adapt import placement_of
from heterolora.elements.config import ElementConfig, load
from heterolora.elements.element import PROJECTIONS, Settings
from tests.architectures import ARCHITECTURES
from tests.test_bad_input import complaint
from tests.world import World, command, run, same_weights, write_lora, write_shortcuts

QV = {"q_proj", "v_proj"}
ATTENTION = {*QV, "k_proj", "o_proj"}
MLP = {"w1", "w2", "gate"}


def request(*arguments: object) -> Request:
    return request_of(parse_command(command(*arguments)))


def lora(*arguments: object) -> ElementConfig:
    return request("train", "opt_lora", *arguments).configs["lora"]


@pytest.mark.parametrize("family", [name for name in families.names() if "q_proj" in families.get(name).linears])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), set(PROJECTIONS)), (("all",), set(PROJECTIONS)), (("attention",), ATTENTION), (("mlp",), MLP),
        (("q_proj,v_proj",), QV), (("v_proj, q_proj",), QV), (("attention,up_proj",), {*ATTENTION, "w1"}),
        (("out_proj,fc2",), {"o_proj", "w2"}),
    ],
)  # fmt: skip
def test_targets_of_every_family(family: str, given: tuple[str, ...], expected: set[str]) -> None:
    target = ("--target", *given) if given else ()
    found = request("train", f"{family}_lora", "toy_nli", "--load", "some/base", "--pretrained", *target)
    network = ARCHITECTURES[families.get(family).model_types[0]].network()
    planned = placement_of(network, families.get(family), found.configs["lora"])
    assert {element.name for element in planned.elements} == expected & set(families.get(family).linears)
    assert {element.layer for element in planned.elements} == {0, 1}
    assert {element.settings for element in planned.elements} == {Settings(8, 16.0)}
    assert planned.notes == ()


def test_rank_and_alpha() -> None:
    assert lora("--rank", 4).lookup(0, "w1") == Settings(4, 8.0)
    assert lora("--alpha", 4).lookup(0, "w1") == Settings(8, 4.0)
    assert lora("--rank", 2, "--alpha", 0.5, "--target", "w1").lookup(0, "w1") == Settings(2, 0.5)


def test_the_options_state_all_three() -> None:
    """So that a resumed run knows the rank of a run with `--target` alone."""
    found = {name: [] for name in ("rank", "alpha", "target")}
    for given in ((), ("--target", "q_proj"), ("--rank", 2)):
        options = request("train", "opt_lora", *given).options
        for name, values in found.items():
            values.append(getattr(options, name))
    assert found == {"rank": [8, 8, 2], "alpha": [16.0, 16.0, 4.0], "target": ["all", "q_proj", "all"]}


class TestOptionsFile:
    def written(self, folder: Path, *arguments: object) -> Path:
        found = request(*arguments)
        write_config(folder, found.action, found.options, found.configs)
        return folder / CONFIG

    def test_holds_the_configurations(self, tmp_path: Path) -> None:
        own, shortcuts = write_lora(tmp_path / "a.toml", lora_dropout=0.1), write_shortcuts(tmp_path / "b.toml")
        given = ("--lora-config", own, "--shortcut-config", shortcuts)
        config = self.written(tmp_path, "train", "opt_lora_ags", "toy_nli", *given)
        first = {"lora": load(own, "lora"), "shortcut": load(shortcuts, "shortcut")}
        assert tomllib.loads(config.read_text())["lora_config"] == first["lora"].to_document()
        own.unlink()
        shortcuts.unlink()
        assert request("train", "--config", config).configs == first

    def test_of_options(self, tmp_path: Path) -> None:
        config = self.written(tmp_path, "train", "opt_lora", "--rank", 2, "--target", "q_proj,w1")
        assert not {"rank", "alpha", "target"} & tomllib.loads(config.read_text()).keys()
        again = request("train", "--config", config).configs["lora"]
        assert again == lora("--rank", 2, "--target", "q_proj,w1")
        other = request("train", "--config", config, "--rank", 3).configs["lora"]
        assert other == lora("--rank", 3, "--alpha", 4, "--target", "q_proj,w1"), "the others are those of the file"
        own = write_lora(tmp_path / "own.toml")
        assert request("train", "--config", config, "--lora-config", own).configs["lora"] == load(own, "lora")

    def test_that_no_option_can_change(self, capfd, tmp_path: Path) -> None:
        own = write_lora(tmp_path / "own.toml", lora_dropout=0.1)
        config = self.written(tmp_path, "train", "opt_lora", "--lora-config", own)
        line = complaint(capfd, "train", "--config", config, "--rank", 3)
        assert "--rank is given, but the LoRA configuration in the --config file differs by place" in line

    def test_with_a_projection_off(self, tmp_path: Path) -> None:
        own = tmp_path / "own.toml"
        own.write_text(
            'granularity = "network"\n[default]\nr = 8\nlora_alpha = 16\n[all_layers.k_proj]\ndisable_adapter = true\n'
        )
        config = self.written(tmp_path, "train", "opt_lora", "--lora-config", own)
        found = request("train", "--config", config, "--rank", 4).configs["lora"]
        assert found == lora("--rank", 4, "--alpha", 16, "--target", "q_proj,v_proj,o_proj,w1,w2")

    def test_what_followed_from_a_replaced_value(self, capfd, tmp_path: Path) -> None:
        config = self.written(tmp_path, "imp-test", "opt_lora", "toy_nli")
        budget = ("--budget-parameters", 300)
        found = request("imp-test", "--config", config, *budget).options.reallocation
        assert (found.turn_on_percentile, found.budget_parameters) == (None, 300)
        both = complaint(capfd, "imp-test", "--config", config, *budget, "--budget-time", 0.5)
        assert "are both given" in both
        line = complaint(capfd, "test", "--config", config, "--load", "some.ckpt")
        assert "some.ckpt is not there; give the path of a file" in line
        assert request("train", "--config", config, "--dataset", "toy_lm").options.task == "causal_language_modeling"

    def test_with_a_path_as_older_versions_wrote_it(self, tmp_path: Path) -> None:
        own, config = write_lora(tmp_path / "own.toml"), tmp_path / "config.toml"
        config.write_text(f'lora_config = "{own}"\n')
        assert request("train", "--config", config).configs["lora"] == load(own, "lora")
        assert request("train", "--config", config, "--rank", 3).configs["lora"] == lora("--rank", 3)


def test_a_run_and_its_repetition(capfd, world: World, tmp_path: Path) -> None:
    start = ("train", "opt_lora", "sst2", "--load", world.opt, "--pretrained", "--dataset-saved-path", world.sst2)
    place = ("--project-dir", tmp_path, "--max-steps", 2)
    assert run(*start, *place, "--rank", 2, "--target", "mlp", "--project", "one") == 0
    one = tmp_path / "one"
    assert run("train", "--config", one / "config.toml", "--project", "two") == 0
    last = one / "checkpoints" / "last.ckpt"
    assert same_weights(last, tmp_path / "two" / "checkpoints" / "last.ckpt")
    written = (one / "config.toml").read_text()
    assert run("train", "--resume-training", "--load", last, "--max-steps", 3, "--rank", 2) == 0
    assert (one / "config.toml").read_text() == written.replace("max_steps = 2", "max_steps = 3")
    assert "differs from the one inside" in complaint(capfd, "test", "--load", last, "--rank", 3)
