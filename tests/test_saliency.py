"""Scores against independent computations, and the trace that scoring does not leave."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call

from heterolora import saliency
from heterolora.common.errors import UserError
from heterolora.elements.adapt import heads
from heterolora.saliency import heuristics
from heterolora.saliency.problem import Problem
from heterolora.saliency.score import score, why_all_equal
from heterolora.saliency.warm_up import WarmUp
from model import metrics
from model.load import enable_gradient_checkpointing
from tests.adapted import CASES, Adapted, adapted, lora_config, shortcut_config
from tests.scoring import labelled, loss_and_logits, problem, q_and_v
from tests.tiny import tiny_batch

ONE_PASS = ("activation", "fisher", "gain", "grad_norm", "snip", "spectral", "weight_grad_norm", "weight_gradient")
NAMES = tuple(sorted((*ONE_PASS, "alpha_test", "constant", "synflow")))


def made(variant: str = "opt-pre", task: str = "classification", std: float = 0.3, **overrides: object) -> Adapted:
    return adapted(variant, task, lora_config(), shortcut_config(), **overrides).train_b(std=std)


def batches_of(trained: Adapted, task: str = "classification", count: int = 3) -> list:
    return labelled(trained, count) if task == "classification" else [tiny_batch(seed=seed) for seed in range(count)]


def gradients_by_hand(trained: Adapted, batches: list) -> dict[str, list[list[torch.Tensor]]]:
    """Key → for each batch ∂ℓ/∂A and ∂ℓ/∂B, by plain backward passes."""
    found: dict[str, list[list[torch.Tensor]]] = {low_rank.element.key: [] for low_rank in trained.space}
    for batch in batches:
        trained.network.zero_grad()
        loss_and_logits(trained.network, batch)[0].backward()
        for low_rank in trained.space:
            found[low_rank.element.key].append([low_rank.A.grad.clone(), low_rank.B.grad.clone()])
    trained.network.zero_grad()
    return found


@pytest.mark.parametrize(("variant", "task"), CASES)
def test_grad_norm_and_fisher_by_hand(variant: str, task: str) -> None:
    trained = made(variant, task)
    batches = batches_of(trained, task)
    gradients = gradients_by_hand(trained, batches)
    asked = problem(trained, batches)
    grad_norm, fisher = score("grad_norm", asked), score("fisher", asked)
    assert list(grad_norm) == list(fisher) == [low_rank.element.key for low_rank in trained.space]
    for key, of_batches in gradients.items():
        A, B = (np.stack([gradient[part].numpy() for gradient in of_batches]).astype(float) for part in (0, 1))
        norms = np.linalg.norm(A.sum(0)) + np.linalg.norm(B.sum(0))
        assert grad_norm[key] == pytest.approx(norms, rel=1e-4, abs=1e-9)
        assert fisher[key] == pytest.approx((A**2).sum() + (B**2).sum(), rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("variant", ["opt-post", "roberta", "gemma"])
def test_snip_is_the_gradient_of_masks(variant: str) -> None:
    """A weight w becomes c · w, and the score is Σ|∂L/∂c| at c = 1."""
    trained = made(variant)
    batches = batches_of(trained)
    owned = {id(p) for low_rank in trained.space for p in (low_rank.A, low_rank.B)}
    of_elements = {name: p for name, p in trained.network.named_parameters() if id(p) in owned}
    masks = {name: torch.ones_like(parameter, requires_grad=True) for name, parameter in of_elements.items()}
    total = 0.0
    for batch in batches:
        masked = {name: mask * of_elements[name].detach() for name, mask in masks.items()}
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        logits = functional_call(trained.network, masked, kwargs=inputs).logits
        total = total + torch.nn.functional.cross_entropy(logits, batch["labels"])
    total.backward()
    by_parameter = {id(of_elements[name]): mask.grad.abs().sum().item() for name, mask in masks.items()}
    scores = score("snip", problem(trained, batches))
    for low_rank in trained.space:
        expected = by_parameter[id(low_rank.A)] + by_parameter[id(low_rank.B)]
        assert scores[low_rank.element.key] == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_constant() -> None:
    trained = made()
    assert score("constant", problem(trained, [])) == dict.fromkeys(
        (low_rank.element.key for low_rank in trained.space), 1.0
    )


@pytest.mark.parametrize("name", ONE_PASS)
def test_one_pass_for_all(name: str) -> None:
    trained = made()
    batches, runs = batches_of(trained), []
    trained.network.register_forward_hook(lambda *_: runs.append(1))
    score(name, problem(trained, batches))
    assert len(runs) == len(batches)


@pytest.mark.parametrize("name", NAMES)
def test_elements_that_are_off_score_as_if_on(name: str) -> None:
    trained = made()
    asked = problem(trained, batches_of(trained, count=2))
    all_on = score(name, asked)
    off = trained.space.low_ranks[::2]
    for low_rank in off:
        low_rank.switch(False)
    assert score(name, asked) == all_on
    assert not any(low_rank.enabled for low_rank in off)


@pytest.mark.parametrize("name", NAMES)
def test_dropout_is_off_also_under_checkpointing(name: str) -> None:
    """OPT's blocks drop out by their own mode, which is also what decides about checkpointing."""
    plain = made(dropout=0.5)
    asked = problem(plain, batches_of(plain, count=2))
    expected = score(name, asked)
    plain.network.train()
    assert score(name, asked) == expected
    enable_gradient_checkpointing(plain.network, plain.space)
    recomputed = []
    plain.space.blocks[0].fc1.register_forward_hook(lambda *_: recomputed.append(1))
    assert score(name, asked) == expected
    if name in ONE_PASS and name != "activation":  # which has no backward pass
        assert len(recomputed) == 2 * len(asked.batches)
    assert all(module.training for module in plain.network.modules())


def test_a_new_one_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rank.py").write_text(
        "from heterolora.saliency import register\n"
        '@register("rank", warmup_batches=3)\n'
        "def rank(problem):\n"
        "    return [float(low_rank.element.rank) for low_rank in problem.space]\n"
    )
    (tmp_path / "other.py").write_text(
        'from heterolora.saliency import register\n@register("another")\ndef f(_): ...\n'
    )
    assert saliency.names() == NAMES
    monkeypatch.setattr(heuristics, "__path__", [*heuristics.__path__, str(tmp_path)])
    monkeypatch.setattr(saliency, "_registered", dict(saliency._registered))  # other tests do not see it
    assert saliency.names() == tuple(sorted((*NAMES, "other", "rank")))
    assert saliency.get("rank").warmup_batches == 3
    trained = made()
    assert set(score("rank", problem(trained, [])).values()) == {3.0, 2.0}
    with pytest.raises(UserError, match=r"other.py registers no heuristic 'other'; expected @register\("):
        saliency.get("other")


def test_an_unknown_name() -> None:
    with pytest.raises(UserError, match="'grad_nrm' is not known; did you mean 'grad_norm'"):
        saliency.get("grad_nrm")


class TestNoTrace:
    @staticmethod
    def everything(trained: Adapted) -> list:
        """All that scoring might disturb, in comparable values."""
        network, space = trained.network, trained.space
        return [
            {name: value.clone() for name, value in network.state_dict().items()},
            {name: (p.requires_grad, p.grad, id(p)) for name, p in network.named_parameters()},
            [(module, module.training) for module in network.modules()],
            [(low_rank.enabled, low_rank.importance) for low_rank in space],
            (space.carry.held, space.carry.held.before),
            [len(block._forward_pre_hooks) + len(block._forward_hooks) for block in space.blocks],
            torch.get_rng_state(),
            random.getstate(),
            [np.asarray(part) for part in np.random.get_state()[1:]],
        ]

    @staticmethod
    def assert_same(before: list, after: list) -> None:
        assert before[0].keys() == after[0].keys()
        assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
        for name, (requires_grad, gradient, identity) in before[1].items():
            assert (requires_grad, identity) == (after[1][name][0], after[1][name][2])
            assert gradient is after[1][name][1]
        assert before[2:6] == after[2:6]
        assert torch.equal(before[6], after[6])
        assert before[7] == after[7]
        assert all(np.array_equal(a, b) for a, b in zip(before[8], after[8], strict=True))

    @staticmethod
    def in_the_middle(std: float) -> Adapted:
        """A network in training: one backward pass done, some elements off, some blocks in another mode."""
        trained = made(std=std)
        trained.network.train()
        trained.space.blocks[0].eval()
        for low_rank in trained.space.low_ranks[1::3]:
            low_rank.switch(False)
        loss_and_logits(trained.network, batches_of(trained)[0])[0].backward()
        return trained

    @pytest.mark.parametrize("std", [0.0, 0.3])
    @pytest.mark.parametrize("name", NAMES)
    def test_nothing_changes(self, name: str, std: float) -> None:
        trained = self.in_the_middle(std)
        asked = problem(trained, batches_of(trained))
        before = self.everything(trained)
        score(name, asked, WarmUp(asked.batches[:2], 1e-2))
        self.assert_same(before, self.everything(trained))

    @pytest.mark.parametrize("name", [name for name in NAMES if name != "constant"])
    @pytest.mark.parametrize("calls", [1, 3, 5])
    def test_also_when_interrupted(self, name: str, calls: int) -> None:
        """Ctrl-C in the warm-up, in the first batch and in a later one."""
        trained = self.in_the_middle(std=0.0)
        whole = problem(trained, batches_of(trained))
        made_calls = []

        def evaluate(batch):
            made_calls.append(1)
            torch.rand(1), random.random(), np.random.rand()
            if len(made_calls) == calls:
                raise KeyboardInterrupt
            return whole.evaluate(batch)

        before = self.everything(trained)
        asked = dataclasses.replace(whole, evaluate=evaluate)
        if name == "synflow" and calls > 2:
            score(name, asked, WarmUp(whole.batches[:2]))
        else:
            with pytest.raises(KeyboardInterrupt):
                score(name, asked, WarmUp(whole.batches[:2]))
        self.assert_same(before, self.everything(trained))

    def test_inside_an_evaluation(self) -> None:
        trained = made()
        asked = problem(trained, batches_of(trained))
        expected = score("grad_norm", asked)
        with torch.inference_mode():
            assert score("grad_norm", asked) == expected
        with torch.no_grad():
            assert score("grad_norm", asked) == expected


class TestWarmUp:
    @pytest.mark.parametrize("name", ["snip", "synflow"])
    def test_without_it_every_score_is_0_and_the_cure_is_named(self, name: str) -> None:
        fresh = made(std=0.0)
        asked = problem(fresh, batches_of(fresh))
        scores = score(name, asked)
        assert set(scores.values()) == {0.0}
        assert "on more warm-up batches" in why_all_equal(name, scores)
        warm = score(name, asked, WarmUp(asked.batches))
        assert len(set(warm.values())) > 10
        assert why_all_equal(name, warm) is None

    def test_scores_are_those_of_the_trained_network(self) -> None:
        """Elements and head trained by AdamW, then scored."""
        fresh, trained = made(std=0.0), made(std=0.0)
        batches = batches_of(fresh)
        scores = score("snip", problem(fresh, batches), WarmUp(batches[:2], 1e-2))

        owned = [p for low_rank in trained.space for p in low_rank.parameters()]
        owned += [p for head in heads(trained.network) for p in head.parameters()]
        optimizer = torch.optim.AdamW(owned, lr=1e-2)
        for batch in batches[:2]:
            optimizer.zero_grad()
            loss_and_logits(trained.network, batch)[0].backward()
            optimizer.step()
        assert score("snip", problem(trained, batches)) == pytest.approx(scores, rel=1e-5)

    def test_not_where_an_element_is_trained(self) -> None:
        trained = made(std=0.0)
        with torch.no_grad():
            trained.space.low_ranks[-1].B[0, 0] = 1e-3
        asked = problem(trained, batches_of(trained))
        assert score("snip", asked, WarmUp(asked.batches, 1e-2)) == score("snip", asked)

    def test_defaults(self) -> None:
        defaults = {name: saliency.get(name).warmup_batches for name in NAMES}
        assert defaults == {**dict.fromkeys(NAMES, 0), "snip": 32, "synflow": 32, "alpha_test": 32}


def test_a_score_that_is_no_number_stops_with_the_element() -> None:
    trained = made()
    with torch.no_grad():
        trained.space.low_ranks[4].B[0, 0] = math.nan
    asked = problem(trained, batches_of(trained))
    with pytest.raises(UserError, match=r"the snip score of layer_0\.q_proj is nan; expected a finite score"):
        score("snip", asked)


@pytest.mark.parametrize("name", ["spectral", "activation", "gain", "weight_grad_norm", "weight_gradient"])
def test_new_scores_that_are_no_number(name: str) -> None:
    trained = made()
    with torch.no_grad():
        trained.space.blocks[0].fc1.base.weight[0, 0] = math.nan
    with pytest.raises(UserError, match=rf"the {name} score of layer_\d\.\w+ is nan; expected a finite score"):
        score(name, problem(trained, [tiny_batch(seed=seed) | {"labels": torch.tensor([0, 1, 2])} for seed in (0, 1)]))


@pytest.mark.parametrize(
    ("name", "scores", "said"),
    [
        ("fisher", {"a": 2.0, "b": 2.0}, "all fisher scores are 2"),
        ("fisher", {"a": 2.0, "b": 2.0}, "use more scoring batches"),
        ("gain", {"a": 0.0, "b": 0.0}, "more scoring batches"),  # a warm-up is no cure where none is needed
        ("alpha_test", {"a": 0.0, "b": 0.0}, "a lower tolerance of the metric"),  # it may find all dispensable
        ("fisher", {"a": 1.0, "b": 2.0}, None),
        ("fisher", {"a": 0.0}, None),
        ("constant", {"a": 1.0, "b": 1.0}, None),  # it is meant to be equal
    ],
)
def test_equal_scores_are_a_draw(name: str, scores: dict[str, float], said: str | None) -> None:
    assert said in (why_all_equal(name, scores) or [None])


def test_progress_is_shown_for_every_batch() -> None:
    trained = made(std=0.0)
    shown: list[tuple[str, int]] = []

    def track(items, what):
        shown.append((what, len(items)))
        return items

    asked: Problem = dataclasses.replace(problem(trained, batches_of(trained)), track=track)
    score("grad_norm", asked, WarmUp(asked.batches[:2]))
    score("alpha_test", asked)
    assert shown == [("warm-up", 2), ("scoring batches", 3), ("elements", len(trained.space))]


#: Heuristic, size of B, scoring batches (two and one, or one and none), metric.
SHARED = [
    ("grad_norm", 0.3, 3, "loss"),
    ("grad_norm", 0.3, 1, "loss"),
    ("fisher", 0.3, 3, "loss"),
    ("snip", 0.0, 3, "loss"),
    ("synflow", 0.0, 1, "loss"),
    ("weight_grad_norm", 0.3, 3, "loss"),
    ("weight_gradient", 0.3, 1, "loss"),
    ("spectral", 0.3, 3, "loss"),
    ("gain", 0.1, 3, "loss"),
    ("activation", 0.0, 3, "loss"),
    ("alpha_test", 1.0, 3, "accuracy"),
    ("alpha_test", 1.0, 3, "loss"),
    ("alpha_test", 1.0, 1, "matthews"),
]


def _of_process(rank: int, world: int) -> list[dict[str, float]]:
    found = []
    for name, std, count, metric in SHARED:
        trained = adapted("opt-pre", lora=q_and_v(), shortcut=shortcut_config()).train_b(std=std)
        batches = labelled(trained, 3)
        asked = problem(trained, batches[:count][rank::world], metrics.scoring_metric(metric, 3))
        found.append(score(name, asked, WarmUp(batches[:2], 1e-2)))
    return found


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(_of_process(rank, world=2), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_score_as_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    for of_two, of_one in zip(first, _of_process(0, world=1), strict=True):
        assert of_two == pytest.approx(of_one, rel=1e-5, abs=1e-12)
        assert len(set(of_one.values())) > 1


def test_an_attribute_that_a_problem_lacks_is_named() -> None:
    """A heuristic is a user's own code."""
    empty = Problem(torch.nn.Linear(1, 1), None, None, ())
    with pytest.raises(UserError, match="a Problem has no attribute 'batch'; did you mean 'batches'"):
        empty.batch  # noqa: B018
    assert not hasattr(empty, "elements")
