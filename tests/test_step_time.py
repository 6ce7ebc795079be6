"""--budget-time: the choice within a time against brute force, the measured constants, and the commands."""

from __future__ import annotations

import itertools
import random
import re
import shlex
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from heterolora.choosing import history, scores
from heterolora.choosing.allocation import Scored, tie_generator
from heterolora.choosing.ranks import Budget, Greedy, TopK, assign, choose
from heterolora.choosing.scores import Scores
from heterolora.choosing.step_time import StepTime, best_within
from heterolora.common.errors import UserError
from heterolora.elements.element import Element, Settings
from heterolora.saliency.problem import Loss, Problem
from model.task.timing import measured
from tests.adapted import adapted, lora_config
from tests.tiny import tiny_batch
from tests.world import World, run
from tools import realloc_lora_rank

TIME = StepTime(blocks=4, forward=3.0, block=0.5, width=0.01)


def element(layer: int, name: str = "q_proj", wide: int = 8, out: int = 8) -> Element:
    kind = "shortcut" if "residual" in name else "lora"
    return Element(layer, name, kind, f"blocks.{layer}.{name}", wide, out, Settings(2, 4))


def drawn(seed: int, count: int = 9) -> list[Scored]:
    """Elements of random widths in random blocks, with random scores, some of them 0."""
    draw = random.Random(seed)
    places = draw.sample(list(itertools.product(range(4), ("q_proj", "v_proj", "w1", "residual1"))), count)
    widths = [(draw.choice((8, 16)), draw.choice((8, 24))) for _ in places]
    found = [element(*place, *width) for place, width in zip(places, widths, strict=True)]
    return [Scored(each, draw.choice((0.0, draw.random(), draw.random()))) for each in found]


def value(items: list[Scored], keys: frozenset[str]) -> float:
    return sum(item.score for item in items if item.element.key in keys)


def brute_force(items: list[Scored], always: list[Element], time: StepTime, seconds: float) -> float:
    """The largest sum of scores of all subsets within the time."""
    subsets = itertools.chain.from_iterable(itertools.combinations(items, n) for n in range(len(items) + 1))
    within = (each for each in subsets if time.of([*always, *(item.element for item in each)]) <= seconds + 1e-9)
    return max((sum(item.score for item in each) for each in within), default=0.0)


@pytest.mark.parametrize("seed", range(12))
def test_no_choice_is_better(seed: int) -> None:
    items = drawn(seed)
    always = [element(2, "residual2")] if seed % 3 == 0 else []
    time = replace(TIME, width=0.0) if seed == 5 else TIME
    whole = time.of([*always, *(item.element for item in items)])
    for share in (0.4, 0.55, 0.7, 0.85, 0.999, 1.0):
        keys = best_within(items, always, time, share * whole)
        on = [*always, *(item.element for item in items if item.element.key in keys)]
        assert time.of(on) <= share * whole * (1 + 1e-6) or not keys
        assert value(items, keys) == pytest.approx(brute_force(items, always, time, share * whole))
    assert len(keys) == len(items), "a share of 1 pays for every element"


def test_a_high_block_is_cheap() -> None:
    items = [Scored(element(layer), score) for layer, score in enumerate((1.5, 1.0, 1.0, 1.0))]
    assert best_within(items, [], TIME, TIME.of([items[2].element, items[3].element])) == {
        "layer_2.q_proj",
        "layer_3.q_proj",
    }
    assert best_within(items, [], TIME, TIME.of([items[0].element])) == {f"layer_{layer}.q_proj" for layer in (1, 2, 3)}
    negative = [Scored(item.element, -item.score) for item in items]  # of the warm-up of a dynamic run
    assert best_within(negative, [], TIME, TIME.of([items[3].element])) == {"layer_3.q_proj"}
    equal = [Scored(item.element, 0.0) for item in items]
    assert len(best_within(equal, [], TIME, TIME.of([items[1].element, items[3].element]))) == 2


def test_elements_without_a_score_are_added_in_their_order() -> None:
    items = [Scored(element(3, name), score) for name, score in (("q_proj", 1.0), ("v_proj", 0.0), ("w1", 0.0))]
    chosen = best_within(items, [], TIME, TIME.of([items[0].element, items[1].element]))
    assert chosen == {"layer_3.q_proj", "layer_3.v_proj"}
    lower = [items[0], Scored(element(0), 0.0), *items[1:]]  # with it, no time is left for the others
    assert best_within(lower, [], TIME, TIME.fixed(0) + 0.17) == {item.element.key for item in items}


def test_widths_without_a_common_divisor() -> None:
    items = [Scored(element(index % 4, f"w{index}", 997 + index, 1009), 1.0) for index in range(40)]
    whole = TIME.of([item.element for item in items])
    keys = best_within(items, [], TIME, 0.5 * whole)
    assert 0.46 * whole < TIME.of([item.element for item in items if item.element.key in keys]) <= 0.5 * whole


def test_elements_that_take_almost_no_time() -> None:
    """The time that is left, divided by that of an element, is more than a float holds."""
    items = [Scored(element(layer), 1.0) for layer in range(4)]
    assert best_within(items, [], replace(TIME, width=1e-320), TIME.fixed(2)) == {"layer_2.q_proj", "layer_3.q_proj"}


def test_spending() -> None:
    items = [Scored(element(layer), 1.0) for layer in range(4)] + [Scored(element(1, "residual1"), 9.0)]
    limit, ties = Budget("time", 0.9, TIME), tie_generator(0, 0)
    assignment = assign(items, TopK(5), limit, "combined", ties)
    (spending,) = assignment.spending
    assert (spending.title, spending.unit) == ("LoRA and shortcuts", "µs of a step")
    assert spending.size == 5_800_000
    assert spending.spent <= spending.budget == 5_220_000
    assert set(assignment.ranks.values()) == {5}
    assert "layer_1.residual1" in assignment.ranks, "both kinds are chosen from"
    assert "layer_1.residual1" in choose(items, limit, "off", ties), "as it was scored"
    assert assign(items, TopK(5), limit, "off", ties).spending[0].title == "LoRA"
    for policy, mode, amount, expected in (
        (TopK(), "separated", 0.9, "cannot be divided"),
        (Greedy(), "combined", 0.9, "chooses elements, not ranks"),
        (TopK(), "combined", 0.5, "pays for no element; expected at least 0.632"),
    ):
        with pytest.raises(UserError, match=expected):
            assign(items, policy, Budget("time", amount, TIME), mode, ties)


def test_the_constants_are_measured_and_the_network_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted("llama", lora=lora_config(), num_hidden_layers=3)
    model.space.switch({"layer_1.q_proj"})
    batch, on = tiny_batch(), model.space.on()

    def evaluate(batch: dict[str, torch.Tensor]) -> Loss:
        logits = model.network(**batch).logits
        return Loss(logits.square().sum(), torch.tensor(3), logits)

    found = measured(Problem(model.network, model.space, evaluate, []), batch)
    assert found.blocks == 3
    assert found.forward > 0
    assert found.block >= 0  # the noise of a busy machine may be larger than a tiny block
    assert model.space.on() == on

    exact = StepTime(3, 2.0, 0.25, 0.001)
    monkeypatch.setattr(
        "model.task.timing._seconds",
        lambda problem, batch, on: exact.of(each for each in problem.space.elements if each.key in on),
    )
    again = measured(Problem(model.network, model.space, evaluate, []), batch)
    assert asdict(again) == pytest.approx(asdict(exact))


def test_files(tmp_path: Path) -> None:
    written = Scores((Scored(element(3), 1.0),), "grad_norm", step_time=TIME)
    scores.write(tmp_path / "new.toml", written)
    assert scores.read(tmp_path / "new.toml").step_time == TIME
    scores.write(tmp_path / "old.toml", replace(written, step_time=None))
    assert scores.read(tmp_path / "old.toml").step_time is None
    text = (tmp_path / "new.toml").read_text()
    for old, new, found in (
        ("forward = 3.0", "forward = -1.0", "forward is -1.0; expected seconds, from 0 to 1,000,000"),
        ("block = 0.5", "block = 1e308", r"block is 1e\+308; expected seconds, from 0 to 1,000,000"),
        ("blocks = 4", "blocks = 3", "blocks is 3; expected more than 3"),
        ("width = 0.01", "", "width missing"),
    ):
        (tmp_path / "wrong.toml").write_text(text.replace(old, new))
        with pytest.raises(UserError, match=found):
            scores.read(tmp_path / "wrong.toml")
    with pytest.raises(UserError, match=r"has no \[step_time\]; score again"):
        realloc_lora_rank.main(
            [str(tmp_path / "old.toml"), "--budget-time", "0.7", "--output", str(tmp_path / "a.toml")]
        )


def test_commands(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    """imp-test, the tool on its scores, and a search, which measures once, also if it is resumed."""
    monkeypatch.setattr("model.task.timing._seconds", lambda problem, batch, on: 1.0 + len(on))
    shared = world.training("--project-dir", tmp_path, "--imp-limit-test-batches", 2, "--budget-time", 0.9)[1:]
    assert run("imp-test", *shared, "--project", "scores") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "realloc_lora_rank.py" in line)
    arguments = shlex.split(line)[2:]
    assert arguments[1:3] == ["--budget-time", "0.9"]
    realloc_lora_rank.main(arguments)
    assert "µs of a step" in capsys.readouterr().out
    found = scores.read(tmp_path / "scores" / "scores.toml")
    assert found.step_time.blocks == 2

    capsys.readouterr()
    without = (*shared[:-2], "--project", "without")
    assert run("imp-test", *without) == 0
    assert "of the step time" not in capsys.readouterr().out
    assert scores.read(tmp_path / "without" / "scores.toml").step_time is None
    on_request = (*shared[:-2], "--imp-step-time", "true", "--project", "on-request")
    assert run("imp-test", *on_request) == 0
    assert "of the step time" in capsys.readouterr().out
    assert scores.read(tmp_path / "on-request" / "scores.toml").step_time is not None

    short = (*shared[:-1], 0.01)
    assert run("imp-test", *short, "--project", "short") == 2
    said = capsys.readouterr()
    assert "a budget of 0.01 of the step time pays for no element; expected at least 0." in said.err
    assert "scored" not in said.out, "it is found before"

    search = ("train-dyrealloc", *shared, "--realloc-N", 6, "--max-epochs", 1, "--project", "search")
    assert run(*search) == 0
    said = capsys.readouterr().out
    assert "budget (mode off): 0.9 of the time of a step with all elements on" in said
    assert re.search(r"the result: .* of the parameters, 0\.\d+ of the step time", " ".join(said.split()))
    assert all(any(decision.on) for decision in history.read(tmp_path / "search").decisions)
    last = tmp_path / "search" / "checkpoints" / "last.ckpt"
    state = torch.load(last, weights_only=True)["callbacks"]["Reallocate"]["step_time"]
    assert set(state) == set(asdict(TIME))
