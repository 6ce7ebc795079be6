"""`train-dyrealloc --budget-schedule shrink`: from every element to the budget, from the command line."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import toml
import torch

from heterolora.choosing import history
from main import main
from tests.mistakes import complaint
from tests.quick import some_slow
from tests.test_dyrealloc import assert_resumes_as, every_save_kept, on_by_kind, searching  # noqa: F401
from tests.together import run_commands, together
from tests.world import World, command, metrics_of, run, run_apart, same_weights, weights, write_lora

SHRINK = ("--budget-schedule", "shrink")


@pytest.fixture
def shrinking(searching):  # noqa: F811
    """A command that shrinks the search space of `searching`: 15 elements, 12 steps an epoch."""

    def arguments(*more: object, shortcut: bool = True) -> list[str]:
        return searching("--max-epochs", 2, *more, *SHRINK, shortcut=shortcut)

    return arguments


def states(folder: Path) -> list[frozenset[str]]:
    """The elements that were on after each reallocation."""
    past = history.read(folder)
    return [
        frozenset(place.key for place, on in zip(past.places, decision.on, strict=True) if on)
        for decision in past.decisions
    ]


def steps(folder: Path) -> list[int]:
    """Optimizer steps before each reallocation."""
    return [12 * decision.epoch + decision.step for decision in history.read(folder).decisions]


class TestCurve:
    @pytest.mark.parametrize("mode", some_slow(["combined", "separated", "off"], quick=["separated"]))
    def test_from_everything_to_the_budget_and_never_back(self, shrinking, tmp_path, mode: str) -> None:
        """Half of 8 LoRA elements, and of 7 shortcuts rounded half up."""
        budget = ("--turn-on-percentile", 0.5, "--dyrealloc-ags-mode", mode)
        assert run(*shrinking(*budget, "--project-dir", tmp_path, "--project", "run")) == 0
        folder = tmp_path / "run"
        found, counts = states(folder), on_by_kind(folder)
        assert counts[0] == (8, 7)
        assert sum(counts[-1]) == 4 + {"combined": 4, "separated": 4, "off": 7}[mode]
        assert mode == "combined" or counts[-1][0] == 4
        assert all(later < before for before, later in itertools.pairwise(found))
        assert steps(folder)[0] == 0
        assert steps(folder)[1] > 2  # --shrink-start 0.1 of 24 steps
        assert steps(folder)[-1] <= 12  # --shrink-end 0.5
        best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["heterolora"]["on"]
        assert set(best) == found[-1]

    def test_the_parameters_follow_the_cubic_curve(self, shrinking, tmp_path) -> None:
        arguments = ("--budget-parameters", 700, "--shrink-start", 0.25, "--shrink-end", 0.75, "--logger", "csv")
        arguments = shrinking(*arguments, "--project-dir", tmp_path, "--project", "run", shortcut=False)
        assert main([*arguments, "--accelerator", "cpu"]) == 0
        cost = {"q_proj": 256, "v_proj": 256, "w1": 384, "w2": 384}
        whole = 2 * sum(cost.values())
        for step, on in zip(steps(tmp_path / "run"), states(tmp_path / "run"), strict=True):
            allowed = 700 + (whole - 700) * (1 - max(0, step - 6) / 12) ** 3
            assert sum(cost[key.split(".")[1]] for key in on) <= math.ceil(allowed)
        assert sum(cost[key.split(".")[1]] for key in on) > 700 - 256
        header, *rows = (tmp_path / "run" / "logs" / "metrics.csv").read_text().splitlines()
        column = header.split(",").index("realloc/parameters_on")
        curve = [float(row.split(",")[column]) for row in rows if row.split(",")[column]]
        assert curve[0] == whole
        assert all(later < before for before, later in itertools.pairwise(curve))

    def test_it_begins_with_everything_after_a_search(self, shrinking, searching, tmp_path) -> None:  # noqa: F811
        """A run that starts from the weights of another one starts with its elements that were off, too."""
        assert run(*searching("--max-epochs", 1, "--project-dir", tmp_path, "--project", "before")) == 0
        last = tmp_path / "before" / "checkpoints" / "last.ckpt"
        arguments = ("train-dyrealloc", "--load", last, *SHRINK, "--project-dir", tmp_path, "--project", "run")
        assert run(*arguments) == 0
        assert on_by_kind(tmp_path / "run")[0] == (8, 7)


RESUMED = {
    "plain": (),
    "accumulation": ("--accumulate-grad-batches", 5, "--shrink-end", 0.9),
    "validation": ("--val-check-interval", 5, "--importance-test-name", "fisher"),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", RESUMED)
def test_resume_is_exact(shrinking, tmp_path: Path, every_save_kept, variant: str) -> None:  # noqa: F811
    arguments = ("--project-dir", tmp_path, "--project", "whole", "--checkpoint-every-n-steps", 1)
    assert run(*shrinking(*arguments, *RESUMED[variant])) == 0
    whole, killed = tmp_path / "whole", sorted(tmp_path.glob("killed-*"))
    assert len(states(whole)) > 2
    for folder in (killed[4], killed[len(killed) // 2]):
        assert_resumes_as(folder, whole)


@pytest.mark.slow
def test_two_processes_as_one(world: World, tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "lora.toml", "q_proj", "v_proj", "w1")
    _, _, *rest = world.training("--lora-config", lora, "--project-dir", tmp_path, "--max-epochs", 2)
    shared = ("train-dyrealloc", "opt_lora", *rest, *SHRINK)
    assert run(*shared, "--project", "one") == 0
    two = ("--batch-size", 2, "--num-devices", 2, "--project", "two")
    finished = run_apart(*shared, *two)
    assert finished.returncode == 0, finished.stderr
    assert states(tmp_path / "one") == states(tmp_path / "two")
    one, other = (weights(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("one", "two"))
    assert all(torch.allclose(one[name], other[name], atol=1e-5, rtol=0) for name in one)


class TestWhatIsMeasured:
    def test_the_best_weights_are_within_the_budget(self, shrinking, tmp_path) -> None:
        """A validation before the budget is reached selects nothing, and does not count for --patience."""
        arguments = ("--val-check-interval", 2, "--shrink-end", 0.75, "--patience", 3, "--learning-rate", 1e-12)
        assert run(*shrinking(*arguments, "--project-dir", tmp_path, "--project", "run")) == 0
        best = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
        assert best["global_step"] == 20  # the first validation after step 18
        last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
        assert last["global_step"] == 24
        assert len(best["heterolora"]["on"]) == 4

    def test_a_run_that_ends_before_says_so(self, shrinking, tmp_path, capsys) -> None:
        assert run(*shrinking("--stop-after", 4, "--project-dir", tmp_path, "--project", "run")) == 0
        said = " ".join("".join(capsys.readouterr()).split())
        assert "training ended after step 4, before the budget was reached" in said
        assert "no validation within the budget had a finite" in said


def test_the_files_say_how_it_was_found(shrinking, tmp_path, capsys) -> None:
    assert (
        run(*shrinking("--budget-parameters", 700, "--project-dir", tmp_path, "--project", "run", shortcut=False)) == 0
    )
    said = capsys.readouterr().out
    assert "700 of 2,560 parameters of LoRA on at the end" in said
    assert "scores from the training gradients" in said
    options = toml.load(tmp_path / "run" / "config.toml")
    assert (options["budget_schedule"], options["importance_test_name"]) == ("shrink", "snip")
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert "every element was on at the start, and the weakest were turned off" in card
    for name in ("reallocation_frequency.png", "reallocation_timeline.png", "reallocation_curve.png"):
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")


class TestRanks:
    """8 LoRA elements of rank 4: 32 ranks."""

    def test_the_result_has_the_ranks_that_are_left(self, shrinking, tmp_path, capsys) -> None:
        arguments = ("--shrink-units", "rank", "--turn-on-percentile", 0.25, "--learning-rate", 0.05)
        assert run(*shrinking(*arguments, "--project-dir", tmp_path, "--project", "run", shortcut=False)) == 0
        assert "8 of 32 LoRA ranks on at the end" in capsys.readouterr().out
        folder = tmp_path / "run"
        found = states(folder)
        assert len(found[0]) == 32
        assert all(later < before for before, later in itertools.pairwise(found))
        left = Counter(key.rpartition(".")[0] for key in found[-1])
        assert sum(left.values()) == 8
        assert max(left.values()) < 4  # so that something was cut
        tables = toml.load(folder / "lora.toml")
        settings = {
            f"layer_{block.removeprefix('model_layer_')}.{name}": (table["r"], table["lora_alpha"])
            for block, names in tables.items() if block.startswith("model_layer_")
            for name, table in names.items() if not table.get("disable_adapter")
        }  # fmt: skip
        assert settings == {key: (rank, 2.0 * rank) for key, rank in left.items()}  # as at rank 4, with alpha 8
        saved = weights(folder / "checkpoints" / "last.ckpt")
        zeros = [row for name, value in saved.items() if name.endswith("low_rank.A") for row in value if not row.any()]
        assert len(zeros) == 32 - 8
        for load in ("adapter", "checkpoints/best.ckpt"):  # without the ranks, and with their zeros
            place = ("--project-dir", tmp_path, "--project", f"test-{Path(load).name}")
            given = ("test", "--load", folder / load, *place)
            assert run(*given) == 0
            tested = metrics_of(tmp_path / f"test-{Path(load).name}")["validation"]
            assert tested == pytest.approx(metrics_of(folder)["validation"], abs=1e-5)

    @pytest.mark.slow
    def test_resume_is_exact(self, shrinking, tmp_path, every_save_kept) -> None:  # noqa: F811
        arguments = ("--shrink-units", "rank", "--checkpoint-every-n-steps", 1, "--weight-decay", 0.1)
        assert run(*shrinking(*arguments, "--project-dir", tmp_path, "--project", "whole")) == 0
        whole, killed = tmp_path / "whole", sorted(tmp_path.glob("killed-*"))[7]
        assert run("train-dyrealloc", "--resume-training", "--load", killed / "checkpoints" / "last.ckpt") == 0
        assert same_weights(*(folder / "checkpoints" / "last.ckpt" for folder in (whole, killed)))
        for name in (history.HISTORY, "lora.toml", "shortcut.toml"):
            assert (killed / name).read_text() == (whole / name).read_text()


def tolerance_of(checkpoint: Path) -> dict[str, Any]:
    callbacks = torch.load(checkpoint, weights_only=True)["callbacks"]
    return next(state["tolerance"] for state in callbacks.values() if "tolerance" in state)


class TestTolerance:
    """Validations after steps 4, 6, 8, …; elements are turned off after steps 3 to 12."""

    def test_it_goes_down_to_one_element_if_the_loss_never_rises(self, shrinking, tmp_path, capsys) -> None:
        arguments = ("--shrink-tolerance", 1e6, "--val-check-interval", 2, "--project-dir", tmp_path)
        assert run(*shrinking(*arguments, "--project", "run", shortcut=False)) == 0
        assert [len(on) for on in states(tmp_path / "run")][-1] == 1
        said = " ".join(capsys.readouterr().out.split())
        assert "the smallest size with which the validation loss held: 1 of 8 elements" in said

    @pytest.mark.parametrize(
        ("rate", "seed", "rise", "ended", "why"),
        [
            (0.1, 1, 0.0, "risen", r"that of a smaller one was \+"),
            pytest.param(
                *(0.3, 3, 0.1, "undecided", "the rows do not show whether smaller ones hold"), marks=pytest.mark.slow
            ),
        ],
    )
    def test_it_goes_back_to_the_last_size_that_held(
        self,
        shrinking,
        tmp_path,
        capsys,
        every_save_kept,  # noqa: F811
        rate: float,
        seed: int,
        rise: float,
        ended: str,
        why: str,
    ) -> None:
        """The losses are those of the log, and the verdicts decide, exactly also when resumed."""
        arguments = ("--shrink-tolerance", rise, "--val-check-interval", 2, "--learning-rate", rate, "--seed", seed)
        arguments += ("--checkpoint-every-n-steps", 1, "--project-dir", tmp_path, "--project", "whole")
        assert run(*shrinking(*arguments, "--row-results", "true", shortcut=False)) == 0
        assert (tmp_path / "whole" / "rows.csv").read_text().count("\n") > 1
        said = " ".join(capsys.readouterr().out.split())
        losses = [float(text) for text in re.findall(r"step \d+: validation/loss ([\d.]+)", said)]
        number = r"([-+][\d.]+)"
        line = rf"step (\d+): (\d) of 8 elements, .*? {number} \({number} to {number}\): (\w+)"
        judged = [(int(step), int(on), float(d), float(low), float(high), verdict)
                  for step, on, d, low, high, verdict in re.findall(line, said)]  # fmt: skip
        whole = tmp_path / "whole"
        at, found = steps(whole), states(whole)

        def on_after(step: int) -> frozenset[str]:
            """The elements with which step `step` (from 1) was computed."""
            return [on for begin, on in zip(at, found, strict=True) if begin < step][-1]

        for step, count, difference, low, high, verdict in judged:
            assert count == len(on_after(step))
            assert difference == pytest.approx(losses[step // 2 - 1] - min(losses[: step // 2 - 1]), abs=2e-4)
            assert verdict == ("held" if high <= rise else "risen" if low > rise else "undecided")
        assert judged[-1][-1] == ended
        held = [on_after(step) for step, *_, verdict in judged if verdict == "held"][-1]
        assert 1 < len(held) < 8
        assert found[-1] == held
        assert len(found[-2]) == 1
        assert f"the smallest size with which the validation loss held: {len(held)} of 8 elements" in said
        assert re.search(why, said)
        for folder in sorted(tmp_path.glob("killed-*"))[5:12:6]:
            assert run("train-dyrealloc", "--resume-training", "--load", folder / "checkpoints" / "last.ckpt") == 0
            assert same_weights(*(each / "checkpoints" / "last.ckpt" for each in (whole, folder)))
            assert (folder / history.HISTORY).read_text() == (whole / history.HISTORY).read_text()

    def test_two_processes_judge_all_rows(self, world: World, tmp_path: Path) -> None:
        lora = write_lora(tmp_path / "lora.toml", "q_proj", "v_proj", "w1")
        _, _, *rest = world.training("--lora-config", lora, "--project-dir", tmp_path, "--max-steps", 14)
        shared = ("train-dyrealloc", "opt_lora", *rest, *SHRINK, "--val-check-interval", 0.25, "--shrink-end", 0.9)
        shared = (*shared, "--shrink-tolerance", 0.0, "--learning-rate", 0.1, "--max-epochs", 2)
        assert run(*shared, "--project", "one") == 0
        together(2, run_commands, [(*shared, "--batch-size", 2, "--num-devices", 2, "--project", "two")])
        one, two = (tolerance_of(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("one", "two"))
        assert one["stopped"]
        assert (one["held"], one["stopped"]) == (two["held"], two["stopped"])
        assert one["last"] == pytest.approx(two["last"], abs=1e-4)
        assert torch.allclose(one["lowest"], two["lowest"], atol=1e-4)

    def test_few_validations_are_said(self, shrinking, tmp_path, capsys) -> None:
        assert run(*shrinking("--shrink-tolerance", 0.1, "--project-dir", tmp_path, shortcut=False)) == 0
        assert "1 validation while elements are turned off: lower --val-check-interval" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--shrink-tolerance", 0.1, "--shrink-units", "rank"), "a rank that is off cannot come back"),
        (("--shrink-units", "rank", "--budget-parameters", 90), "expected at least 96 with schedule 'shrink'"),
        (
            ("--shrink-tolerance", 0.1, "--budget-parameters", 500),
            "--budget-parameters and --shrink-tolerance are both",
        ),
        (("--importance-test-name", "gain"), "--budget-schedule shrink cannot be used with gain"),
        (("--shrink-start", 0.5), "--shrink-start 0.5 is not before --shrink-end 0.5; give a smaller --shrink-start"),
        (("--budget-time", 0.5), "--budget-time cannot be used with --budget-schedule shrink"),
        (("--budget-parameters", 10), "a budget of 10 parameters pays for no element; expected at least 384"),
        (("--budget-parameters", 300), "expected at least 384 with schedule 'shrink'"),
        (("--budget-parameters", 10**6), "is above the 2560 of all elements"),
        (("--max-steps", 1), "a run of 1 optimizer step has no step to shrink in"),
    ],
)
def test_mistakes(shrinking, tmp_path, capfd, given: tuple, message: str) -> None:
    line = complaint(capfd, *command(*shrinking(*given, "--project-dir", tmp_path, shortcut=False)))
    assert message in line
