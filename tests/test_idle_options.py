"""An option has an effect on an action, or the program says that it has none.

Method: a small run of each action records which options are read, besides by code that copies all options. Then each
option is given with another value to each action, up to the resolved request. The outcome must be one of

- the option is refused, in one line;
- it was read by the run of that action;
- a note says that it has no effect.

An option that is read can still be without effect. `CASES` holds those cases, each with the notes that must appear and
the same command with the condition met, on which they must not. Weights of runs show the effect of a sample.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from actions.command.command import Command
from actions.command.parse import parse_command
from actions.request import compatible
from actions.request.elements import request_of
from heterolora.common.errors import UserError
from options import every as module
from options.actions import ACTIONS, ANSWERING, DYREALLOC, IMP_TEST, PREDICT, TEST, TRAIN
from options.every import Options, declared
from tests.world import World, command, run, same_weights, write_shortcuts

GENERIC = {"flat", "changed", "as_plain"}  # functions of options/every.py that copy all options

CHANGED = {  # option -> another value, for the command line
    "model": "opt_lora_ags", "dataset": "cola", "task": "summarization", "load_type": "pt", "pretrained": "false",
    "backbone_model": "some/base", "quantize": "nf4", "gradient_checkpointing": "true", "compile": "true",
    "max_new_tokens": "3",
    "num_beams": "2",
    "seed": "7", "resume_training": "true", "batch_size": "3", "max_token_len": "9", "max_target_len": "5",
    "group_by_length": "false", "num_workers": "1", "disable_dataset_cache": "true", "optimizer": "sgd",
    "learning_rate": "0.5", "loraplus_ratio": "4", "weight_decay": "0.5", "lr_scheduler": "cosine_annealing",
    "warmup_steps": "1", "eta_min": "1e-9", "max_steps": "2", "importance_test_name": "fisher",
    "imp_limit_test_batches": "2", "imp_source": "training", "imp_warmup_batches": "1", "imp_warmup_lr": "0.5",
    "metric_red_tolerance": "0.5", "turn_on_percentile": "0.5", "dyrealloc_ags_mode": "off", "realloc_N": "2",
    "realloc_warmup_epochs": "1", "max_epochs": "2", "limit_train_batches": "2", "limit_val_batches": "1",
    "limit_test_batches": "1", "val_check_interval": "2", "accumulate_grad_batches": "2", "gradient_clip_val": "0.5",
    "log_every_n_steps": "1", "accelerator": "auto", "num_devices": "2", "num_nodes": "2", "strategy": "ddp",
    "shard_size": "2", "precision": "bf16-mixed",
    "project_dir": "elsewhere", "project": "other", "logger": "csv", "log_level": "error",
    "checkpoint_every_n_steps": "1", "patience": "1", "measured": "last", "row_results": "true", "auto_requeue": "true",
    "lm_eval": "hellaswag", "lora_init": "orthogonal", "budget_parameters": "800", "cache_frozen_prefix": "true",
    "cache_limit": "1GB", "budget_time": "0.9", "stop_after": "1", "packing": "true", "attention": "eager",
    "hub_kernels": "true",
    "imp_halves": "false", "imp_step_time": "true", "text_columns": "a", "label_column": "b", "labels": "x,y",
    "regression": "true", "multi_label": "true", "prompt_column": "a", "response_column": "b", "messages_column": "a",
    "choices_column": "a", "few_shot": "1",
    "validation_share": "0.5", "validation_seed": "5", "streaming": "true", "shuffle_buffer": "5",
    "budget_schedule": "shrink", "shrink_units": "rank", "shrink_start": "0.2",
    "shrink_end": "0.6", "shrink_tolerance": "0.1",
    "drop_incomplete": "true", "class_weights": "balanced", "project_suffix": "true",
    "metric": "loss", "rank": "2", "alpha": "3", "target": "attention",
    "output": "other.csv", "overwrite": "true", "text": "a film", "probabilities": "true", "temperature": "0.5",
    "top_p": "0.5",
}  # fmt: skip
# Their values are paths.
FILES = ("load", "lora_config", "shortcut_config", "dataset_saved_path", "config", "cache_folder")


def base(world: World, action: str, *more: object) -> list[str]:
    """A small run of the action on a LoRA classifier, or of one that answers with a language model."""
    if action in ANSWERING:
        rows = world.sst2.parent / "prompts.txt"
        rows.write_text("a good film")
        output = ("--output", "-") if action == PREDICT else ()
        new = rows if action == PREDICT else "sst2"
        return [*map(str, (action, "opt_lora", new, "--load", world.opt, "--max-new-tokens", 2, *output, *more))]
    return [action, *world.training("--max-steps", 1, "--imp-limit-test-batches", 1, *more)[1:]]


def notes(arguments: list[str]) -> tuple[str, ...]:
    return request_of(parse_command(arguments)).notes


@pytest.fixture(scope="module")
def reads(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Action -> the options that a run of it reads."""
    found = {}
    for action in ACTIONS:
        with recording() as read, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdin", io.StringIO("a good film\n"))  # for chat
            assert run(*base(world, action, "--project-dir", tmp_path_factory.mktemp(action))) == 0
        found[action] = read | {"config"}  # which `parse_command` reads
    return found


@contextlib.contextmanager
def recording() -> Iterator[set[str]]:
    """Collect the names of the options that are read inside the block."""
    read: set[str] = set()

    def getattribute(options: object, name: str) -> object:
        caller = sys._getframe(1).f_code
        generic = caller.co_filename == module.__file__ and caller.co_name in GENERIC
        if not generic and caller.co_filename != dataclasses.__file__:
            read.update([item.name for item in dataclasses.fields(options)] if name == "__dict__" else [name])
        return object.__getattribute__(options, name)

    class Layer(dict):
        """Values of options before there are `Options`."""

        def __getitem__(self, name: str) -> object:
            read.add(name)
            return super().__getitem__(name)

        def get(self, name: str, default: object = None) -> object:
            read.add(name)
            return super().get(name, default)

        def __or__(self, other: dict) -> Layer:
            return Layer({**self, **other})

    groups = [value for value in vars(Options()).values() if dataclasses.is_dataclass(value)]
    with pytest.MonkeyPatch.context() as patch:
        for kind in (Options, *map(type, groups)):
            patch.setattr(kind, "__getattribute__", getattribute)
        for name in ("given", "values"):
            layer = vars(Command)[name].fget
            patch.setattr(Command, name, property(lambda command, layer=layer: Layer(layer(command))))
        yield read


def test_blocks_are_checkpointed_while_they_are_scored(world: World) -> None:
    said = {action: notes(base(world, action, "--gradient-checkpointing")) for action in ("imp-test", "test")}
    assert [any("--gradient-checkpointing" in each for each in found) for found in said.values()] == [False, True]


def test_options_of_another_action_are_not_checked(world: World, tmp_path: Path, monkeypatch) -> None:
    """The file of a training run may be used for `test` on a machine that could not train in this way."""
    (tmp_path / "options.toml").write_text(
        'compile = true\nlogger = "wandb"\ncache_frozen_prefix = true\ncache_folder = "/nowhere"\npacking = true\n'
    )
    monkeypatch.setenv("PATH", "")  # no compiler
    monkeypatch.setattr(compatible, "_check_installed", lambda *_: pytest.fail("a package is asked for"))
    given = ("test", "sst2", "--load", world.opt, "--dataset-saved-path", world.sst2, "--attention", "eager")
    assert notes([*map(str, given), "--config", str(tmp_path / "options.toml")]) == ()


def test_each_option_has_another_value() -> None:
    assert {*CHANGED, *FILES} == set(declared())


@pytest.mark.parametrize("action", ACTIONS)
def test_an_effect_or_a_note(world: World, reads: dict[str, set[str]], tmp_path: Path, action: str) -> None:
    (tmp_path / "options.toml").write_text("batch_size = 2\n", encoding="utf-8")
    paths = {
        "load": world.opt, "lora_config": world.lora, "shortcut_config": write_shortcuts(tmp_path / "shortcut.toml"),
        "dataset_saved_path": world.sst2, "config": tmp_path / "options.toml", "cache_folder": tmp_path,
    }  # fmt: skip
    silent = []
    for name, info in declared().items():
        value = str(paths.get(name) or CHANGED[name])
        positional = base(world, action)
        given = {"model": [action, value, *positional[2:]], "dataset": [action, "opt_lora", value, *positional[3:]]}
        try:
            said = notes(given.get(name) or [*positional, info.flag, value])
        except UserError:
            continue
        noted = any(note.startswith(f"{info.flag} has no effect ") for note in said)
        if not noted and name not in reads[action]:
            silent.append(info.flag)
    assert not silent


# ---- options that are read and have no effect

# action, arguments without effect -> the flag and why; arguments with which it has an effect
CASES = [
    (TRAIN, ("--max-target-len", 5), "--max-target-len has no effect with --task classification", None),
    (TRAIN, ("--max-new-tokens", 5), "--max-new-tokens has no effect with --task classification", None),
    (IMP_TEST, ("--max-new-tokens", 5), "--max-new-tokens has no effect on imp-test", None),
    (IMP_TEST, ("--limit-val-batches", 1), "--limit-val-batches has no effect on imp-test", (TEST,)),
    (IMP_TEST, ("--limit-test-batches", 1), "--limit-test-batches has no effect on imp-test", (TEST,)),
    (IMP_TEST, ("--num-workers", 1), "--num-workers has no effect on imp-test", (TEST,)),
    (TEST, ("--group-by-length",), "--group-by-length has no effect on test", (TRAIN,)),
    (TEST, ("--logger", "csv"), "--logger has no effect on test", (IMP_TEST,)),
    (TEST, ("--gradient-checkpointing",), "--gradient-checkpointing has no effect on test", (DYREALLOC,)),
    (TRAIN, ("--eta-min", 1e-9), "--eta-min has no effect with --lr-scheduler none",
     (TRAIN, "--lr-scheduler", "cosine_annealing")),
    (TRAIN, ("--log-every-n-steps", 2), "--log-every-n-steps has no effect with --logger none",
     (TRAIN, "--logger", "csv")),
    (TRAIN, ("--imp-limit-test-batches", 2), "--imp-limit-test-batches has no effect with --lora-init kaiming",
     (TRAIN, "--lora-init", "gradient")),
    (TRAIN, ("--cache-limit", "1GB"), "--cache-limit has no effect without --cache-frozen-prefix",
     (TRAIN, "--cache-frozen-prefix")),
    (TRAIN, ("--backbone-model", "some/base"), "--backbone-model has no effect with --load-type hf", None),
    (TRAIN, ("--strategy", "ddp"), "--strategy has no effect with one device", None),
    (TRAIN, ("--strategy", "ddp", "--num-devices", 2),
     "--strategy has no effect with --model opt_lora, which is trained in the same way by all but fsdp",
     (TRAIN, "--strategy", "fsdp")),
    (IMP_TEST, ("--strategy", "ddp", "--num-devices", 2), "--strategy has no effect on imp-test",
     (TEST, "--strategy", "fsdp")),
    (TRAIN, ("--shard-size", 2, "--num-devices", 2), "--shard-size has no effect with --strategy auto",
     (TRAIN, "--strategy", "fsdp")),
    (TRAIN, ("--auto-requeue",), "--auto-requeue has no effect outside a SLURM job", None),
    (IMP_TEST, ("--metric-red-tolerance", 0.5), "--metric-red-tolerance has no effect with --importance-test-name "
     "grad_norm", (IMP_TEST, "--importance-test-name", "alpha_test")),
    (IMP_TEST, ("--importance-test-name", "constant"), "--imp-limit-test-batches has no effect with "
     "--importance-test-name constant", None),
    (IMP_TEST, ("--imp-warmup-lr", 0.5),
     "--imp-warmup-lr has no effect with grad_norm, which has no warm-up by default",
     (IMP_TEST, "--imp-warmup-batches", 1)),
    (IMP_TEST, ("--imp-warmup-lr", 0.5, "--importance-test-name", "snip", "--imp-warmup-batches", 0),
     "--imp-warmup-lr has no effect with --imp-warmup-batches 0", None),
    (IMP_TEST, ("--imp-step-time", "true", "--budget-time", 0.5),
     "--imp-step-time has no effect with --budget-time, which needs the time", None),
    (DYREALLOC, ("--realloc-N", 2, "--budget-schedule", "shrink"),
     "--realloc-N has no effect with --budget-schedule shrink", (DYREALLOC, "--budget-schedule", "fixed")),
    (DYREALLOC, ("--shrink-end", 0.4), "--shrink-end has no effect with --budget-schedule fixed",
     (DYREALLOC, "--budget-schedule", "shrink")),
]  # fmt: skip


@pytest.mark.parametrize(("action", "arguments", "expected", "met"), CASES)
def test_read_without_effect(world: World, action: str, arguments: tuple, expected: str, met: tuple | None) -> None:
    assert expected in notes(command(*base(world, action, *arguments)))
    if met is not None:
        action, *more = met
        flag = expected.split()[0]
        said = notes([*command(*base(world, action, *arguments)), *map(str, more)])
        assert not [note for note in said if note.startswith(flag)]


def test_a_plain_model_has_no_frozen_prefix(world: World) -> None:
    said = notes(["train", str(world.opt), "--cache-frozen-prefix", "--cache-limit", "1GB"])
    why = f"has no effect with --model {world.opt}, which is trained completely"
    assert {f"--cache-frozen-prefix {why}", f"--cache-limit {why}"} <= set(said)


def test_without_load() -> None:
    said = notes(["train", "--pretrained", "--load-type", "hf"])
    assert {"--pretrained has no effect without --load", "--load-type has no effect without --load"} < set(said)


def test_beside_a_checkpoint(world: World, tmp_path: Path) -> None:
    assert run(*base(world, TRAIN, "--project", "for-notes")) == 0
    load = ("--load", str(world.checkpoint("for-notes")))
    assert set(notes(["test", *load, "--pretrained", "--seed", "3", "--backbone-model", str(world.opt)])) == {
        "--pretrained has no effect with --load-type pl", "--seed has no effect on test: no weight is random",
    }  # fmt: skip
    where = ("--project", "x", "--project-dir", str(tmp_path))
    own = world.runs / "for-notes"
    assert set(notes(["train", "--resume-training", *load, *where, "--max-steps", "3"])) == {
        f"{flag} has no effect on a resumed run: it continues in {own}" for flag in ("--project", "--project-dir")
    }
    (tmp_path / "config.toml").write_text(f'load = "{load[1]}"\npretrained = true\nmax_target_len = 5\n')
    said = notes(["test", "--config", str(tmp_path / "config.toml")])
    assert said == ("--max-target-len has no effect with --task classification",), "pretrained is as recorded"


def test_options_of_a_file(tmp_path: Path) -> None:
    """A file may repeat a run or hold options of several actions, so that defaults and other actions are not noted."""
    file = tmp_path / "options.toml"
    file.write_text("eta_min = 1e-9\nmax_target_len = 64\nrealloc_N = 3\n", encoding="utf-8")
    assert "--eta-min has no effect with --lr-scheduler linear" in notes(["train", "--config", str(file)])
    assert len(notes(["train", "--config", str(file)])) == 2  # and that the toy base is used


def test_limit_of_a_split_that_is_not_measured(capfd, world: World, tmp_path: Path) -> None:
    """SST-2 has no test labels, so that its test measures the validation split."""
    assert run(*base(world, TEST, "--limit-val-batches", 1, "--limit-test-batches", 1)) == 0
    assert "--limit-val-batches has no effect on test of this data set" in capfd.readouterr().out


def test_a_sample_changes_the_weights(world: World) -> None:
    runs = {
        "sample-as-it-is": (), "sample-again": (), "sample-other-seed": ("--seed", 1),
        "sample-other-rate": ("--learning-rate", 0.5),
    }  # fmt: skip
    for project, changed in runs.items():
        assert run(*base(world, TRAIN, "--project", project, *changed)) == 0
    first, *others = (world.checkpoint(project) for project in runs)
    assert [same_weights(first, other) for other in others] == [True, False, False]
