"""alpha_test: the answers of the plain method, from fewer block evaluations."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from heterolora.common.errors import UserError
from heterolora.saliency.problem import Loss, Metric, Problem
from heterolora.saliency.restart import Restarts
from heterolora.saliency.score import score
from heterolora.saliency.verdict import judge
from model import metrics
from tests.adapted import VARIANTS, adapted, shortcut_config
from tests.quick import some_slow
from tests.scoring import labelled, problem, q_and_v

CPU = torch.device("cpu")


def small(variant: str, metric: Metric, blocks: int = 3, std: float = 1.0, **shortcut: object) -> Problem:
    made = adapted(variant, lora=q_and_v(), shortcut=shortcut_config(**shortcut), num_hidden_layers=blocks)
    made.train_b(std=std)
    return problem(made, labelled(made, 3, rows=4, length=5), metric)


class Plain:
    """The plain method: the whole network on all batches for every question."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.reference = self.value()

    @torch.no_grad()
    def value(self) -> float:
        name = self.problem.metric.name
        results = [self.problem.evaluate(batch) for batch in self.problem.batches]
        if name == "loss":
            sums = (math.fsum(float(getattr(result, what)) for result in results) for what in ("total", "count"))
            return next(sums) / next(sums)
        logits = torch.cat([result.logits for result in results])
        labels = torch.cat([batch["labels"] for batch in self.problem.batches])
        if name == "accuracy":
            return float((logits.argmax(-1) == labels).sum()) / len(labels)
        running = metrics.build([name], num_labels=3)
        running.update(logits, labels)
        return float(running.compute()[name])

    def holds(self, low_rank, alpha: float) -> bool:
        low_rank.importance = alpha
        value = self.value()
        low_rank.importance = 1.0
        slack = self.problem.metric.tolerance * abs(self.reference)
        if self.problem.metric.name == "loss":
            return value <= self.reference + slack
        return value >= self.reference - slack

    def score(self, low_rank) -> float:
        if self.holds(low_rank, 0.0):
            return 0.0
        low, high = 1, 10
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.holds(low_rank, middle / 10) else (middle + 1, high)
        return high / 10


def plain_questions(score: float) -> int:
    """What a bisection over 0, 0.1, …, 1.0 asks until it has found `score`."""
    low, high, asked = 0, 10, 0
    while low < high:
        middle = (low + high) // 2
        low, high, asked = (low, middle, asked + 1) if middle >= round(10 * score) else (middle + 1, high, asked + 1)
    return asked


@pytest.mark.parametrize(
    ("variant", "metric"),
    [
        ("opt-pre", "loss"),
        ("opt-pre", "matthews"),
        ("opt-post", "accuracy"),
        ("roberta", "accuracy"),
        ("gemma", "loss"),
    ],
)
def test_same_answers_as_the_plain_method(variant: str, metric: str) -> None:
    asked = small(variant, metrics.scoring_metric(metric, 3, 0.01), blocks=2)
    plain = Plain(asked)
    scores = score("alpha_test", asked)
    assert list(scores.values()) == [plain.score(low_rank) for low_rank in asked.space]
    assert any(scores.values())


@pytest.mark.parametrize("tolerance", [0.0, 0.05, 1.0])
def test_the_tolerance_counts(tolerance: float) -> None:
    asked = small("opt-pre", metrics.scoring_metric("loss", 3, tolerance))
    plain = Plain(asked)
    assert list(score("alpha_test", asked).values()) == [plain.score(low_rank) for low_rank in asked.space]


def evaluations(problem: Problem) -> tuple[dict[str, float], int]:
    """Scores, and how many times a block ran."""
    runs = []
    hooks = [block.register_forward_hook(lambda *_: runs.append(1)) for block in problem.space.blocks]
    scores = score("alpha_test", problem)
    for hook in hooks:
        hook.remove()
    return scores, len(runs)


@pytest.mark.parametrize(
    ("on_below", "least_on", "most_on", "gain"), [(0, 0, 7, 5.0), pytest.param(4, 15, 25, 3.0, marks=pytest.mark.slow)]
)
def test_block_evaluations(on_below: int, least_on: int, most_on: int, gain: float) -> None:
    """12 blocks, 71 elements, most of them dispensable or a quarter on: those of the lowest blocks."""
    made = adapted("opt-pre", lora=q_and_v(), shortcut=shortcut_config(), num_hidden_layers=12)
    made.train_b(std=0.3)
    with torch.no_grad():
        for low_rank in made.space:
            low_rank.B.mul_(1.0 if low_rank.element.layer < on_below else 1e-3)
    asked = problem(made, labelled(made, 3, rows=8, length=4, wrong=0.2), metrics.scoring_metric("accuracy", 3, 0.01))
    scores, ran = evaluations(asked)
    assert len(scores) == 71
    assert least_on <= sum(value > 0 for value in scores.values()) <= most_on
    plainly = sum(map(plain_questions, scores.values())) * len(asked.batches) * len(made.space.blocks)
    print(f"{plainly / ran:.1f} times fewer block evaluations")
    assert plainly / ran >= gain


class TestRestarts:
    @pytest.mark.parametrize("renormalize", [False, True])
    @pytest.mark.parametrize("variant", some_slow(VARIANTS, quick=["opt-pre", "gemma"]))
    @torch.no_grad()
    def test_bit_for_bit_a_whole_evaluation(self, variant: str, renormalize: bool) -> None:
        asked = small(variant, Metric(), renormalize=renormalize)
        restarts = Restarts(asked)
        for low_rank in asked.space:
            low_rank.importance = 0.3
            for index, batch in enumerate(asked.batches):
                there = asked.evaluate(batch).logits
                assert torch.equal(restarts.evaluate(index, low_rank.element.layer).logits, there)
            low_rank.importance = 1.0

    @torch.no_grad()
    def test_a_state_is_made_again_from_an_earlier_one(self) -> None:
        """What a question left out is not stale when the next one needs it."""
        asked = small("roberta", Metric(), blocks=4)
        restarts = Restarts(asked)
        for layer in (0, 1, 3):
            assert torch.equal(restarts.evaluate(0, layer).logits, asked.evaluate(asked.batches[0]).logits)
        assert torch.equal(restarts.evaluate(1, 3).logits, asked.evaluate(asked.batches[1]).logits)
        assert [state.layer for state in restarts.states] == [3, 3, 0]
        with pytest.raises(ValueError, match="can't go back from block 3 to block 2"):
            restarts.evaluate(1, 2)

    @torch.no_grad()
    def test_blocks_before_do_not_run(self) -> None:
        asked = small("opt-pre", Metric(), blocks=4)
        restarts = Restarts(asked)
        restarts.evaluate(0, 2)
        ran: list[int] = []
        for layer, block in enumerate(asked.space.blocks):
            block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
        restarts.evaluate(0, 2)
        assert ran == [2, 3]

    @torch.no_grad()
    def test_the_blocks_come_back(self) -> None:
        asked = small("gemma", Metric())
        restarts = Restarts(asked)
        restarts.evaluate(0, 2)

        def interrupted(_: object) -> Loss:
            raise KeyboardInterrupt

        restarts.problem = dataclasses.replace(asked, evaluate=interrupted)
        with pytest.raises(KeyboardInterrupt):
            restarts.evaluate(0, 2)
        assert tuple(asked.network.base_model.layers) == asked.space.blocks
        assert not any(block._forward_pre_hooks for block in asked.space.blocks)


def rounds(*rights: int, rows: int = 10):
    """Batches of `rows` rows, `rights` of which are answered right."""
    for right in rights:
        labels = torch.zeros(rows, dtype=torch.int64)
        logits = torch.zeros(rows, 2)
        logits[:right, 0], logits[right:, 1] = 1.0, 1.0
        yield {"labels": labels}, Loss(torch.tensor(0.0), torch.tensor(float(rows)), logits)


def losses(*totals: float, rows: int = 10):
    for total in totals:
        yield {}, Loss(torch.tensor(total), torch.tensor(float(rows)), torch.zeros(()))


class TestVerdict:
    @pytest.mark.parametrize(
        ("asked", "holds", "left"),
        [
            ((8, 8, 8), True, 0),  # as before
            ((10, 10, 10), True, 1),  # better, and certain after two
            ((8, 8, 4), True, 0),  # 20 of 30: within a fifth of 24 of 30, which is 19.2
            ((8, 8, 3), False, 0),
            ((0, 0, 8), False, 1),  # what is left can't make up for it
        ],
    )
    def test_accuracy(self, asked: tuple[int, ...], holds: bool, left: int) -> None:
        accuracy = judge(metrics.scoring_metric("accuracy", 2, 0.2), CPU)
        accuracy.first(rounds(8, 8, 8))
        evaluations = rounds(*asked)
        assert accuracy.holds(evaluations) is holds
        assert len(list(evaluations)) == left

    @pytest.mark.parametrize(
        ("asked", "holds", "left"),
        [
            ((6.0, 6.0, 6.0), True, 0),
            ((1.0, 1.0, 1.0), True, 0),
            ((6.0, 6.0, 7.5), True, 0),  # 19.5 of 18: within a tenth
            ((6.0, 6.0, 8.0), False, 0),
            ((20.0, 0.0, 0.0), False, 2),
            ((6.0, math.nan, 6.0), False, 0),
        ],
    )
    def test_loss(self, asked: tuple[float, ...], holds: bool, left: int) -> None:
        loss = judge(metrics.scoring_metric("loss", 1, 0.1), CPU)
        loss.first(losses(6.0, 6.0, 6.0))
        evaluations = losses(*asked)
        assert loss.holds(evaluations) is holds
        assert len(list(evaluations)) == left

    def test_batches_that_may_decide_come_first(self) -> None:
        accuracy = judge(metrics.scoring_metric("accuracy", 2), CPU)
        labels = torch.zeros(1, dtype=torch.int64)

        def doubt(margin: float) -> float:
            return accuracy.doubt({"labels": labels}, Loss(labels, labels, torch.tensor([[margin, 0.0]])))

        assert doubt(0.1) > doubt(3.0) > doubt(-0.1) == 0.0

    def test_a_process_without_a_batch(self) -> None:
        accuracy = judge(metrics.scoring_metric("accuracy", 2, 0.1), CPU)
        accuracy.first([*rounds(8), None])
        assert accuracy.holds([None, *rounds(8)])

    @pytest.mark.parametrize("name", ["loss", "pearson"])
    def test_a_metric_that_is_no_number(self, name: str) -> None:
        with pytest.raises(UserError, match=rf"{name} is nan over the scoring batches"):
            judge(metrics.scoring_metric(name, 1), CPU).first(
                [({"labels": torch.ones(2)}, Loss(torch.tensor(math.nan), torch.tensor(2.0), torch.ones(2, 1)))]
            )


def test_nothing_is_left_changed() -> None:
    asked = small("opt-post", metrics.scoring_metric("accuracy", 3))
    before = {name: value.clone() for name, value in asked.network.state_dict().items()}
    score("alpha_test", asked)
    assert before.keys() == asked.network.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in asked.network.state_dict().items())
    assert {low_rank.importance for low_rank in asked.space} == {1.0}
    assert asked.space.carry.held.before is None
