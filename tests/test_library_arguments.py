"""Arguments of the library that are wrong: `UserError`, as its documentation promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import heterolora as hl
from heterolora import saliency
from model.family import get
from tests.mistakes import refusal
from tests.tiny import tiny_batch, tiny_network


class Net(nn.Module):
    """Counts its forward passes in a buffer, and puts another one in the place of a second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)
        self.register_buffer("passes", torch.zeros(1))
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x: Tensor) -> Any:
        self.passes += 1
        self.seen = x[0, :2].detach().clone()
        return SimpleNamespace(loss=self.last(self.first(x).tanh()).square().mean())


BATCHES = [{"x": torch.ones(3, 4)}]


def scored(**more: Any) -> hl.Scores:
    return hl.score(Net(), BATCHES, **more)


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "model": (lambda: hl.score("opt", BATCHES), "model is 'opt'; expected a torch.nn.Module"),
    "no model": (lambda: hl.score(None, BATCHES), "model is None"),
    "batches": (lambda: hl.score(Net(), 3), "batches is 3; expected batches"),
    "no batches": (lambda: hl.score(Net(), None), "batches is None"),
    "one batch": (lambda: hl.score(Net(), BATCHES[0]), "a batch is a str"),
    "heuristic": (lambda: scored(heuristic=3), "heuristic is 3; expected a text"),
    "a list of heuristics": (lambda: scored(heuristic=["snip"]), "heuristic is ['snip']"),
    "family": (lambda: scored(family="opt"), "family is 'opt'; expected a heterolora.Family"),
    "a family for another model": (lambda: scored(family=get("opt")), "the model has no config"),
    "target_modules": (lambda: scored(target_modules=3), "target_modules is 3; expected a text, or a list of texts"),
    "numbers as target_modules": (lambda: scored(target_modules=[1]), "target_modules is [1]"),
    "no target_modules": (lambda: scored(target_modules=None), "target_modules is None"),
    "track": (lambda: scored(track=3), "track is 3; expected a function"),
    "loss": (lambda: scored(loss="mse"), "loss is 'mse'; expected a function"),
    "rank": (lambda: scored(rank=[8]), "rank is [8]"),
    "warmup_lr": (lambda: scored(warmup_lr=1e39), "warmup_lr is 1e+39; expected a number above 0, at most 1e6"),
    "width 0": (lambda: hl.score(nn.Sequential(nn.Linear(4, 0)), BATCHES), "the network has no linear layer"),
    "task_type": (lambda: hl.lora_config(scored(), total_rank=2, task_type="POEMS"), "task_type: 'POEMS' is not known"),
    "a number as task_type": (lambda: hl.lora_config(scored(), total_rank=2, task_type=3), "task_type: '3'"),
    "scores": (lambda: hl.lora_config({"first": 1.0}, total_rank=2), "expected the result of heterolora.score"),
    "a score that is text": (
        lambda: hl.lora_config(
            replace(found := scored(), scored=(replace(found.scored[0], score="high"), *found.scored[1:])), total_rank=2
        ),
        "the score of layer_0.first is 'high'; expected a number",
    ),
    "max_rank": (lambda: hl.lora_config(scored(), total_rank=2, max_rank="all"), "max_rank is 'all'"),
    "a rank of half": (lambda: hl.lora_config(scored(), total_rank=2, policy="topk", rank=0.5), "rank is 0.5"),
    "policy": (lambda: hl.lora_config(scored(), total_rank=2, policy=3), "policy is 3; expected a text"),
    "DoRA": (lambda: hl.lora_config(scored(), parameters=40, use_dora=True), "use_dora adds parameters to each layer"),
    "lora_bias": (lambda: hl.lora_config(scored(), parameters=40, lora_bias=True), "lora_bias adds parameters"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name: str) -> None:
    call, said = WRONG[name]
    assert said in refusal(call)


@pytest.mark.parametrize("value", ["high", None, [1.0, "high"]])
def test_a_heuristic_that_gives_no_numbers(value: object) -> None:
    saliency.register("of_text")(lambda problem: [value for _ in problem.space])
    try:
        with pytest.raises(hl.UserError, match=r"the of_text score of layer_0.first is"):
            scored(heuristic="of_text")
    finally:
        del saliency._registered["of_text"]


def test_a_layer_of_width_0_is_left_out() -> None:
    network = Net()
    network.empty = nn.Linear(0, 4)
    assert {item.element.module for item in hl.score(network, BATCHES).scored} == {"first", "last"}


@pytest.mark.parametrize("heuristic", ["grad_norm", "snip"])
def test_buffers_are_as_before(heuristic: str) -> None:
    network = Net()
    network(torch.zeros(1, 4))
    before = dict(network.named_buffers())
    values = {name: buffer.clone() for name, buffer in before.items()}
    hl.score(network, BATCHES, heuristic)
    after = dict(network.named_buffers())
    assert all(after[name] is before[name] for name in before)
    torch.testing.assert_close(after, values, rtol=0, atol=0)


def test_a_tensor_is_a_score() -> None:
    saliency.register("of_tensors")(lambda problem: list(torch.arange(len(problem.space.elements))))
    try:
        found = scored(heuristic="of_tensors")
    finally:
        del saliency._registered["of_tensors"]
    assert [item.score for item in found.scored] == [0, 1]
    assert hl.lora_config(found, total_rank=2).r == 2


def test_dora_has_a_budget_of_ranks() -> None:
    network = tiny_network("opt", "causal_language_modeling")
    batch = tiny_batch(padding=None)
    found = hl.score(network, [{**batch, "labels": batch["input_ids"]}], rank=2)
    adapted = peft.get_peft_model(network, hl.lora_config(found, total_rank=4, use_dora=True))
    assert any("magnitude" in name for name, p in adapted.named_parameters() if p.requires_grad)
