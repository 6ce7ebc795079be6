"""`imp-test`, from the command line to its files and what can be done with them."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from pytorch_lightning import Callback
from scipy.stats import spearmanr

from actions import train
from actions.command.parse import parse_command
from actions.request.elements import request_of
from actions.run.run_folder import open_run
from actions.training import scoring as scoring_of_run
from heterolora import saliency
from heterolora.choosing import scores
from heterolora.choosing.scores import Scores
from heterolora.elements import config
from heterolora.elements.element import Settings
from heterolora.saliency.score import score
from heterolora.saliency.score import scored as score_of
from heterolora.saliency.warm_up import WarmUp
from model.task.scoring import scoring_problem
from tests.adapted import adapted
from tests.scoring import labelled, problem, q_and_v
from tests.world import (
    World,
    command,
    metrics_of,
    model_folder,
    run,
    text_folder,
    write_shortcuts,
)
from tools import realloc_lora_rank

OF_EACH_RUN = ("run.json", ".lock")


def scoring(world: World, *more: object, shortcuts: bool = False) -> list[str]:
    """A command that scores `opt_lora` on the small SST-2 (45 rows, 12 batches of 4)."""
    model = ("opt_lora_ags", "sst2") if shortcuts else ("opt_lora", "sst2")
    shared = ("--load", world.opt, "--pretrained", "--dataset-saved-path", world.sst2, "--batch-size", 4)
    return [str(part) for part in ("imp-test", *model, *shared, "--project-dir", world.runs, *more)]


def scored(world: World, project: str, *more: object, shortcuts: bool = False) -> Scores:
    assert run(*scoring(world, "--project", project, *more, shortcuts=shortcuts)) == 0
    return scores.read(world.runs / project / "scores.toml")


def values(found: Scores) -> dict[str, float]:
    return {item.element.key: item.score for item in found.scored}


@pytest.fixture(scope="module")
def ags(world: World) -> Scores:
    return scored(world, "ags", "--imp-limit-test-batches", 3, shortcuts=True)


class TestFiles:
    def test_the_run_folder(self, world: World, ags: Scores) -> None:
        expected = {"config.toml", "scores.toml", "scores.png", *OF_EACH_RUN}
        assert {path.name for path in (world.runs / "ags").iterdir()} == expected
        assert (world.runs / "ags" / "scores.png").read_bytes().startswith(b"\x89PNG")

    def test_what_was_scored(self, world: World, ags: Scores) -> None:
        top = (ags.task, ags.dataset, ags.model, ags.load, ags.importance_test_name)
        assert top == ("classification", "sst2", "opt_lora_ags", str(world.opt), "grad_norm")
        assert (ags.batches, ags.batch_size, ags.seed, ags.renormalize) == (3, 4, 0, False)
        elements = [item.element for item in ags.scored]
        assert len(elements) == 2 * (6 + 4) - 1
        w2 = next(element for element in elements if element.key == "layer_1.w2")
        assert (w2.kind, w2.module) == ("lora", "model.decoder.layers.1.fc2")
        assert (w2.in_features, w2.out_features, w2.settings) == (64, 32, Settings(8, 16.0))
        last = elements[-1]
        assert (last.key, last.kind, last.module) == ("layer_1.shortcut2", "shortcut", "model.decoder.layers.1")
        assert all(math.isfinite(value) and value > 0 for value in values(ags).values())

    def test_two_halves(self, world: World, capsys: pytest.CaptureFixture[str]) -> None:
        """The correlation is printed, stored and drawn."""
        found = scored(world, "halves", "--imp-limit-test-batches", 4)
        said = capsys.readouterr().out
        expected = spearmanr(*zip(*(item.halves for item in found.scored), strict=True)).statistic
        assert found.stability == pytest.approx(expected)
        words = f"the scores of two halves of the batches have rank correlation {found.stability:.2f}"
        assert words in " ".join(said.split())
        assert (world.runs / "halves" / "stability.png").read_bytes().startswith(b"\x89PNG")
        assert "at this budget: " in said
        few = scored(world, "few", "--imp-limit-test-batches", 3)
        assert (few.stability, {item.halves for item in few.scored}) == (None, {()}), "one batch is no half"
        whole = scored(world, "whole", "--imp-limit-test-batches", 4, "--imp-halves", "false")
        assert values(whole) == values(found)
        assert (whole.stability, {item.halves for item in whole.scored}) == (None, {()})

    @pytest.mark.parametrize("name", [name for name in saliency.names() if "batches" not in saliency.get(name).ignores])
    def test_each_half_has_the_scores_of_its_batches(self, name: str) -> None:
        model = adapted("opt-pre", lora=q_and_v())
        every = problem(model, labelled(model, 5))
        found = score_of(name, every, halves=True)
        assert [item.score for item in found] == [item.score for item in score_of(name, every)], "bit for bit"
        for half in (0, 1):
            alone = score_of(name, replace(every, batches=every.batches[half::2]))
            expected = pytest.approx([item.score for item in alone], rel=1e-4, abs=1e-12)
            assert [item.halves[half] for item in found] == expected
        # a filler does not count, and the other half has the same batches
        filled = replace(every, batches=every.batches[:4], fillers=every.batches[4:])
        assert score_of(name, filled, halves=True)[0].halves[1] == pytest.approx(found[0].halves[1], rel=1e-4)

    def test_the_configuration_repeats_the_run(self, world: World, ags: Scores) -> None:
        assert run("imp-test", "--config", world.runs / "ags" / "config.toml") == 0
        assert scores.read(world.runs / "ags-2" / "scores.toml") == ags

    def test_renormalize_is_written_down(self, world: World, tmp_path: Path) -> None:
        path = write_shortcuts(tmp_path / "shortcut.toml")
        path.write_text("renormalize = true\n" + path.read_text())
        more = ("--shortcut-config", path, "--imp-limit-test-batches", 1)
        assert scored(world, "renormalized", *more, shortcuts=True).renormalize

    @pytest.mark.parametrize("name", saliency.names())
    def test_every_heuristic(self, world: World, name: str) -> None:
        more = ("--importance-test-name", name, "--imp-limit-test-batches", 2)
        found = scored(world, name, *more, shortcuts=True)
        assert found.importance_test_name == name
        assert len(set(values(found).values())) > 1 or name in ("constant", "alpha_test")


class TestPicture:
    def test_numbers_and_frames(self, world: World, ags: Scores, monkeypatch: pytest.MonkeyPatch) -> None:
        figures = []
        monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: (figures.append(figure), path.touch()))
        more = ("--imp-limit-test-batches", 3, "--turn-on-percentile", 0.3)
        again = scored(world, "drawn", *more, shortcuts=True)
        axes = figures[0].axes[0]
        power = math.floor(math.log10(max(values(again).values())))
        power = 0 if -1 <= power <= 2 else power
        shown = [float(text.get_text()) * 10.0**power for text in axes.texts]
        expected = [item.score for item in again.scored]
        assert shown == pytest.approx(expected, rel=0.01, abs=1e-3 * 10.0**power)
        frames = axes.collections[1].get_paths()
        assert len(frames) == int(0.3 * 12) + round(0.3 * 7)
        best = sorted(values(again), key=values(again).get)[-len(frames) :]
        bold = [text for text in axes.texts if text.get_fontweight() == "bold"]
        positions = {(round(text.get_position()[1]), round(text.get_position()[0])) for text in bold}
        names = [label.get_text() for label in axes.get_xticklabels()]
        assert {f"layer_{layer}.{names[column]}" for layer, column in positions} == set(best)


class TestBatches:
    def test_a_share_of_the_training_set(self, world: World) -> None:
        assert scored(world, "share", "--imp-limit-test-batches", 0.2).batches == 3  # of 12, rounded up

    def test_more_than_there_are(self, world: World, capsys) -> None:
        found = scored(world, "beyond", "--imp-limit-test-batches", 50, "--imp-warmup-batches", 30)
        assert found.batches == 12
        said = capsys.readouterr().out
        assert "--imp-limit-test-batches 50 is more than the training set has: all 12 are used" in said
        assert "--imp-warmup-batches 30 is more than the training set has: 12 are used" in said
        assert values(found) == values(
            scored(world, "all", "--imp-limit-test-batches", 1.0, "--imp-warmup-batches", 12)
        )


class TestWarmUp:
    def test_its_older_name(self, world: World) -> None:
        older = scored(world, "older", "--importance-test-name", "snip", "--alpha-limit-zptrain-batches", 2)
        newer = scored(world, "newer", "--importance-test-name", "snip", "--imp-warmup-batches", 2)
        assert values(older) == values(newer)

    def test_synflow_says_once_what_it_leaves_at_0(self, world: World, capsys) -> None:
        scored(world, "flow", "--importance-test-name", "synflow", "--imp-warmup-batches", 2)
        assert capsys.readouterr().out.count("synflow scores q_proj and k_proj 0") == 1


@pytest.mark.parametrize(
    ("share", "more", "shortcuts", "draws"),
    [
        (0.84, (), False, 1),
        (0.84, ("--dyrealloc-ags-mode", "separated"), True, 1),  # each kind has its own
        (0.5, (), False, 0),
        (1.0, (), False, 0),
    ],
)
def test_a_draw_is_said(world: World, capsys, share: float, more: tuple[str, ...], shortcuts: bool, draws: int) -> None:
    """12 elements, of which q_proj and k_proj of both blocks score 0: 10 of them on are 8 and a draw of 2."""
    drawn = ("--importance-test-name", "synflow", "--imp-warmup-batches", 1, "--turn-on-percentile", share, *more)
    scored(world, f"draws-{share}-{shortcuts}", *drawn, shortcuts=shortcuts)
    said = capsys.readouterr().out
    assert said.count("2 elements that are on were chosen at random from 4 with score 0") == draws
    assert ("at random" in said) == bool(draws)


def test_a_budget_in_parameters(world: World, tmp_path: Path, capsys) -> None:
    """The elements that the table shows as on are those that the next command turns on."""
    scored(world, "parameters", "--budget-parameters", 1500, "--imp-limit-test-batches", 2)
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if "realloc_lora_rank.py" in line)
    assert "--budget-parameters 1500" in line
    words = shlex.split(line)[2:]
    realloc_lora_rank.main([*words[:-1], str(tmp_path / "lora.toml")])
    sites = config.load(tmp_path / "lora.toml", "lora").sites
    rows = [line.split() for line in said.splitlines() if re.search(r"layer_\d\.\w+", line)]
    shown = {next(word for word in row if word.startswith("layer_")) for row in rows if "on" in row}
    assert len(shown) == 2  # one of 512 and one of 768 parameters, or two of 512
    assert {f"layer_{layer}.{name}" for layer, name in sites} == shown


class TestModels:
    def test_a_checkpoint(self, world: World, capsys) -> None:
        """Its elements are trained, so there is no warm-up, and its own configuration holds."""
        assert run(*world.training("--max-steps", 4, "--project", "for-scores")) == 0
        last = world.checkpoint("for-scores")
        shared = ("--load", last, "--project-dir", world.runs, "--importance-test-name", "snip")
        assert run("imp-test", *shared, "--batch-size", 4, "--project", "of-checkpoint") == 0
        assert "no warm-up" in capsys.readouterr().out
        found = scores.read(world.runs / "of-checkpoint" / "scores.toml")
        assert {item.element.name for item in found.scored} == {"q_proj", "v_proj"}
        assert found.load == str(world.opt)
        assert min(values(found).values()) > 0

    def test_language_modelling(self, tmp_path: Path, world: World) -> None:
        """alpha_test asks for the mean loss."""
        texts = text_folder(tmp_path / "texts")
        shared = ("--load", world.opt, "--pretrained", "--dataset-saved-path", texts, "--max-token-len", 8)
        more = ("--importance-test-name", "alpha_test", "--imp-limit-test-batches", 2, "--imp-warmup-lr", 1e-2)
        assert (
            run("imp-test", "opt_lora", "wikitext2", *shared, *more, "--project-dir", tmp_path, "--project", "lm") == 0
        )
        found = scores.read(tmp_path / "lm" / "scores.toml")
        assert {0.0} < set(values(found).values()) <= {step / 10 for step in range(11)}

    def test_roberta_with_gradient_checkpointing(self, tmp_path: Path, world: World) -> None:
        roberta = model_folder(tmp_path / "roberta", "roberta", "classification")
        shared = ("imp-test", "roberta_lora_ags", "sst2", "--load", roberta, "--pretrained", "--project-dir", tmp_path)
        more = ("--dataset-saved-path", world.sst2, "--batch-size", 4, "--imp-limit-test-batches", 2)
        assert run(*shared, *more, "--project", "plain") == 0
        assert run(*shared, *more, "--gradient-checkpointing", "--project", "checkpointed") == 0
        one, other = (scores.read(tmp_path / name / "scores.toml") for name in ("plain", "checkpointed"))
        assert values(one) == values(other)


class TestNext:
    @pytest.mark.parametrize("shortcuts", [False, True])
    def test_the_commands_that_it_names_work(self, world: World, capsys, shortcuts: bool) -> None:
        scored(world, f"next-{shortcuts}", "--imp-limit-test-batches", 2, shortcuts=shortcuts)
        *_, choose, train = capsys.readouterr().out.strip().splitlines()
        python, tool, *arguments = shlex.split(choose)
        assert (python, tool) == ("python", "tools/realloc_lora_rank.py")
        realloc_lora_rank.main(arguments)
        assert shlex.split(train)[:3] == ["python", "-m", "main"]
        assert run(*shlex.split(train)[3:], "--max-steps", 1, "--learning-rate", 1e-2) == 0


class TestStopping:
    @pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
    def test_before_there_are_scores(self, world: World, monkeypatch, stop: type[BaseException]) -> None:
        def interrupted(*_: object) -> None:
            raise stop

        monkeypatch.setattr(scoring_of_run, "scored", interrupted)
        if stop is KeyboardInterrupt:
            assert run(*scoring(world, "--project", "stopped")) == 130
        else:
            with pytest.raises(RuntimeError):
                run(*scoring(world, "--project", "stopped"))
        assert not (world.runs / "stopped").exists()

    def test_while_drawing(self, world: World, monkeypatch) -> None:
        def half_drawn(_: Figure, path: Path, **__: object) -> None:
            path.write_bytes(b"\x89PNG half")
            raise KeyboardInterrupt

        monkeypatch.setattr(Figure, "savefig", half_drawn)
        assert run(*scoring(world, "--project", "half", "--imp-limit-test-batches", 1)) == 130
        assert {path.name for path in (world.runs / "half").iterdir()} == {"config.toml", "scores.toml", *OF_EACH_RUN}
        scores.read(world.runs / "half" / "scores.toml")


class ScoresInBetween(Callback):
    """Scores by one heuristic after another: before a batch, inside an accumulation window, and while validating."""

    def __init__(self, batches: list) -> None:
        self.batches, self.made = batches, 0
        self.names = [*saliency.names(), *saliency.names()]

    def _score(self, task: train.Experiment) -> None:
        problem = scoring_problem(task, self.batches, tolerance=0.01)
        score(self.names[self.made % len(self.names)], problem, WarmUp(self.batches[:1]))
        self.made += 1

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self._score(pl_module)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self._score(pl_module)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        self._score(pl_module)


def test_training_is_the_same_with_scoring_in_the_middle(world: World, tmp_path: Path) -> None:
    """Weights, optimizer, data order, validation figures: bit for bit."""
    arguments = ("--accumulate-grad-batches", 2, "--max-epochs", 1, "--val-check-interval", 6, "--weight-decay", 0.1)
    found = {}
    for project in ("without", "with"):
        line = world.training(*arguments, "--project-dir", tmp_path, "--project", project)
        request = request_of(parse_command(command(*line)))
        with open_run(request) as opened:
            experiment, folder = train.start(request, opened.folder), opened.folder
            callback = ScoresInBetween(list(experiment.data.scoring_batches(2)))
            train.fit(experiment, opened, (callback,) if project == "with" else ())
        if project == "with":
            assert callback.made == 12 + 6 + 2 * 4
        checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        found[project] = {key: checkpoint[key] for key in ("state_dict", "optimizer_states", "loops", "lr_schedulers")}
        found[project]["metrics"] = metrics_of(folder)
    assert same(found["with"], found["without"])


def same(one: object, other: object) -> bool:
    """Equal, with tensors bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
