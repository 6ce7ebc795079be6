"""`train-dyrealloc` from the command line: its budget, its files, what is off, and exact resuming."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import toml
import torch

from actions.training.checkpoints import SafeCheckpointIO
from heterolora import saliency
from heterolora.choosing import history
from heterolora.saliency.problem import Problem
from main import main
from model.reallocation import sources
from tests.mistakes import complaint
from tests.quick import some_slow
from tests.world import World, command, metrics_of, run, same_weights, weights, write_lora, write_shortcuts


@pytest.fixture(scope="module")
def searching(world: World, tmp_path_factory: pytest.TempPathFactory):
    """A command that searches `opt_lora_ags` on the small SST-2: 12 batches an epoch, 8 LoRA elements, 7 shortcuts."""
    folder = tmp_path_factory.mktemp("configs")
    lora = write_lora(folder / "lora.toml", "q_proj", "v_proj", "w1", "w2", lora_dropout=0.1)
    shortcuts = write_shortcuts(folder / "shortcut.toml")

    def arguments(*more: object, shortcut: bool = True) -> list[str]:
        model = ("--model", "opt_lora_ags", "--shortcut-config", shortcuts) if shortcut else ("--model", "opt_lora")
        _, _, dataset, *rest = world.training("--lora-config", lora, "--imp-limit-test-batches", 2, *more)
        return ["train-dyrealloc", "--dataset", dataset, *map(str, model), *rest]

    return arguments


def on_by_kind(folder: Path) -> list[tuple[int, int]]:
    """(LoRA elements, shortcuts) that are on after each reallocation."""
    counts = []
    past = history.read(folder)
    for decision in past.decisions:
        on = [place.name for place, state in zip(past.places, decision.on, strict=True) if state]
        shortcuts = sum(name.startswith(("residual", "shortcut")) for name in on)
        counts.append((len(on) - shortcuts, shortcuts))
    return counts


def on_in(folder: Path) -> set[tuple[str, str]]:
    """The places that the configurations of a run turn on, such as (`model_layer_0`, `q_proj`)."""
    tables = {}
    for path in folder.glob("*.toml"):
        if path.name in ("lora.toml", "shortcut.toml"):
            for block, places in toml.load(path).items():
                if block.startswith("model_layer_"):
                    tables |= {(block, name): table for name, table in places.items()}
    return {
        place for place, table in tables.items() if not table.get("disable_adapter", table.get("disable_projector"))
    }


class TestBudget:
    @pytest.mark.parametrize("heuristic", some_slow(saliency.names(), quick=["snip", "gain", "constant"]))
    def test_holds_after_every_reallocation_of_every_heuristic(self, searching, tmp_path, heuristic: str) -> None:
        arguments = ("--importance-test-name", heuristic, "--realloc-N", 6, "--max-epochs", 1)
        assert run(*searching(*arguments, "--project-dir", tmp_path, "--project", "run")) == 0
        counts = on_by_kind(tmp_path / "run")
        assert len(counts) == 2  # 12 batches an epoch
        assert {sum(pair) for pair in counts} == {2 + 2}  # a quarter of 8, and of 7 rounded half up

    @pytest.mark.parametrize(
        ("mode", "shortcut", "expected"),
        [("separated", True, (4, 4)), ("off", True, (4, 7)), ("off", False, (4, 0))],
    )
    def test_of_each_mode(
        self, searching, capsys, tmp_path, mode: str, shortcut: bool, expected: tuple[int, int]
    ) -> None:
        """The last line is the command that trains the choice from the start."""
        arguments = ("--dyrealloc-ags-mode", mode, "--turn-on-percentile", 0.5, "--max-epochs", 1, "--realloc-N", 0.5)
        place = ("--project-dir", tmp_path, "--project", "run")
        assert run(*searching(*arguments, *place, shortcut=shortcut)) == 0
        assert on_by_kind(tmp_path / "run") == [expected] * 2
        *_, title, line = capsys.readouterr().out.splitlines()
        assert title == "next, to train this choice from the start:"
        _, _, _, *arguments = shlex.split(line)
        assert main([*arguments, "--max-steps", "1", "--project", "again"]) == 0
        assert on_in(tmp_path / "again") == on_in(tmp_path / "run")
        assert len(on_in(tmp_path / "run")) == sum(expected)

    def test_in_parameters(self, searching, tmp_path, capsys) -> None:
        """q and v cost 4 · 64 each, w1 and w2 4 · 96: at most 700 parameters are on, and nothing more would fit."""
        arguments = ("--budget-parameters", 700, "--max-epochs", 1, "--realloc-N", 0.5)
        assert run(*searching(*arguments, "--project-dir", tmp_path, "--project", "run", shortcut=False)) == 0
        past = history.read(tmp_path / "run")
        for decision in past.decisions:
            on = [place.name for place, state in zip(past.places, decision.on, strict=True) if state]
            spent = sum(256 if name in ("q_proj", "v_proj") else 384 for name in on)
            assert 700 - 256 < spent <= 700
        assert "budget (mode off): 700 of 2,560 parameters of LoRA on at a time" in capsys.readouterr().out
        options = toml.load(tmp_path / "run" / "config.toml")
        assert options["budget_parameters"] == 700
        assert "turn_on_percentile" not in options
        assert "at most 700" in (tmp_path / "run" / "adapter" / "README.md").read_text()
        last = tmp_path / "run" / "checkpoints" / "last.ckpt"
        assert run("train-dyrealloc", "--resume-training", "--load", last, "--max-epochs", 2) == 0
        assert run("train-dyrealloc", "--config", tmp_path / "run" / "config.toml", "--max-steps", 1) == 0
        assert [d.on for d in history.read(tmp_path / "run-2").decisions] == [past.decisions[0].on]

    @pytest.mark.slow
    def test_ties_are_drawn_anew_and_the_same_in_every_run_of_a_seed(self, searching, tmp_path) -> None:
        for project, seed in (("one", 0), ("same", 0), ("other", 1)):
            arguments = ("--importance-test-name", "constant", "--realloc-N", 3, "--max-epochs", 1, "--seed", seed)
            assert run(*searching(*arguments, "--project-dir", tmp_path, "--project", project)) == 0
        one, same, other = (history.read(tmp_path / project) for project in ("one", "same", "other"))
        assert one == same
        assert one != other
        assert len({decision.on for decision in one.decisions}) > 1

    def test_warm_up_lets_every_element_have_its_turn(self, searching, tmp_path) -> None:
        arguments = ("--realloc-warmup-epochs", 1, "--realloc-N", 3, "--max-epochs", 2, "--turn-on-percentile", 0.26)
        arguments += ("--importance-test-name", "snip")  # which scores an element 0 that was never trained
        assert run(*searching(*arguments, "--project-dir", tmp_path, "--project", "run")) == 0
        past = history.read(tmp_path / "run")
        in_warm_up = [decision.on for decision in past.decisions if decision.epoch == 0]
        assert [sum(states) for states in zip(*in_warm_up, strict=True)] == [1] * 14 + [2]  # 4 · 4 turns of 15
        assert all(score > 0 for score in past.decisions[-1].scores)


def test_gain_predicts_with_the_rates_of_the_coming_steps(searching, tmp_path, monkeypatch) -> None:
    lengths, score = [], sources.score

    def watched(name: str, problem: Problem) -> dict[str, float]:
        lengths.append(problem.movement.length)
        return score(name, problem)

    monkeypatch.setattr(sources, "score", watched)
    options = ("--learning-rate", 1e-3, "--lr-scheduler", "linear", "--realloc-N", 0.5, "--max-epochs", 1)
    assert run(*searching(*options, "--loraplus-ratio", 2, "--project-dir", tmp_path, "--project", "run")) == 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert run("train-dyrealloc", "--resume-training", "--load", last, "--max-epochs", 2) == 0
    intervals = [(12, range(6)), (12, range(6, 12)), (24, range(12, 18)), (24, range(18, 24))]
    expected = [sum(2e-3 * (1 - step / steps) for step in interval) for steps, interval in intervals]
    assert lengths == pytest.approx(expected)


def test_a_warm_up_that_is_too_short_or_too_long_is_said(searching, capsys, tmp_path) -> None:
    """Two reallocations of a quarter leave half of the elements out. With one epoch the heuristic decides nothing."""
    arguments = ("--importance-test-name", "snip", "--realloc-N", 6, "--project-dir", tmp_path)
    assert run(*searching(*arguments, "--max-epochs", 2)) == 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert re.search(r"note: \d elements were never on in the warm-up", said)
    assert "takes the whole run" not in said
    for short in (("--max-epochs", 1), ("--max-epochs", 2, "--max-steps", 7)):
        assert run(*searching(*arguments, *short)) == 0
        assert "the warm-up takes the whole run (" in " ".join("".join(capsys.readouterr()).split())


def test_the_first_scores_are_those_of_imp_test(searching, tmp_path) -> None:
    place = ("--importance-test-name", "grad_norm", "--project-dir", tmp_path, "--project")
    assert run(*searching("--max-steps", 1, *place, "search")) == 0
    _, *rest = searching(*place, "scores")
    assert run("imp-test", *rest) == 0
    scores = toml.load(tmp_path / "scores" / "scores.toml")
    past = history.read(tmp_path / "search")
    for place_, score in zip(past.places, past.decisions[0].scores, strict=True):
        assert scores[f"layer_{place_.layer}"][place_.name]["score"] == score


def test_heuristics_know_how_far_the_optimizer_will_go(searching, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 batches an epoch, in windows of 2. The reallocations, at batches 0 and 8, come before 4 and 2 steps."""
    seen = []
    monkeypatch.setattr(sources, "score", lambda _, problem: seen.append(problem.movement) or scores_of(problem))

    def scores_of(problem):
        return {element.key: 1.0 for element in problem.space.elements}

    place = ("--project-dir", tmp_path, "--project")
    arguments = ("--realloc-N", 8, "--accumulate-grad-batches", 2, "--max-epochs", 1, "--learning-rate", 1e-2)
    assert run(*searching(*arguments, *place, "adamw", "--loraplus-ratio", 4)) == 0
    assert run(*searching(*arguments, *place, "sgd", "--optimizer", "sgd")) == 0
    assert [step.adaptive for step in seen] == [True, True, False, False]
    assert [step.length for step in seen] == pytest.approx([0.16, 0.08, 0.04, 0.02])


@pytest.fixture
def every_save_kept(monkeypatch: pytest.MonkeyPatch):
    """Beside each checkpoint a copy of the run folder: what a run killed right then leaves behind."""
    save = SafeCheckpointIO.save_checkpoint

    def save_and_keep(self, checkpoint, path, storage_options=None) -> None:
        save(self, checkpoint, path, storage_options)
        run_folder = Path(path).parents[1]
        killed = run_folder.parent / f"killed-{len(list(run_folder.parent.glob('killed-*'))):02d}"
        shutil.copytree(run_folder, killed)

    monkeypatch.setattr(SafeCheckpointIO, "save_checkpoint", save_and_keep)


def test_what_is_off_stays_as_it_is(searching, tmp_path, every_save_kept) -> None:
    """Neither weights nor optimizer state of an element move while it is off, weight decay and momentum included."""
    arguments = ("--checkpoint-every-n-steps", 1, "--realloc-N", 3, "--weight-decay", 0.1, "--max-epochs", 2)
    assert run(*searching(*arguments, "--project-dir", tmp_path, "--project", "run")) == 0
    saved = [torch.load(path, weights_only=True) for path in sorted(tmp_path.glob("killed-*/checkpoints/last.ckpt"))]
    by_step = list({checkpoint["global_step"]: checkpoint for checkpoint in saved}.values())
    moved = stood = returned = 0
    for before, after in itertools.pairwise(by_step):
        on = set(after["heterolora"]["on"])
        returned += bool(on - set(before["heterolora"]["on"]))
        states = list(before["optimizer_states"][0]["state"].items())
        assert all(
            torch.equal(state["exp_avg"], after["optimizer_states"][0]["state"][index]["exp_avg"])
            or after["optimizer_states"][0]["state"][index]["step"] == state["step"] + 1
            for index, state in states
        )
        for name, value in before["state_dict"].items():
            if ".low_rank." in name or ".shortcuts." in name:
                is_on = any(key_of(name) == key for key in on)
                same = torch.equal(value, after["state_dict"][name])
                assert same or is_on, name
                stood, moved = stood + (not is_on), moved + (not same)
    assert moved > 50
    assert stood > 50
    assert returned


def key_of(name: str) -> str:
    """`network.model.decoder.layers.0.self_attn.q_proj.low_rank.A` → `layer_0.q_proj` (OPT's paths)."""
    parts = name.split(".")
    layer = parts[parts.index("layers") + 1]
    own = {"fc1": "w1", "fc2": "w2"}
    beside = parts[-3] if parts[-2] == "low_rank" else parts[-2]
    return f"layer_{layer}.{own.get(beside, beside)}"


RESUMED = {
    "dedicated": ("--realloc-N", 5),
    "training": ("--realloc-N", 5, "--imp-source", "training", "--imp-limit-test-batches", 3),
    "accumulation": ("--realloc-N", 4, "--imp-source", "training", "--accumulate-grad-batches", 2),
    "warm-up": ("--realloc-N", 3, "--importance-test-name", "snip", "--val-check-interval", 5),
}


def assert_resumes_as(killed: Path, whole: Path) -> None:
    """The search in the folder `killed` continues, and ends with the files of the one that was not interrupted."""
    assert run("train-dyrealloc", "--resume-training", "--load", killed / "checkpoints" / "last.ckpt") == 0
    for name in ("last", "best"):
        file = Path("checkpoints") / f"{name}.ckpt"
        assert same_weights(whole / file, killed / file), (killed.name, name)
    for name in (history.HISTORY, history.FREQUENCY):
        assert (killed / name).read_text() == (whole / name).read_text(), (killed.name, name)
    assert metrics_of(killed) == metrics_of(whole)


@pytest.mark.parametrize(
    "variant",
    some_slow(["dedicated", "training", "accumulation", "warm-up"], quick=["training"]),
)
def test_resume_is_exact(searching, tmp_path: Path, every_save_kept, variant: str) -> None:
    arguments = ("--project-dir", tmp_path, "--project", "whole", "--max-epochs", 2, "--checkpoint-every-n-steps", 1)
    assert run(*searching(*arguments, *RESUMED[variant])) == 0
    whole = tmp_path / "whole"
    killed = sorted(tmp_path.glob("killed-*"))
    for folder in (killed[4], killed[len(killed) // 2 + 1]):
        assert_resumes_as(folder, whole)


def test_resuming_cuts_the_files_back(searching, tmp_path: Path, every_save_kept) -> None:
    """Reallocations after the checkpoint that a killed run had written already are gone at once."""
    arguments = ("--project-dir", tmp_path, "--project", "whole", "--max-epochs", 1, "--realloc-N", 3)
    assert run(*searching(*arguments, "--checkpoint-every-n-steps", 1)) == 0
    early = sorted(tmp_path.glob("killed-*"))[4]
    for name in (history.HISTORY, history.FREQUENCY):
        shutil.copyfile(tmp_path / "whole" / name, early / name)
    last = early / "checkpoints" / "last.ckpt"
    steps = torch.load(last, weights_only=True)["global_step"]
    arguments = ("--resume-training", "--load", last, "--max-steps", steps + 1)
    assert run("train-dyrealloc", *arguments) == 0
    assert len(history.read(early).decisions) == -(-(steps + 1) // 3)


class TestAfterwards:
    @pytest.fixture(scope="class")
    def searched(self, searching, tmp_path_factory) -> Path:
        folder = tmp_path_factory.mktemp("searched")
        place = ("--project-dir", folder, "--project", "run")
        assert run(*searching("--max-epochs", 2, "--realloc-N", 0.25, *place)) == 0
        return folder / "run"

    def test_pictures(self, searched: Path) -> None:
        for name in ("reallocation_frequency.png", "reallocation_timeline.png"):
            assert (searched / name).read_bytes().startswith(b"\x89PNG")

    def test_test_restores_what_was_on(self, searched: Path, tmp_path: Path) -> None:
        best = searched / "checkpoints" / "best.ckpt"
        assert run("test", "--load", best, "--project-dir", tmp_path, "--project", "tested") == 0
        tested = metrics_of(tmp_path / "tested")["validation"]
        assert tested == pytest.approx(metrics_of(searched)["validation"], abs=1e-6)
        rows = json.loads((tmp_path / "tested" / "parameters.json").read_text())["rows"]
        on = torch.load(best, weights_only=True)["heterolora"]["on"]
        assert sum(row["on"] for row in rows) == len(on) == 4

    def test_the_result_is_a_configuration_that_trains_from_scratch(self, world, searched, tmp_path) -> None:
        model = ("train", "--model", "opt_lora_ags", "--dataset", "sst2", "--dataset-saved-path", world.sst2)
        base = ("--load", world.opt, "--pretrained", "--project-dir", tmp_path, "--project", "again", "--max-steps", 1)
        found = ("--lora-config", searched / "lora.toml")
        found += ("--shortcut-config", searched / "shortcut.toml")
        assert run(*model, *base, *found) == 0
        on = torch.load(searched / "checkpoints" / "best.ckpt", weights_only=True)["heterolora"]["on"]
        names = weights(tmp_path / "again" / "checkpoints" / "last.ckpt")
        assert {key_of(name) for name in names if ".score." not in name} == set(on)

    def test_train_does_not_continue_it(self, capfd, searched: Path) -> None:
        last = searched / "checkpoints" / "last.ckpt"
        line = complaint(capfd, *command("train", "--resume-training", "--load", last))
        assert "checkpoint of train-dyrealloc" in line

    def test_a_new_run_can_start_from_it(self, searched: Path, tmp_path: Path) -> None:
        best = searched / "checkpoints" / "best.ckpt"
        place = ("--project-dir", tmp_path, "--project", "onward")
        assert run("train", "--load", best, *place, "--max-steps", 1) == 0
        on = [torch.load(path, weights_only=True)["heterolora"]["on"] for path in
              (best, tmp_path / "onward" / "checkpoints" / "last.ckpt")]  # fmt: skip
        assert on[0] == on[1]


def test_an_interval_longer_than_an_epoch_is_said(searching, capsys, tmp_path) -> None:
    arguments = ("--realloc-N", 99, "--max-epochs", 2, "--project-dir", tmp_path, "--project", "run")
    assert run(*searching(*arguments)) == 0
    assert "once an epoch" in capsys.readouterr().out
    assert [(d.epoch, d.step) for d in history.read(tmp_path / "run").decisions] == [(0, 0), (1, 0)]


def test_an_epoch_that_is_no_whole_number_of_steps_is_not_longer_than_itself(searching, capsys, tmp_path) -> None:
    """12 batches an epoch are 2.4 optimizer steps of 5: 1.0 is the epoch, and 0.9 is rounded up beyond it."""
    place = ("--accumulate-grad-batches", 5, "--max-epochs", 1, "--project-dir", tmp_path)
    for interval, note in ((1.0, ""), (0.9, "--realloc-N 0.9 is 15 batches in whole optimizer steps, and")):
        assert run(*searching("--realloc-N", interval, *place, "--project", str(interval))) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert ("once an epoch" in printed) == bool(note)
        assert note in printed


def test_curves_of_the_search(searching, tmp_path) -> None:
    arguments = searching("--max-epochs", 1, "--realloc-N", 4, "--project-dir", tmp_path, "--project", "run")
    assert main([*arguments, "--accelerator", "cpu", "--logger", "csv"]) == 0
    header, *rows = (tmp_path / "run" / "logs" / "metrics.csv").read_text().splitlines()
    columns = header.split(",")
    assert {"realloc/churn", "realloc/lora_on", "realloc/shortcut_on", "realloc/scoring_share"} <= set(columns)
    churn = columns.index("realloc/churn")
    assert sum(bool(row.split(",")[churn]) for row in rows) == 3


def test_a_loss_that_is_no_number_stops_the_run(searching, capfd, tmp_path) -> None:
    lora = write_lora(tmp_path / "lora.toml", lora_alpha=1e20)
    arguments = ("--lora-config", lora, "--learning-rate", 1e20, "--optimizer", "sgd", "--project-dir", tmp_path)
    assert run(*searching(*arguments, "--project", "nan", "--realloc-N", 1, shortcut=False)) == 1
    assert re.search(r"at step \d+ \(epoch 0\)", capfd.readouterr().err)
    assert all(value.isfinite().all() for value in weights(tmp_path / "nan" / "checkpoints" / "last.ckpt").values())
