"""`hl.adapt`, LoRA layers without PEFT, and `hl.to_peft`, which makes them PEFT's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import heterolora as hl
from heterolora.elements.inside import space_of, units_of
from heterolora.elements.peft_space import peft_space
from tests.architectures import ARCHITECTURES
from tests.mistakes import refusal
from tests.test_peft_elements import EXPERTS, batch, keys, logits
from tests.tiny import tiny_network


def llama() -> nn.Module:
    return tiny_network("llama", "causal_language_modeling")


#: Kind of network -> its base, and the arguments of `adapt`.
KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "linear": (llama, {}),
    "rslora": (llama, {"use_rslora": True}),
    "conv1d": (lambda: ARCHITECTURES["gpt2"].network(), {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "experts": (
        lambda: ARCHITECTURES["qwen3_moe"].network(),
        {"target_modules": ["q_proj", "v_proj"], "target_parameters": EXPERTS},
    ),
    "experts_alone": (
        lambda: ARCHITECTURES["qwen3_moe"].network(),
        {"target_modules": [], "target_parameters": EXPERTS},
    ),
}


def adapted(kind: str, rank: int = 2) -> Any:
    """With trained values in A and B, so that every element matters."""
    base, given = KINDS[kind]
    torch.manual_seed(0)
    model = hl.adapt(base(), rank=rank, alpha=4.0, **given).eval()
    with torch.no_grad():
        for each in space_of(model):
            each.B.normal_(0, 0.1)
    return model


@pytest.mark.parametrize("kind", KINDS)
class TestKinds:
    def test_it_computes_what_the_base_computes(self, kind: str) -> None:
        base, given = KINDS[kind]
        network = base()
        expected = logits(network)
        model = hl.adapt(network, rank=2, **given)
        assert model is network
        assert torch.equal(logits(model), expected)
        trained = {id(p) for p in model.parameters() if p.requires_grad}
        assert trained == {id(p) for each in space_of(model) for p in each.tensors}

    @pytest.mark.parametrize("units", ["element", "rank"])
    def test_in_peft_it_computes_the_same(self, kind: str, units: Any, tmp_path: Path) -> None:
        """With layers off, or ranks of layers, also from a saved adapter."""
        model = adapted(kind)
        space = units_of(model, None, units)
        names = [element.key for element in space.elements]
        space.switch({name for index, name in enumerate(names) if index % 3})
        size, expected = sum(each.element.parameters for each in space.on()), logits(model)
        made = hl.to_peft(model)
        torch.testing.assert_close(logits(made), expected, atol=1e-6, rtol=0)
        made.save_pretrained(tmp_path)
        loaded = peft.PeftModel.from_pretrained(KINDS[kind][0](), tmp_path)
        torch.testing.assert_close(logits(loaded), expected, atol=1e-6, rtol=0)
        assert sum(element.parameters for element in peft_space(loaded).elements) == size

    def test_compact_puts_the_layers_of_the_base_back(self, kind: str) -> None:
        model = adapted(kind)
        space = space_of(model)
        on = {element.key for index, element in enumerate(space.elements) if index % 3}
        space.switch(on)
        expected, before = logits(model), sum(1 for _ in model.modules())
        hl.compact(model)
        assert torch.equal(logits(model), expected)
        assert {element.key for element in space_of(model).elements} == on
        assert sum(1 for _ in model.modules()) < before


@pytest.mark.parametrize("heuristic", ["grad_norm", "gain", "weight_grad_norm", "weight_gradient", "activation"])
def test_its_scores_are_those_in_peft(heuristic: str) -> None:
    model = adapted("linear")
    ours = hl.score(model, [batch()], heuristic, warmup_batches=0)
    theirs = hl.score(hl.to_peft(model), [batch()], heuristic, warmup_batches=0)
    assert [item.element.key for item in ours.scored] == [item.element.key for item in theirs.scored]
    expected = pytest.approx([item.score for item in theirs.scored], rel=1e-4, abs=1e-9)
    assert [item.score for item in ours.scored] == expected


def test_a_head_is_trained_and_saved(tmp_path: Path) -> None:
    def base() -> Any:
        return tiny_network("roberta", "classification")

    model = hl.adapt(base(), rank=2)
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "low_rank" not in name}
    assert trained == {name for name, _ in base().named_parameters() if name.startswith("classifier.")}
    with torch.no_grad():
        model.classifier.out_proj.weight.normal_()
        expected = model.eval()(input_ids=batch()["input_ids"]).logits
        hl.to_peft(model, "SEQ_CLS").save_pretrained(tmp_path)
        loaded = peft.PeftModel.from_pretrained(base(), tmp_path).eval()
        torch.testing.assert_close(loaded(input_ids=batch()["input_ids"]).logits, expected, atol=1e-6, rtol=0)


def test_two_networks_in_one_module() -> None:
    """As in a student and a teacher: places of one name get names of their own."""
    both = nn.ModuleList([adapted("linear"), adapted("linear")])
    names = keys_of(both)
    assert len(set(names)) == 2 * len(keys(hl.to_peft(adapted("linear"))))
    assert keys_of(both) == names


def keys_of(network: nn.Module) -> list[str]:
    return [element.key for element in space_of(network).elements]


def test_the_fast_path_of_torch_does_not_go_around_it() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = hl.adapt(nn.TransformerEncoder(layer, 1), rank=2, target_modules=["linear1", "linear2"]).eval()
    x = torch.randn(1, 3, 8)

    def outputs() -> Tensor:
        with torch.no_grad():
            return model(x)

    try:
        before = outputs()
        for each in space_of(model):
            nn.init.normal_(each.B)
        assert not torch.equal(outputs(), before)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "model": (lambda: hl.adapt("opt"), "adapt: model is 'opt'; expected a torch.nn.Module"),
    "rank": (lambda: hl.adapt(llama(), rank=0), "adapt: rank is 0; expected a whole number, 1 or more"),
    "dropout": (lambda: hl.adapt(llama(), dropout=1.0), "adapt: dropout is 1.0; expected a number in [0, 1)"),
    "layers": (lambda: hl.adapt(llama(), target_modules=["qproj"]), "did you mean 'q_proj'"),
    "twice": (lambda: hl.adapt(adapted("linear")), "the model has LoRA layers already"),
    "on PEFT": (lambda: hl.adapt(hl.to_peft(adapted("linear"))), "the model has LoRA layers already"),
    "nothing to write": (lambda: hl.to_peft(llama()), "the model has no LoRA layers"),
    "of PEFT": (lambda: hl.to_peft(hl.to_peft(adapted("linear"))), "the model is a PEFT model already"),
    "a part": (lambda: hl.to_peft(nn.Sequential(adapted("linear"))), "give the network that was given to adapt"),
    "task": (lambda: hl.to_peft(adapted("linear"), "POEMS"), "task_type: 'POEMS' is not known"),
    "adapter": (lambda: hl.compact(adapted("linear"), "x"), "no adapter 'x'; leave the adapter out"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes(name: str) -> None:
    call, said = WRONG[name]
    assert said in refusal(call)


def test_all_layers_off_is_a_mistake() -> None:
    model = adapted("linear")
    space_of(model).switch(set())
    with pytest.raises(hl.UserError, match="all LoRA layers are off; keep at least one of them on"):
        hl.compact(model)
