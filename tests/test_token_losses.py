"""The loss of language models in chunks of tokens is the loss of all logits at once."""

from __future__ import annotations

import sys
import weakref
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from model.task import token_losses
from model.task.token_losses import Head
from tests.tiny import VOCABULARY, tiny_batch, tiny_network

FAMILIES = ("opt", "gemma", "llama", "qwen2")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_losses, "CHUNK_ELEMENTS", 5 * VOCABULARY)


def targets_of(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    targets = batch["input_ids"].roll(-1, 1)
    kept = batch["attention_mask"].bool()
    kept[:, -1], kept[0, :2] = False, False
    return targets, kept


def expected(network: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """The loss of each kept token, from all logits."""
    targets, kept = targets_of(batch)
    return F.cross_entropy(network(**batch).logits[kept], targets[kept], reduction="none")


def gradients(network: PreTrainedModel, total: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    (2 * total).backward()
    return {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("trained", ["all", "all but the head"])
def test_loss_and_gradients(family: str, trained: str) -> None:
    network, batch = (
        tiny_network(family, "causal_language_modeling", tie_word_embeddings=trained == "all"),
        tiny_batch(),
    )
    network.get_output_embeddings().requires_grad_(trained == "all")
    each = expected(network, batch)
    wanted = gradients(network, each.sum())
    total, of_each = Head(network).losses(batch, *targets_of(batch))
    torch.testing.assert_close(total, each.sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(of_each, each.detach(), rtol=1e-6, atol=1e-6)
    found = gradients(network, total)
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_without_gradients() -> None:
    network, batch = tiny_network("opt", "causal_language_modeling"), tiny_batch()
    with torch.no_grad():
        total, each = Head(network).losses(batch, *targets_of(batch))
        torch.testing.assert_close(each, expected(network, batch))
    assert not total.requires_grad


def test_a_network_that_changes_the_logits_after_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    network, batch = tiny_network("llama", "causal_language_modeling"), tiny_batch()

    def capped(_module: object, _args: object, output: object) -> object:
        output.logits = 2 * torch.tanh(output.logits / 2)
        return output

    network.register_forward_hook(capped)
    each = expected(network, batch)
    head = Head(network)
    for _ in range(2):
        total, of_each = head.losses(batch, *targets_of(batch))
        torch.testing.assert_close(total, each.sum())
        torch.testing.assert_close(of_each, each.detach())
    assert gradients(network, total)


def test_no_target() -> None:
    network, batch = tiny_network("opt", "causal_language_modeling"), tiny_batch()
    targets, kept = targets_of(batch)
    total, each = Head(network).losses(batch, targets, torch.zeros_like(kept))
    assert total == 0
    assert each.shape == (0,)
    assert all(not gradient.any() for gradient in gradients(network, total).values())


def test_the_logits_of_one_chunk_at_a_time() -> None:
    """No more logits than those of one chunk and of the last tokens exist at any time."""
    network, batch = tiny_network("opt", "causal_language_modeling"), tiny_batch(rows=4, length=20, padding=None)
    alive, largest = weakref.WeakSet(), []

    def watch(_module: object, _args: object, output: Tensor) -> None:
        alive.add(output)
        largest.append(sum(logits.numel() for logits in alive))

    network.get_output_embeddings().register_forward_hook(watch)
    total, _ = Head(network).losses(batch, *targets_of(batch))
    total.backward()
    # autograd may hold the last chunk while the next is computed
    assert max(largest) <= (4 + 2 * 5) * VOCABULARY < 0.2 * 4 * 20 * VOCABULARY
    assert len(largest) > 10


def test_half_precision_with_a_large_scale() -> None:
    """The factor of the loss scaler may be larger than float16 holds."""
    hidden = torch.full((3, 4), 1e-3, dtype=torch.float16, requires_grad=True)
    linear = torch.nn.Linear(4, VOCABULARY, dtype=torch.float16).requires_grad_(False)
    linear.weight.mul_(0.05)
    found = []
    for factor in (1.0, 2.0**17):
        hidden.grad = None
        total, _ = token_losses.summed_cross_entropy(hidden, torch.tensor([1, 2, 3]), linear)
        (total * factor).backward()
        found.append(hidden.grad.float() / factor)
    assert found[0].any()
    torch.testing.assert_close(found[1], found[0], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(
    ("device", "tokens", "linear", "installed", "expected"),
    [
        ("cuda:1", 3, torch.nn.Linear(2, 2), True, True),
        ("cuda", 3, torch.nn.Linear(2, 2), False, False),
        ("cpu", 3, torch.nn.Linear(2, 2), True, False),
        ("cuda", 0, torch.nn.Linear(2, 2), True, False),
        ("cuda", 3, torch.nn.Sequential(torch.nn.Linear(2, 2)), True, False),
    ],
)
def test_when_liger_computes_the_loss(
    device: str, tokens: int, linear: object, installed: bool, expected: bool
) -> None:
    assert token_losses.by_liger(torch.device(device), tokens, linear, installed) == expected


def test_how_liger_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a class with the arguments of Liger Kernel 0.8, in training only. Its kernels need a GPU."""

    class LigerFusedLinearCrossEntropyLoss:
        def __init__(self, reduction: str) -> None:
            self.reduction = reduction

        def __call__(self, lin_weight: Tensor, _input: Tensor, target: Tensor, bias: Tensor | None = None) -> Tensor:
            return F.cross_entropy(F.linear(_input, lin_weight, bias), target, reduction=self.reduction)

    module = SimpleNamespace(LigerFusedLinearCrossEntropyLoss=LigerFusedLinearCrossEntropyLoss)
    package = SimpleNamespace(transformers=module, __spec__=ModuleSpec("liger_kernel", None))
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", module)
    monkeypatch.setattr(token_losses, "by_liger", lambda *_: True)
    network, batch = tiny_network("llama", "causal_language_modeling"), tiny_batch()
    wanted = expected(network, batch)
    total, each = Head(network).losses(batch, *targets_of(batch))
    assert each is None
    torch.testing.assert_close(total, wanted.sum(), rtol=1e-6, atol=0)
    assert gradients(network, total).keys() == gradients(network, wanted.sum()).keys()
    with torch.no_grad():
        assert Head(network).losses(batch, *targets_of(batch))[1] is not None
