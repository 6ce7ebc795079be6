"""Shortcuts against an independent forward pass, and what being attached to library code must not break."""

from __future__ import annotations

import copy
import gc
import inspect

import pytest
import torch
from torch import Tensor

from heterolora.elements.adapt import HEADS
from heterolora.elements.config import parse_config
from heterolora.elements.element import SHORTCUTS
from heterolora.elements.search_space import SearchSpace
from model import family
from model.load import enable_gradient_checkpointing
from tests.adapted import CASES, VARIANTS, Adapted, adapted, gradients, lora_config, put_into, shortcut_config
from tests.reference import Reference
from tests.tiny import PAD, VOCABULARY, tiny_batch, tiny_network

CAUSAL = [variant for variant, task in CASES if task == "causal_language_modeling"]


def full(variant: str, task: str = "classification", renormalize: bool = False, **overrides: object) -> Adapted:
    """LoRA and shortcuts everywhere, B as if trained."""
    return adapted(variant, task, lora_config(), shortcut_config(renormalize), **overrides).train_b()


def loss_of(logits: Tensor, seed: int = 0) -> Tensor:
    """A loss that weighs every logit differently."""
    return (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))).sum()


def backward(model: Adapted, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    model.network.zero_grad()
    loss_of(model.network(**batch).logits).backward()
    return gradients(model.space)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], msg=lambda text, key=key: f"{key}: {text}", **tolerance)


def deltas_of(space: SearchSpace) -> dict[tuple[int, str], tuple[Tensor, Tensor, float]]:
    """What `Reference` takes: copies, of the elements that are on."""
    return {
        (e.element.layer, e.element.name): (e.A.detach().clone(), e.B.detach().clone(), e.scaling)
        for e in space
        if e.enabled
    }


def switch(space: SearchSpace, *names: str, on: bool = True) -> None:
    for low_rank in space:
        if low_rank.element.name in names:
            low_rank.switch(on)


# --- the equations


@pytest.mark.parametrize("renormalize", [False, True], ids=["plain", "renormalize"])
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize(("variant", "task"), CASES)
def test_logits_and_gradients_are_those_of_the_equations(variant, task, padding, renormalize):
    model, batch = full(variant, task, renormalize), tiny_batch(padding=padding)
    deltas = deltas_of(model.space)
    parts = [part.requires_grad_() for A, B, _ in deltas.values() for part in (A, B)]
    expected = Reference(model.network.config, model.pretrained, deltas, renormalize)(**batch)
    logits = model.network(**batch).logits
    if logits.dim() == 3:  # what stands in a padded place is nobody's business
        visible = batch["attention_mask"].bool()
        expected, logits = expected[visible], logits[visible]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)

    loss_of(logits).backward()
    wanted = torch.autograd.grad(loss_of(expected), parts)
    found = [part.grad for e in model.space for part in (e.A, e.B)]
    assert len(found) == len(wanted) == 2 * len(model.space)
    for key, ours, theirs in zip([e.key for e in model.space.elements for _ in "AB"], found, wanted, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()), msg=key)


@pytest.mark.parametrize("name", SHORTCUTS)
@pytest.mark.parametrize("renormalize", [False, True], ids=["plain", "renormalize"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_shortcut_alone_is_at_its_place(variant, name, renormalize):
    shortcut = parse_config(
        {
            "granularity": "network",
            "renormalize": renormalize,
            "default": {"r": 0},
            "all_layers": {name: {"r": 2, "shortcut_alpha": 3}},
        },
        "shortcut",
    )
    model, batch = adapted(variant, shortcut=shortcut).train_b(), tiny_batch()
    assert [e.element.layer for e in model.space] == ([1] if name == "shortcut2" else [0, 1])
    expected = Reference(model.network.config, model.pretrained, deltas_of(model.space), renormalize)(**batch)
    without = Reference(model.network.config, model.pretrained, {}, renormalize)(**batch)
    assert not torch.allclose(expected, without, atol=1e-2)
    torch.testing.assert_close(model.network(**batch).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("variant", "task"), CASES)
def test_it_starts_as_the_pretrained_model_whatever_is_on(variant, task):
    batch = tiny_batch()
    plain = adapted(variant, task).network(**batch).logits
    model = adapted(variant, task, lora_config(), shortcut_config())
    assert torch.equal(model.network(**batch).logits, plain)
    for low_rank in list(model.space)[::2]:
        low_rank.switch(False)
    assert torch.equal(model.network(**batch).logits, plain)


@pytest.mark.parametrize("variant", VARIANTS)
def test_renormalizing_needs_no_element(variant):
    model = adapted(variant, shortcut=shortcut_config(renormalize=True, r=0))
    assert len(model.space) == 0
    expected = Reference(model.network.config, model.pretrained, {}, True)(**tiny_batch())
    torch.testing.assert_close(model.network(**tiny_batch()).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("renormalize", [False, True], ids=["plain", "renormalize"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_ranks_and_sites_differ_from_block_to_block(variant, renormalize):
    lora = parse_config(
        {
            "granularity": "layer",
            "default": {"r": 2, "lora_alpha": 5},
            "model_layer_0": {"q_proj": {"r": 4}, "w1": {"disable_adapter": True}},
            "model_layer_2": {"o_proj": {"r": 0}, "w2": {"r": 1, "lora_alpha": 3}},
        },
        "lora",
    )
    shortcut = parse_config(
        {
            "granularity": "layer",
            "renormalize": renormalize,
            "default": {"r": 3, "shortcut_alpha": 2},
            "model_layer_0": {"residual1": {"disable_projector": True}, "shortcut1": {"r": 5}},
            "model_layer_1": {"shortcut2": {"r": 0}, "residual2": {"r": 1, "shortcut_alpha": 4}},
            "model_layer_2": {"shortcut2": {"r": 2}, "shortcut1": {"disable_projector": True}},
        },
        "shortcut",
    )
    model = adapted(variant, lora=lora, shortcut=shortcut, num_hidden_layers=3).train_b()
    ranks = {e.element.key: e.element.rank for e in model.space.of_kind("shortcut")}
    assert ranks == {
        **{"layer_0.residual2": 3, "layer_0.shortcut1": 5},
        **{"layer_1.residual1": 3, "layer_1.residual2": 1, "layer_1.shortcut1": 3},
        **{"layer_2.residual1": 3, "layer_2.residual2": 3, "layer_2.shortcut2": 2},
    }
    found = {e.element.key: e.element.rank for e in model.space.of_kind("lora")}
    assert (found["layer_0.q_proj"], found["layer_1.q_proj"], found["layer_2.w2"]) == (4, 2, 1)
    assert {"layer_0.w1", "layer_2.o_proj"} & found.keys() == set()
    expected = Reference(model.network.config, model.pretrained, deltas_of(model.space), renormalize)(**tiny_batch())
    torch.testing.assert_close(model.network(**tiny_batch()).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("renormalize", [False, True], ids=["plain", "renormalize"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_block_may_be_called_another_way(variant, renormalize):
    """A later library may give blocks further arguments, all by keyword, and take more than one result."""
    batch = tiny_batch()
    expected = full(variant, renormalize=renormalize).network(**batch).logits
    name, keys = VARIANTS[variant]
    network = tiny_network(name, **keys)
    for block in network.base_model.get_submodule(family.get(name).blocks):
        names = tuple(inspect.signature(block.forward).parameters)

        class Changed(type(block)):
            def forward(self, *, novelty, **kwargs):
                return super().forward(**kwargs), novelty

        def call(_block, args, kwargs, names=names):
            return (), {**dict(zip(names, args, strict=False)), **kwargs, "novelty": 1}

        block.__class__ = Changed
        block.register_forward_pre_hook(call, with_kwargs=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        space = put_into(network, family.get(name), lora_config(), shortcut_config(renormalize))
    for block in space.blocks:
        block.register_forward_hook(lambda _block, _args, output: output[0])
    model = Adapted(network, space, {}).train_b()
    assert torch.equal(model.network(**batch).logits, expected)


# --- off is absent


@pytest.mark.parametrize("variant", VARIANTS)
def test_off_is_absent(variant):
    batch = tiny_batch()
    model, lora_only = full(variant), adapted(variant, lora=lora_config()).train_b()
    switch(model.space, *SHORTCUTS, on=False)
    with torch.no_grad():
        for ours, theirs in zip(model.space.of_kind("lora"), lora_only.space, strict=True):
            for which in ("A", "B"):
                getattr(ours, which).copy_(getattr(theirs, which))
    expected = backward(lora_only, batch)
    assert_same(backward(model, batch), expected, rtol=0, atol=0)  # and so no gradient for any shortcut
    assert torch.equal(model.network(**batch).logits, lora_only.network(**batch).logits)
    called = []
    for low_rank in model.space.of_kind("shortcut"):
        low_rank.register_forward_hook(lambda *_, key=low_rank.element.key: called.append(key))
    model.network(**batch)
    assert called == []


@pytest.mark.parametrize("variant", ["opt-pre", "roberta"])
def test_an_optimizer_leaves_alone_what_is_off(variant):
    model, batch = full(variant), tiny_batch()
    optimizer = torch.optim.AdamW(model.network.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(2):  # momentum builds up
        optimizer.zero_grad()
        loss_of(model.network(**batch).logits).backward()
        optimizer.step()
    switch(model.space, "shortcut1", "q_proj", on=False)
    before = {e.element.key: e.B.clone() for e in model.space}
    optimizer.zero_grad()
    loss_of(model.network(**batch).logits).backward()
    optimizer.step()
    changed = {e.element.name for e in model.space if not torch.equal(before[e.element.key], e.B)}
    assert changed == {e.element.name for e in model.space} - {"shortcut1", "q_proj"}


# --- what happens between forward and backward


@pytest.mark.parametrize("renormalize", [False, True], ids=["plain", "renormalize"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_checkpointing_changes_no_gradient(variant, renormalize):
    batch = tiny_batch()
    plain, checkpointed = (full(variant, renormalize=renormalize, num_hidden_layers=3) for _ in range(2))
    plain.network.train()
    expected = backward(plain, batch)
    enable_gradient_checkpointing(checkpointed.network, checkpointed.space)
    checkpointed.network.train()
    runs = _count_runs_of_a_block(checkpointed)
    assert_same(backward(checkpointed, batch), expected)
    assert len(runs) == 2  # it was recomputed


@pytest.mark.parametrize("renormalize", [False, True], ids=["plain", "renormalize"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_checkpointing_remembers_the_h_of_its_own_call(variant, renormalize):
    first, second = tiny_batch(seed=0), tiny_batch(seed=1)
    plain, checkpointed = (full(variant, renormalize=renormalize, num_hidden_layers=3) for _ in range(2))
    for model in (plain, checkpointed):
        model.network.train()
    enable_gradient_checkpointing(checkpointed.network, checkpointed.space)
    found = []
    for model in (plain, checkpointed):
        loss = loss_of(model.network(**first).logits)
        other = loss_of(model.network(**second).logits, seed=1)  # a second forward between forward and backward
        with torch.no_grad():
            model.network(**second)
        loss.backward()
        found.append(gradients(model.space))
        other.backward()
        found.append(gradients(model.space))
    assert_same(found[2], found[0])
    assert_same(found[3], found[1])


def test_gradient_checkpointing_with_dropout_draws_the_same_again():
    batch = tiny_batch()
    results = []
    for checkpointing in (False, True):
        model = adapted("opt-pre", "classification", lora_config(lora_dropout=0.3), shortcut_config(proj_dropout=0.3))
        model.train_b().network.train()
        if checkpointing:
            enable_gradient_checkpointing(model.network, model.space)
        torch.manual_seed(5)
        results.append(backward(model, batch))
    assert_same(results[1], results[0])


def _count_runs_of_a_block(model: Adapted) -> list[None]:
    runs: list[None] = []
    first = next(e for e in model.space if e.element.key == "layer_1.q_proj")
    first.register_forward_hook(lambda *_: runs.append(None))
    return runs


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("renormalize", [False, True], ids=["plain", "renormalize"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_is_kept_alive(variant, renormalize, checkpointing):
    model, batch = full(variant, renormalize=renormalize), tiny_batch()
    model.network.train()
    if checkpointing:
        enable_gradient_checkpointing(model.network, model.space)
    backward(model, batch)  # makes the gradients, which stay

    def alive() -> list[Tensor]:
        """Tensors made since `freeze`."""
        return [thing for thing in gc.get_objects() if isinstance(thing, Tensor)]

    gc.disable()  # reference cycles count as alive
    gc.freeze()
    try:
        loss_of(model.network(**batch).logits).backward()
        assert alive() == []
        with torch.no_grad():
            model.network(**batch)
        assert alive() == []
    finally:
        gc.unfreeze()
        gc.enable()


@pytest.mark.parametrize("only", [SHORTCUTS, *((name,) for name in SHORTCUTS)], ids="-".join)
@pytest.mark.parametrize("variant", VARIANTS)
def test_x_and_h_are_let_go_before_the_head_runs(variant, only):
    model = full(variant)
    switch(model.space, *set(SHORTCUTS) - set(only), on=False)
    held = []
    head = model.network.score if hasattr(model.network, "score") else model.network.classifier
    head.register_forward_pre_hook(lambda *_: held.append(copy.copy(vars(model.space.carry.held))))
    model.network(**tiny_batch())
    assert held == [{"x": None, "h": None, "before": None, "step": None}]


def test_h_is_not_seen_for_a_shortcut_that_is_off():
    model = full("opt-pre")
    switch(model.space, "shortcut2", "residual2", on=False)
    seen = []
    model.space.blocks[0].register_forward_hook(lambda *_: seen.append(model.space.carry.held.before))
    model.network(**tiny_batch())
    switch(model.space, "shortcut2")
    model.network(**tiny_batch())
    assert seen[0] is None
    assert seen[1][0] == 0


def test_a_stale_h_is_refused():
    model = adapted("opt-pre", "classification", None, shortcut_config(), num_hidden_layers=3).train_b()
    inner, x = model.network.model.decoder, torch.randn(2, 5, 32)
    inner.layers[0](x)  # leaves its h for block 1, not for block 2
    with pytest.raises(RuntimeError, match="block 2 runs without the h of block 1"):
        inner.layers[2](x)


def test_a_forward_pass_that_was_cut_short_changes_nothing_afterwards():
    model, batch = full("opt-pre"), tiny_batch()
    expected = model.network(**batch).logits
    block = model.space.blocks[1]
    handle = block.fc2.register_forward_pre_hook(_interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.network(**tiny_batch(seed=1))
    handle.remove()
    network, _ = copy.deepcopy((model.network, model.space))
    assert torch.equal(model.network(**batch).logits, expected)
    assert torch.equal(network(**batch).logits, expected)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


# --- copies, other models, generation


@pytest.mark.parametrize("renormalize", [False, True], ids=["plain", "renormalize"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_deep_copy_works_on_its_own(variant, renormalize):
    model, batch = full(variant, renormalize=renormalize), tiny_batch()
    enable_gradient_checkpointing(model.network, model.space)
    model.network.train()
    expected = backward(model, batch)
    logits = model.network(**batch).logits
    network, space = copy.deepcopy((model.network, model.space))
    twin = Adapted(network, space, model.pretrained)
    switch(model.space, *(low_rank.element.name for low_rank in model.space), on=False)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.fill_(float("nan"))
    assert_same(backward(twin, batch), expected, rtol=0, atol=0)
    assert torch.equal(network(**batch).logits, logits)
    own = {id(p) for p in network.parameters()}
    assert all(id(e.B) in own for e in space)
    switch(space, "shortcut2", on=False)
    assert not torch.equal(network(**batch).logits, logits)


def test_two_models_in_one_process_do_not_mix():
    one, two, batch = full("opt-pre"), full("opt-pre").train_b(seed=2), tiny_batch()
    alone = [backward(model, batch) for model in (one, two)]
    one.network.zero_grad(), two.network.zero_grad()
    losses = [loss_of(model.network(**batch).logits) for model in (one, two)]
    for loss in losses:
        loss.backward()
    for model, expected in zip((one, two), alone, strict=True):
        assert_same(gradients(model.space), expected, rtol=0, atol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_evaluation_after_training(variant, checkpointing):
    model, batch = full(variant), tiny_batch()
    if checkpointing:
        enable_gradient_checkpointing(model.network, model.space)
    optimizer = torch.optim.SGD([p for p in model.network.parameters() if p.requires_grad], lr=0.01)
    model.network.train()
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model.network(**batch).logits).backward()
        optimizer.step()
    model.network.eval()
    head = {key: value for key, value in model.network.state_dict().items() if key.split(".")[0] in HEADS}
    assert any(not torch.equal(model.pretrained[key], value) for key, value in head.items())
    expected = Reference(model.network.config, {**model.pretrained, **head}, deltas_of(model.space))(**batch)
    torch.testing.assert_close(model.network(**batch).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", ["left", None])
@pytest.mark.parametrize("renormalize", [False, True], ids=["plain", "renormalize"])
@pytest.mark.parametrize("variant", CAUSAL)
def test_generation_with_a_cache_is_generation_without(variant, renormalize, padding):
    model = full(variant, "causal_language_modeling", renormalize)
    batch = tiny_batch(padding=padding)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": PAD, "eos_token_id": VOCABULARY + 1}
    cached = model.network.generate(**batch, **options, use_cache=True)
    plain = model.network.generate(**batch, **options, use_cache=False)
    assert cached.shape[1] == batch["input_ids"].shape[1] + 8
    assert torch.equal(cached, plain)
    assert len({tuple(row) for row in cached[:, -8:].tolist()}) > 1  # not one constant text


@pytest.mark.parametrize("variant", CAUSAL)
def test_padding_changes_no_visible_logit(variant):
    model = full(variant, "causal_language_modeling")
    row = torch.randint(3, VOCABULARY, (1, 5), generator=torch.Generator().manual_seed(0))
    alone = model.network(input_ids=row).logits
    for side in ("left", "right"):
        pad = torch.full((1, 3), PAD)
        ids = torch.cat([pad, row] if side == "left" else [row, pad], dim=1)
        mask = (ids != PAD).long()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model.network(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        torch.testing.assert_close(logits[mask.bool()], alone[0], rtol=1e-5, atol=1e-5)


def test_no_square_matrix_is_made():
    model = full("opt-pre")
    width = model.network.config.hidden_size
    shapes = [tuple(p.shape) for block in model.space.blocks for p in block.shortcuts.parameters()]
    assert sorted(set(shapes)) == [(2, width), (width, 2)]
    assert len(shapes) == 2 * (2 * 4 - 1)
