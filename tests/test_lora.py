"""LoRA against PEFT, and the low-rank element against its formula."""

from __future__ import annotations

import copy
import math

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from heterolora.elements.element import Element, Settings
from heterolora.elements.low_rank import LoraLinear, LowRank
from model import family
from tests.adapted import CASES, VARIANTS, adapted, gradients, lora_config, put_into
from tests.tiny import tiny_batch, tiny_network


def element(
    rank: int = 3,
    alpha: float = 6.0,
    width_in: int = 8,
    width_out: int = 5,
    train_b: bool = True,
    **settings: object,
) -> LowRank:
    made = LowRank(Element(0, "q_proj", "lora", "", width_in, width_out, Settings(rank, alpha, **settings)))
    if train_b:
        nn.init.normal_(made.B)
    return made


def delta_of(low_rank: LowRank, x: torch.Tensor) -> torch.Tensor:
    """The formula, in float64."""
    return low_rank.scaling * (x.double() @ low_rank.A.double().T) @ low_rank.B.double().T


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(("variant", "task"), CASES)
def test_logits_and_gradients_are_those_of_peft(variant, task, rslora):
    model, batch = adapted(variant, task, lora_config(use_rslora=rslora)), tiny_batch()
    name, keys = VARIANTS[variant]
    theirs = tiny_network(name, task, **keys)
    options = {"r": 3, "lora_alpha": 6, "use_rslora": rslora, "target_modules": [e.element.module for e in model.space]}
    theirs = peft.LoraModel(theirs, peft.LoraConfig(**options), "default")

    optimizer = torch.optim.AdamW([p for e in model.space for p in e.parameters()], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model.network(**batch).logits.square().sum().backward()
        optimizer.step()
    wrapped = dict(theirs.model.named_modules())
    with torch.no_grad():
        for e in model.space:
            wrapped[e.element.module].lora_A["default"].weight.copy_(e.A)
            wrapped[e.element.module].lora_B["default"].weight.copy_(e.B)
    plain = tiny_network(name, task, **keys)(**batch).logits
    model.network.zero_grad()
    found, expected = model.network(**batch).logits, theirs(**batch).logits
    assert (expected - plain).abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    found.square().sum().backward()
    expected.square().sum().backward()
    for key, gradient in gradients(model.space).items():
        block, projection, which = key.split(".")
        path = next(e.element.module for e in model.space if e.element.key == f"{block}.{projection}")
        other = getattr(wrapped[path], f"lora_{which}")["default"].weight.grad
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("rslora", [False, True])
def test_delta_is_the_formula(rslora):
    low_rank, x = element(use_rslora=rslora), torch.randn(2, 7, 8)
    assert low_rank.scaling == pytest.approx(6 / (math.sqrt(3) if rslora else 3))
    expected = delta_of(low_rank, x).float()
    torch.testing.assert_close(low_rank(x), expected)
    onto = torch.randn(2, 7, 5)
    before = onto.clone()
    torch.testing.assert_close(low_rank(x, onto=onto), before + expected)
    assert torch.equal(onto, before), "what delta is added to stays as it was"
    torch.testing.assert_close(low_rank(x, onto=onto.view(14, 5)), (before + expected).view(14, 5))  # OPT flattens
    low_rank.importance = 0.25
    torch.testing.assert_close(low_rank(x), expected / 4)
    torch.testing.assert_close(low_rank(x, onto=onto), before + expected / 4)


def formula(low_rank: LowRank, x: torch.Tensor, onto: torch.Tensor | None) -> torch.Tensor:
    """In operations that autograd knows."""
    delta = (x @ low_rank.A.T @ low_rank.B.T * (low_rank.scaling * low_rank.importance)).to(x.dtype)
    return delta if onto is None else onto + delta.reshape(onto.shape)


@pytest.mark.parametrize("with_onto", [False, True])
@pytest.mark.parametrize("layout", ["plain", "flat onto", "transposed", "one row", "no gradient for x"])
def test_gradients_are_those_of_autograd(layout, with_onto):
    low_rank, x, onto = element().double(), torch.randn(2, 7, 8).double(), torch.randn(2, 7, 5).double()
    low_rank.importance = 0.7
    if layout == "flat onto":
        onto = onto.view(14, 5)
    elif layout == "transposed":  # neither is contiguous
        x, onto = torch.randn(7, 2, 8).double().transpose(0, 1), torch.randn(5, 2, 7).double().permute(1, 2, 0)
    elif layout == "one row":
        x, onto = x[0, 0], onto[0, 0]
    x.requires_grad_(layout != "no gradient for x")
    onto = onto.requires_grad_() if with_onto else None
    wanted = [t for t in (x, onto, low_rank.A, low_rank.B) if t is not None and t.requires_grad]

    def outcome(y: torch.Tensor) -> list[torch.Tensor]:
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).double()
        return [y, *torch.autograd.grad(y, wanted, weights)]

    found, expected = outcome(low_rank(x, onto=onto)), outcome(formula(low_rank, x, onto))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_one_element_used_twice_sums_its_gradients():
    low_rank, x = element(width_in=8, width_out=8), torch.randn(3, 8)
    found = torch.autograd.grad(low_rank(low_rank(x, onto=x)).sum(), list(low_rank.parameters()))
    expected = torch.autograd.grad(formula(low_rank, formula(low_rank, x, x), None).sum(), list(low_rank.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_comes_out_may_be_changed_in_place():
    """As library code does with the output of a linear layer."""
    layer, x = LoraLinear(nn.Linear(8, 5), element()), torch.randn(2, 3, 8, requires_grad=True)
    y = layer(x)
    y *= 2
    y.sum().backward()
    torch.testing.assert_close(y, 2 * layer(x))
    twin = x.detach().clone().requires_grad_()
    (2 * layer(twin)).sum().backward()
    torch.testing.assert_close(x.grad, twin.grad)


def test_second_derivatives_are_refused_rather_than_wrong():
    low_rank, x = element(), torch.randn(2, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(low_rank(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("x_dtype", "autocast", "kept"),
    [
        (torch.float32, False, torch.float32),
        (torch.bfloat16, False, torch.bfloat16),
        (torch.float64, False, torch.float32),
        (torch.float32, True, torch.bfloat16),
        (torch.bfloat16, True, torch.bfloat16),
    ],
)
def test_x_is_kept_once_and_narrow(x_dtype, autocast, kept):
    low_rank, x = element(rank=1, width_in=64, width_out=64), torch.randn(32, 64, dtype=x_dtype, requires_grad=True)
    saved: list[torch.Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
    )
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        low_rank(x).float().sum()
    large = [tensor for tensor in saved if tensor.numel() >= x.numel()]
    assert [tensor.dtype for tensor in large] == [kept]
    if kept == x_dtype:
        assert large[0].data_ptr() == x.data_ptr()


def test_a_starts_kaiming_uniform_and_b_at_zero():
    torch.manual_seed(0)
    low_rank = element(rank=20, alpha=1.0, width_in=400, width_out=30, train_b=False)
    bound = 1 / math.sqrt(400)  # kaiming_uniform with a = sqrt(5): sqrt(6 / (1 + 5) / fan_in)
    assert low_rank.A.abs().max() <= bound
    assert low_rank.A.detach().std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert not low_rank.B.any()


def test_dropout_is_on_the_input_and_in_training_only():
    low_rank, x = element(dropout=0.5), torch.randn(4, 8)
    torch.manual_seed(3)
    found = low_rank(x)
    torch.manual_seed(3)
    torch.testing.assert_close(found, delta_of(low_rank, F.dropout(x, 0.5)).float())
    torch.testing.assert_close(low_rank.eval()(x), delta_of(low_rank, x).float())


def test_off_gives_back_the_base_and_asks_for_no_gradient():
    layer, x = LoraLinear(nn.Linear(8, 5), element()), torch.randn(2, 8)
    layer.base.requires_grad_(False)
    assert not torch.allclose(layer(x), layer.base(x), atol=1e-3)
    layer(x).sum().backward()
    layer.low_rank.switch(False)
    assert torch.equal(layer(x), layer.base(x))
    assert not layer(x).requires_grad
    for parameter in layer.low_rank.parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None
    layer.low_rank.switch(True)
    assert all(parameter.requires_grad for parameter in layer.low_rank.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_base_of_another_dtype_gets_a_float32_delta(dtype):
    layer = LoraLinear(nn.Linear(8, 5).to(dtype), element())
    x = torch.randn(3, 8).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    assert torch.equal(y, layer.base(x) + layer.low_rank(x.float()).to(dtype))
    y.sum().backward()
    assert layer.low_rank.A.grad.dtype == torch.float32


@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16])
def test_under_autocast(base_dtype):
    layer, x = LoraLinear(nn.Linear(64, 64).to(base_dtype), element(width_in=64, width_out=64)), torch.randn(3, 64)
    expected = layer.base.float()(x) + delta_of(layer.low_rank, x).float()
    layer.base.to(base_dtype)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected.detach(), rtol=0.05, atol=0.1)
    y.sum().backward()
    assert layer.low_rank.B.grad.dtype == torch.float32


class Quantised(nn.Module):
    """Stands for a quantised linear layer: 8-bit values out of sight, no `weight`, no floating parameter."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.in_features, self.out_features = width_in, width_out
        self.register_buffer("packed", torch.randint(-127, 128, (width_out, width_in), dtype=torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.packed.to(x.dtype).T / 1000


def test_a_quantised_base_is_wrapped_like_any_other():
    network = tiny_network("opt")
    for block in network.model.decoder.layers:
        for path in family.get("opt").linears.values():
            linear = block.get_submodule(path)
            block.set_submodule(path, Quantised(linear.in_features, linear.out_features))
    batch = tiny_batch()
    before = network(**batch).logits
    space = put_into(network, family.get("opt"), lora_config())
    assert torch.equal(network(**batch).logits, before)
    assert {(e.name, e.in_features, e.out_features) for e in space.elements} >= {
        ("w1", 32, 64),
        ("w2", 64, 32),
    }
    network(**batch).logits.sum().backward()
    assert len(gradients(space)) == 2 * len(space)


def test_a_float32_base_output_stays_float32_under_autocast():
    class Full(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", enabled=False):
                return super().forward(x)

    layer, x = LoraLinear(Full(8, 5), element()), torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.float32


def test_a_deep_copy_is_on_its_own():
    layer, x = LoraLinear(nn.Linear(8, 5), element()), torch.randn(3, 8)
    twin, y = copy.deepcopy(layer), layer(x)
    layer.low_rank.switch(False)
    assert torch.equal(twin(x), y)
