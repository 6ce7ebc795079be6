"""Scores from training's own backward passes, against autograd, and what recording them must not change."""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing
from torch.multiprocessing.reductions import StorageWeakRef

from heterolora.elements.low_rank import LowRank
from heterolora.elements.search_space import SearchSpace
from heterolora.saliency import get
from heterolora.saliency.from_training import TrainingGradients, recorded
from model.load import enable_gradient_checkpointing
from tests.adapted import CASES, VARIANTS, Adapted, adapted, gradients, lora_config, shortcut_config
from tests.quick import some_slow
from tests.tiny import tiny_batch

LAYERS = 3
DROPOUT = {
    "opt-pre": {"dropout": 0.2},
    "opt-post": {"dropout": 0.2},
    "roberta": {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2},
    "bert": {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2},
    "gemma": {"attention_dropout": 0.2},
    "llama": {"attention_dropout": 0.2},
    "qwen2": {"attention_dropout": 0.2},
    "mistral": {"attention_dropout": 0.2},
}


def model_of(
    variant: str,
    task: str = "classification",
    trained: bool = True,
    checkpointing: bool = False,
    on: Callable[[LowRank, int], bool] = lambda low_rank, index: low_rank.element.layer > 0 and index % 3 == 0,
    renormalize: bool = False,
    element_dropout: float = 0.0,
    **overrides: object,
) -> Adapted:
    """Every element is there; in training mode; by default every third of the upper blocks is on."""
    lora = lora_config(lora_dropout=element_dropout)
    shortcut = shortcut_config(renormalize, proj_dropout=element_dropout)
    model = adapted(variant, task, lora, shortcut, num_hidden_layers=LAYERS, **overrides)
    if trained:
        model.train_b()
    for index, low_rank in enumerate(model.space):
        low_rank.switch(on(low_rank, index))
    if checkpointing:
        enable_gradient_checkpointing(model.network, model.space)
    model.network.train()
    return model


def loss_of(model: Adapted, batch: dict[str, Tensor]) -> Tensor:
    """A loss that weighs every logit differently, in sum over rows."""
    logits = model.network(**batch).logits.float()
    return (logits * torch.linspace(-1, 1, logits.shape[-1]) + logits.square() / 4).sum()


def recording(model: Adapted, heuristic: str = "grad_norm") -> TrainingGradients:
    found = TrainingGradients(model.space, get(heuristic).score)
    found.start()
    return found


def totals_of(model: Adapted, *batches: dict[str, Tensor], heuristic: str = "grad_norm") -> list[Tensor]:
    """A window a batch."""
    found = recording(model, heuristic)
    for batch in batches:
        model.network.zero_grad()
        loss_of(model, batch).backward()
        found.collect()
    found.stop()
    return found.totals()


class Gated:
    """An element whose delta counts nothing, but for autograd: the definition of an off element's gradients."""

    def __init__(self, low_rank: LowRank) -> None:
        self.A, self.B = (p.detach().clone().requires_grad_() for p in (low_rank.A, low_rank.B))
        self.scaling = low_rank.scaling

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        delta = (self.scaling * x.detach().float() @ self.A.T @ self.B.T).view_as(y)
        return y + (delta - delta.detach()).to(y.dtype)


def by_autograd(model: Adapted, *batches: dict[str, Tensor]) -> list[list[Tensor]]:
    """For each batch, the gradients of A and B of each element."""
    gates = {}
    for low_rank in model.space:
        if not low_rank.enabled:
            gates[low_rank.element.key] = low_rank.probe = Gated(low_rank)
    parts = [part for e in model.space for g in [gates.get(e.element.key, e)] for part in (g.A, g.B)]
    found = [torch.autograd.grad(loss_of(model, batch), parts, materialize_grads=True) for batch in batches]
    for low_rank in model.space:
        low_rank.probe = None
    return [list(gradients) for gradients in found]


def assert_close(space: SearchSpace, found: Iterable[Tensor], expected: Iterable[Tensor], tolerance: float) -> None:
    places = [f"{low_rank.element.key}.{which}" for low_rank in space for which in "AB"]
    for place, ours, theirs in zip(places, found, expected, strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=tolerance * scale, msg=lambda text, place=place: f"{place}: {text}"
        )


# --- exact


@pytest.mark.parametrize(("variant", "task"), CASES)
def test_at_b_0_it_is_the_gradient_that_elements_have_once_they_are_on(variant, task):
    model, batch = model_of(variant, task, trained=False), tiny_batch()
    found = totals_of(model, batch)
    for low_rank in model.space:  # B = 0: the network computes the same with all of them on
        low_rank.switch(True)
    model.network.zero_grad()
    loss_of(model, batch).backward()
    expected = [p.grad for e in model.space for p in (e.A, e.B)]
    assert all(bool(gradient.any()) for gradient in expected[1::2])
    assert_close(model.space, found, expected, 1e-5)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("renormalize", [False, True], ids=["plain", "renormalize"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_with_trained_b_it_is_autograds(variant, renormalize, checkpointing):
    model, batch = model_of(variant, renormalize=renormalize), tiny_batch(padding="left")
    (expected,) = by_autograd(model, batch)
    assert all(bool(gradient.any()) for gradient in expected)
    model = model_of(variant, renormalize=renormalize, checkpointing=checkpointing)
    assert_close(model.space, totals_of(model, batch), expected, 1e-5)


@pytest.mark.parametrize("on", ["nothing", "lowest", "highest", "everything"])
def test_whatever_is_on(on):
    which = {
        "nothing": lambda low_rank, index: False,
        "lowest": lambda low_rank, index: index == 0,
        "highest": lambda low_rank, index: (
            low_rank.element.layer == LAYERS - 1 and low_rank.element.name == "shortcut1"
        ),
        "everything": lambda low_rank, index: True,
    }[on]
    model, batch = model_of("opt-pre", on=which), tiny_batch()
    (expected,) = by_autograd(model, batch)
    assert_close(model.space, totals_of(model, batch), expected, 1e-5)


@pytest.mark.parametrize("heuristic", ["grad_norm", "snip", "fisher"])
def test_scores_are_the_formulas_of_sums_over_windows(heuristic):
    model, batches = model_of("opt-pre"), [tiny_batch(seed=seed) for seed in range(3)]
    each = by_autograd(model, *batches)
    summed = [sum(parts) for parts in zip(*each, strict=True)]
    expected = []
    for index, low_rank in enumerate(model.space):
        score = 0.0
        for offset, weight in enumerate((low_rank.A, low_rank.B)):
            total = summed[2 * index + offset]
            if heuristic == "grad_norm":
                score += float(total.norm())
            elif heuristic == "snip":
                score += float((weight.detach() * total).abs().sum())
            else:
                score += sum(float(gradients[2 * index + offset].square().sum()) for gradients in each)
        expected.append(score)
    found = recording(model, heuristic)
    for batch in batches:
        model.network.zero_grad()
        loss_of(model, batch).backward()
        found.collect()
    assert list(found.scores()) == [low_rank.element.key for low_rank in model.space]
    assert list(found.scores().values()) == pytest.approx(expected, rel=1e-5)
    assert found.windows == 3


@pytest.mark.parametrize("heuristic", ["grad_norm", "fisher"])
def test_an_accumulation_window_is_one_batch(heuristic):
    model = model_of("opt-post")
    windows = [[tiny_batch(seed=seed) for seed in pair] for pair in ((0, 1), (2, 3))]
    found = recording(model, heuristic)
    for window in windows:
        model.network.zero_grad()
        for batch in window:
            (loss_of(model, batch) / 2).backward()
        found.collect()
    each = [[sum(parts) / 2 for parts in zip(*by_autograd(model, *window), strict=True)] for window in windows]
    if heuristic == "fisher":
        each = [[part.square() for part in parts] for parts in each]
    assert_close(model.space, found.totals(), [sum(parts) for parts in zip(*each, strict=True)], 1e-5)


def test_x_is_before_the_dropout_of_an_element_that_is_off():
    nothing = {"on": lambda low_rank, index: False}
    expected = totals_of(model_of("opt-pre", **nothing), tiny_batch())
    model = model_of("opt-pre", element_dropout=0.5, **nothing)
    assert all(map(torch.equal, totals_of(model, tiny_batch()), expected))


def test_with_dropout_and_checkpointing_it_is_the_very_pass_that_was_trained_on():
    found = []
    for checkpointing in (False, True):
        model = model_of("opt-pre", checkpointing=checkpointing, dropout=0.3)
        torch.manual_seed(7)
        found.append(totals_of(model, tiny_batch()))
    assert_close(model.space, found[1], found[0], 1e-6)


# --- other dtypes, scaled losses


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("variant", ["opt-pre", "roberta", "gemma"])
def test_under_autocast(variant, checkpointing):
    (expected,) = by_autograd(model_of(variant), tiny_batch())
    model = model_of(variant, checkpointing=checkpointing)
    found = recording(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, tiny_batch())
    loss.backward()
    found.collect()
    for ours, theirs in zip(found.totals(), expected, strict=True):
        assert ours.dtype == torch.float32
        assert float((ours - theirs).norm() / theirs.norm()) < 0.1


def test_a_bfloat16_base_is_watched_in_float32():
    models = [model_of("opt-pre") for _ in range(2)]
    for model in models:
        for name, parameter in model.network.named_parameters():
            if "low_rank" not in name and "shortcuts" not in name and "score" not in name:
                parameter.data = parameter.data.bfloat16()
    (expected,) = by_autograd(models[0], tiny_batch())
    assert_close(models[1].space, totals_of(models[1], tiny_batch()), expected, 1e-2)


def test_a_loss_scale_is_undone_and_a_window_that_overflows_left_out():
    model, batch, scale = model_of("opt-pre"), tiny_batch(), 1024.0
    expected = totals_of(model, batch)
    found = recording(model)

    def window(factor: float, *others: Tensor) -> None:
        model.network.zero_grad()
        (loss_of(model, batch) * factor).backward()
        for low_rank in model.space:
            for parameter in low_rank.parameters():
                if parameter.grad is not None:
                    parameter.grad /= factor  # as GradScaler.unscale_ does
        found.collect(loss_scale=factor, stepped=others)

    window(scale)
    window(math.inf)
    assert found.windows == 1
    assert_close(model.space, found.totals(), expected, 1e-6)
    window(scale)
    assert_close(model.space, found.totals(), [2 * total for total in expected], 1e-6)
    window(scale, torch.tensor([1.0, math.inf]))  # of a head: the scaler skips the step of all parameters
    assert found.windows == 2


# --- what it must not change


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_training_is_bit_for_bit_the_same(variant, checkpointing):
    results = []
    for record in (False, True):
        model = model_of(variant, checkpointing=checkpointing, element_dropout=0.2, **DROPOUT[variant])
        off = {e.element.key: copy.deepcopy(e.state_dict()) for e in model.space if not e.enabled}
        optimizer = torch.optim.AdamW(model.network.parameters(), lr=0.01, weight_decay=0.1)
        found = TrainingGradients(model.space, get("grad_norm").score)
        seen = []
        for step in range(4):
            if record and step == 1:
                found.start()
            torch.manual_seed(step)
            loss_of(model, tiny_batch(seed=step)).backward()
            if record and step > 0:
                found.collect()
            seen.append(gradients(model.space))
            optimizer.step()
            optimizer.zero_grad()
        assert found.windows == (3 if record else 0)
        for low_rank in model.space:
            if low_rank.element.key in off:
                assert not low_rank.A.requires_grad
                assert low_rank.B.grad is None
                state = low_rank.state_dict()
                assert all(torch.equal(state[name], value) for name, value in off[low_rank.element.key].items())
        results.append((seen, model.network.state_dict()))
    (seen, state), (seen_recording, state_recording) = results
    for plain, recorded_too in zip(seen, seen_recording, strict=True):
        assert plain.keys() == recorded_too.keys()
        assert all(torch.equal(plain[key], recorded_too[key]) for key in plain)
    assert all(torch.equal(state[key], state_recording[key]) for key in state)


def test_backward_stops_below_the_lowest_element_that_is_on_unless_it_records():
    model = model_of("opt-pre", on=lambda low_rank, index: low_rank.element.layer == LAYERS - 1)
    asked = []
    model.space.blocks[0].register_forward_hook(lambda _block, _args, y: asked.append(y.requires_grad))
    found = TrainingGradients(model.space, get("grad_norm").score)
    loss_of(model, tiny_batch())
    found.start()
    loss_of(model, tiny_batch())
    with torch.no_grad():  # a validation in between
        loss_of(model, tiny_batch())
    found.stop()
    loss_of(model, tiny_batch())
    assert asked == [False, True, False, False]
    assert all(low_rank.probe is None for low_rank in model.space)


def test_an_evaluation_in_between_leaves_the_sums_alone():
    batch = tiny_batch()
    expected = totals_of(model_of("opt-pre"), batch)
    model = model_of("opt-pre")
    found = recording(model)
    loss_of(model, batch).backward()
    model.network.eval()
    with torch.inference_mode():
        loss_of(model, tiny_batch(seed=1))
    model.network.train()
    found.collect()
    assert all(map(torch.equal, found.totals(), expected))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("variant", some_slow(["opt-pre", "roberta", "gemma"], quick=["gemma"]))
def test_nothing_is_kept_alive(variant, checkpointing):
    model, batch = model_of(variant, checkpointing=checkpointing), tiny_batch()
    found = recording(model)

    def alive() -> set[int]:
        # `isinstance` reads `__class__`, which an object of torch that is deprecated answers with a warning.
        return {id(thing) for thing in gc.get_objects() if issubclass(type(thing), Tensor)}

    def window() -> None:
        loss_of(model, batch).backward()
        found.collect()
        model.network.zero_grad(set_to_none=False)

    window()  # makes gradients and sums, which stay
    gc.collect()
    before = len(alive())
    gc.disable()  # reference cycles count as alive
    try:
        window()
        assert len(alive()) == before
        loss_of(model, batch)  # a forward pass whose backward never comes
        assert len(alive()) == before
    finally:
        gc.enable()
    found.stop()
    assert len(alive()) < before


@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpointing_drops_what_probes_save(variant):
    model = model_of(variant, checkpointing=True, on=lambda low_rank, index: False)
    found, inputs = recording(model), []
    for low_rank in model.space:
        if low_rank.element.name in ("o_proj", "w2"):  # their inputs arise within the block
            linear = model.network.get_submodule(low_rank.element.module)
            linear.register_forward_pre_hook(lambda _, args: inputs.append(StorageWeakRef(args[0].untyped_storage())))
    loss = loss_of(model, tiny_batch())
    assert len(inputs) == 2 * LAYERS
    assert all(x.expired() for x in inputs)
    loss.backward()
    found.collect()
    assert all(bool(total.any()) for total in found.totals())


def test_a_copied_network_records_for_itself():
    model, batch = model_of("opt-pre"), tiny_batch()
    expected = totals_of(model, batch)
    model.network.zero_grad()
    found = recording(model)
    twin = Adapted(*copy.deepcopy((model.network, model.space)), model.pretrained)
    loss_of(twin, batch).backward()
    loss_of(model, batch).backward()
    found.collect()
    assert all(map(torch.equal, found.totals(), expected))


# --- state


def test_a_run_cut_while_recording_goes_on_bit_for_bit(tmp_path: Path):
    batches = [tiny_batch(seed=seed) for seed in range(4)]
    whole, first, second = (model_of("opt-pre") for _ in range(3))
    expected = totals_of(whole, *batches, heuristic="fisher")

    def train(found: TrainingGradients, model: Adapted, some: list[dict[str, Tensor]]) -> None:
        found.start()
        for batch in some:
            model.network.zero_grad()
            loss_of(model, batch).backward()
            found.collect()

    found = TrainingGradients(first.space, get("fisher").score)
    train(found, first, batches[:2])
    state = found.state_dict()
    train(found, first, batches[2:])  # the state stays what it was
    torch.save(state, tmp_path / "state")
    resumed = TrainingGradients(second.space, get("fisher").score)
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert resumed.windows == 2
    train(resumed, second, batches[2:])
    for other in (found, resumed):
        assert all(map(torch.equal, other.totals(), expected))
        assert other.windows == 4
    assert resumed.scores() == found.scores()


def test_reset_forgets_and_start_is_said_once():
    model, batch = model_of("opt-pre"), tiny_batch()
    expected = totals_of(model, batch)
    found = recording(model)
    for _ in range(2):
        found.start()
        model.network.zero_grad()
        loss_of(model, batch).backward()
        found.start()
        found.collect()
        assert all(map(torch.equal, found.totals(), expected))
        found.reset()
        assert found.windows == 0
        assert not any(bool(total.any()) for total in found.totals())
        assert found.state_dict() == {"windows": 0, "total": None}


def test_collecting_what_was_not_recorded_is_refused():
    found = TrainingGradients(model_of("opt-pre").space, get("grad_norm").score)
    with pytest.raises(RuntimeError, match="start"):
        found.collect()


# --- which batches


@pytest.mark.parametrize("window", [1, 2, 3, 5])
@pytest.mark.parametrize("limit", [1, 3, 4, 100])
def test_windows_with_one_of_the_last_batches_are_recorded_whole(limit, window):
    for length in range(1, 14):  # an interval that begins with a window; an epoch may end within its last one
        windows = [range(start, min(start + window, length)) for start in range(0, length, window)]
        expected = [any(other >= length - limit for other in members) for members in windows for _ in members]
        start = 2 * window  # of the interval in the epoch
        assert [recorded(start + batch, length - batch, limit, window) for batch in range(length)] == expected


# --- several processes


def _a_process(rank: int, folder: Path) -> None:
    """Half of every batch; the loss and the averaging as training has them."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    found = {}
    for heuristic in ("grad_norm", "fisher"):
        model = model_of("opt-pre")
        gradients_of = recording(model, heuristic)
        for seed in range(2):
            model.network.zero_grad()
            half = {name: tensor[2 * rank : 2 * rank + 2] for name, tensor in tiny_batch(rows=4, seed=seed).items()}
            (loss_of(model, half) * 2).backward()
            for low_rank in model.space:
                if low_rank.enabled:
                    for parameter in low_rank.parameters():
                        distributed.all_reduce(parameter.grad)
                        parameter.grad /= 2
            gradients_of.collect()
        found[heuristic] = gradients_of.scores()
    torch.save(found, folder / f"scores-{rank}")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_score_as_one(tmp_path: Path):
    multiprocessing.spawn(_a_process, (tmp_path,), nprocs=2)
    both = [torch.load(tmp_path / f"scores-{rank}", weights_only=True) for rank in range(2)]
    assert both[0] == both[1]
    for heuristic, scores in both[0].items():
        model = model_of("opt-pre")
        found = recording(model, heuristic)
        for seed in range(2):
            model.network.zero_grad()
            loss_of(model, tiny_batch(rows=4, seed=seed)).backward()
            found.collect()
        assert scores == pytest.approx(found.scores(), rel=1e-5)
