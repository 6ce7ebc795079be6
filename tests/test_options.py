"""How options are declared, grouped, written and read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from lightning_fabric.plugins.precision.precision import _PRECISION_INPUT_STR_ALIAS_CONVERSION

from actions.command.parse import parse_command
from actions.request.elements import request_of
from actions.run.run_folder import CONFIG, write_config
from heterolora.common.errors import UserError
from heterolora.elements.config import ElementConfig
from heterolora.elements.element import Settings
from options.actions import ACTIONS
from options.declare import group, option, options_of
from options.every import Options, changed, declared, defaults, flat
from options.ranges import at_least


@dataclass(frozen=True)
class Inner:
    size: int | float = option(0.5, "a size")
    where: Path | None = option(None, "a path", actions=())


@dataclass(frozen=True)
class Outer:
    kind: Literal["a", "none"] | None = option(None, "a kind", aliases=("--sort",))
    on: bool = option(False, "a switch")
    count: int = option(1, "a count", at_least(1))
    inner: Inner = group(Inner, "inside", ("train",))


INFOS = {info.name: info for info in options_of(Outer, "outside")}


class TestDeclarations:
    def test_types_and_choices_are_those_of_the_hints(self) -> None:
        assert {name: info.type for name, info in INFOS.items()} == {
            "kind": str, "on": bool, "count": int, "size": int | float, "where": Path,
        }  # fmt: skip
        assert INFOS["kind"].choices == ("a", "none")
        assert [info.metavar for info in INFOS.values()] == ["{a,none}", "true|false", "N", "N|SHARE", "PATH"]

    def test_groups(self) -> None:
        assert [info.group for info in INFOS.values()] == ["outside"] * 3 + ["inside"] * 2
        assert [info.used_by("test") for info in INFOS.values()] == [True, True, True, False, True]

    @pytest.mark.parametrize(
        ("name", "text", "value"),
        [
            ("kind", "none", "none"), ("kind", "NA", None), ("on", "yes", True), ("size", "1", 1), ("size", "1.0", 1.0),
            ("size", "1e0", 1.0), ("where", "x/y", Path("x/y")), ("where", "none", None), ("count", "NA", None),
        ],
    )  # fmt: skip
    def test_text(self, name: str, text: str, value: object) -> None:
        found = INFOS[name].from_text(text)
        assert (found, type(found)) == (value, type(value))

    @pytest.mark.parametrize(("name", "text"), [("kind", "b"), ("on", "2"), ("count", "0"), ("count", "1.0")])
    def test_wrong_text(self, name: str, text: str) -> None:
        with pytest.raises(UserError):
            INFOS[name].from_text(text)

    @pytest.mark.parametrize(("name", "value"), [("count", True), ("count", 1.0), ("on", 1), ("size", "1")])
    def test_wrong_toml(self, name: str, value: object) -> None:
        with pytest.raises(UserError):
            INFOS[name].from_toml(name, value)


def test_groups_and_flat_names() -> None:
    assert flat(Options()) == defaults()
    options = changed(Options(), {"model": "opt_lora_ags", "batch_size": 3, "max_steps": 7})
    assert (options.model, options.data.batch_size, options.optimization.max_steps) == ("opt_lora_ags", 3, 7)
    assert flat(options) == {**defaults(), "model": "opt_lora_ags", "batch_size": 3, "max_steps": 7}
    assert all(set(info.actions) <= set(ACTIONS) for info in declared().values())


@pytest.mark.parametrize(
    ("spelling", "meaning"), [("16", "16-mixed"), ("bf16", "bf16-mixed"), ("32-true", "32"), ("64-true", "64")]
)
def test_precisions_as_in_lightning(tmp_path: Path, spelling: str, meaning: str) -> None:
    assert parse_command(["train", "--precision", spelling]).values["precision"] == meaning
    for text in {spelling.removesuffix("-true"), f'"{spelling}"'} - {"bf16"}:
        (tmp_path / "options.toml").write_text(f"precision = {text}\n")
        assert parse_command(["train", "--config", str(tmp_path / "options.toml")]).values["precision"] == meaning
    theirs = _PRECISION_INPUT_STR_ALIAS_CONVERSION
    assert theirs.get(spelling, spelling) == theirs.get(meaning, meaning)


@pytest.mark.parametrize(
    ("arguments", "in_file", "expected"),
    [
        ((), "", True), (("--random-init",), "", False), (("--random-init", "false"), "", True),
        (("--pretrained",), "", True), (("--pretrained", "false"), "", False), ((), "pretrained = false", False),
        ((), "is_pretrained = false", False), ((), "random_init = true", False), ((), "random_init = false", True),
        (("--pretrained",), "random_init = true", True), (("--random-init",), "pretrained = true", False),
    ],
)  # fmt: skip
def test_weights_are_read_unless_random_init_is_given(
    tmp_path: Path, arguments: tuple[str, ...], in_file: str, expected: bool
) -> None:
    (tmp_path / "options.toml").write_text(in_file)
    for model in (("--model", "some/model"), ("opt_lora", "--load", "some/base")):
        command = parse_command(["train", *model, "--config", str(tmp_path / "options.toml"), *arguments])
        assert command.values["pretrained"] is expected
        assert request_of(command).base.pretrained is expected


@pytest.mark.parametrize(
    ("action", "arguments", "expected"),
    [
        ("train-dyrealloc", (), "gain"),
        ("train-dyrealloc", ("--imp-source", "training"), "grad_norm"),
        ("train-dyrealloc", ("--importance-test-name", "snip"), "snip"),
        ("imp-test", (), "grad_norm"),
    ],
)
def test_the_default_heuristic(action: str, arguments: tuple[str, ...], expected: str) -> None:
    request = request_of(parse_command([action, "opt_lora", "rte", "--load", "some/base", *arguments]))
    assert request.options.scoring.importance_test_name == expected


@pytest.mark.parametrize("model", ["opt_lora", "some/model"])
def test_model_and_data_set_may_follow_a_list(model: str) -> None:
    values = parse_command(["train", "--target", "all", model, "rte"]).values
    assert (values["model"], values["dataset"], values["target"]) == (model, "rte", "all")


def test_underscores_are_dashes_in_names_only() -> None:
    given = parse_command(
        ["train", "--batch_size", "4", "--max_steps=3", "--lora_config=a_b", "--project", "c_d"]
    ).given
    assert given == {"batch_size": 4, "max_steps": 3, "lora_config": Path("a_b"), "project": "c_d"}


class TestConfigFile:
    @pytest.mark.parametrize(
        ("line", "advice"),
        [("lora_r = 8", "did you mean 'rank'"), ("bf16 = true", "did you mean 'precision'"),
         ("batch_sise = 8", "did you mean 'batch_size'")],
    )  # fmt: skip
    def test_names_of_other_programs(self, tmp_path: Path, line: str, advice: str) -> None:
        (tmp_path / CONFIG).write_text(line)
        with pytest.raises(UserError, match=advice):
            parse_command(["train", "--config", str(tmp_path / CONFIG)])

    def test_written_options_are_read_back(self, tmp_path: Path) -> None:
        options = changed(Options(), {"learning_rate": 1e-30, "load": "a 'b' \"c\" é", "limit_val_batches": 3})
        write_config(tmp_path, "train", options, {})
        again = parse_command(["train", "--config", str(tmp_path / CONFIG)])
        assert again.values == {**flat(options), "config": tmp_path / CONFIG}

    def test_another_action_runs_with_it(self, tmp_path: Path) -> None:
        write_config(tmp_path, "imp-test", changed(Options(), {"seed": 3}), {})
        command = parse_command(["train", "--config", str(tmp_path / CONFIG)])
        assert (command.action, command.values["seed"]) == ("train", 3)
        assert "action" not in command.given

    @pytest.mark.parametrize(
        ("arguments", "kinds"),
        [
            ((), {"lora", "shortcut"}),
            (("--model", "opt_lora"), {"lora"}),
            (("--model", "facebook/opt-350m"), set()),
            (("--shortcut-config", "NA"), {"lora"}),
        ],
    )
    def test_another_model_has_the_configurations_that_it_can_have(
        self, tmp_path: Path, arguments: tuple[str, ...], kinds: set[str]
    ) -> None:
        configs = {kind: ElementConfig(kind, "network", Settings(4, 8.0), {}) for kind in ("lora", "shortcut")}
        write_config(tmp_path, "train", changed(Options(), {"model": "opt_lora_ags"}), configs)
        command = parse_command(["train", "--config", str(tmp_path / CONFIG), *arguments])
        assert set(command.tables) == kinds

    def test_of_an_older_run(self, tmp_path: Path) -> None:
        (tmp_path / CONFIG).write_text('# python -m main train --config config.toml\nload_name = "x"\nprecision = 32\n')
        values = parse_command(["train", "--config", str(tmp_path / CONFIG)]).values
        assert (values["load"], values["precision"]) == ("x", "32")

    def test_no_number(self, tmp_path: Path) -> None:
        (tmp_path / CONFIG).write_text("seed = --1\n")
        with pytest.raises(UserError, match="not valid TOML"):
            parse_command(["train", "--config", str(tmp_path / CONFIG)])

    def test_control_characters(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="control character"):
            write_config(tmp_path, "train", changed(Options(), {"project": "a\x07b"}), {})
        assert not (tmp_path / CONFIG).exists()
