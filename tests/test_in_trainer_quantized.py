"""The search on a base in 4 and 8 bits, by bitsandbytes: in Transformers' Trainer on PEFT's layers, and in Lightning on
those of `hl.adapt`, which Trainer does not train on such a base.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import heterolora as hl
from heterolora.elements.inside import space_of
from heterolora.elements.peft_space import peft_space
from heterolora.lightning import Reallocate as InLightning
from heterolora.transformers import Reallocate
from tests.quick import some_slow
from tests.test_in_lightning import fit
from tests.test_in_trainer import trained
from tests.tiny import tiny_network

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    widths = {"hidden_size": 64, "intermediate_size": 128}  # bitsandbytes quantises 64 inputs at a time
    tiny_network("llama", "causal_language_modeling", **widths).save_pretrained(path)
    return path


def base(folder: Path, bits: int) -> Any:
    given = BitsAndBytesConfig(**{f"load_in_{bits}bit": True}, bnb_4bit_quant_type="nf4")
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=given, device_map="cpu")


def deltas(model: Any) -> dict[str, Tensor]:
    """Path of a layer that is on -> what LoRA adds to its weight."""
    on = space_of(model).on()
    return {each.element.module: each.scaling * (each.B @ each.A).detach() for each in on}


def is_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.allclose(value, expected[path], atol=1e-6) for path, value in found.items()
    )


@pytest.mark.parametrize("bits", some_slow([4, 8], quick=[4]))
def test_ranks_are_turned_off_on_layers_of_peft(tmp_path: Path, folder: Path, bits: int) -> None:
    torch.manual_seed(0)
    model = peft.prepare_model_for_kbit_training(base(folder, bits), use_gradient_checkpointing=False)
    model = peft.get_peft_model(model, peft.LoraConfig(**LORA))
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    callback = Reallocate(share=0.3, units="rank", compact=False)
    made = trained(tmp_path, callback, model)
    search, after = callback.search, made.watch.after
    assert 0 < search.parameters_on <= 0.3 * search.whole
    assert all(bool(unit.A.any()) == bool(unit.B.any()) == unit.enabled for unit in search.space)
    off = {unit.element.key for unit in search.space} - search.on
    assert off
    assert any(not torch.equal(value, after[-1][name]) for name, value in after[0].items())
    assert all(torch.equal(value, dict(model.named_parameters())[name]) for name, value in frozen.items())
    size, expected = search.parameters_on, deltas(model)
    hl.compact(model).save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(base(folder, bits), tmp_path / "adapter")
    assert sum(each.parameters for each in peft_space(loaded).elements) == size
    assert len({each.rank for each in peft_space(loaded).elements}) > 1
    assert is_equal(deltas(loaded), expected)


@pytest.mark.parametrize("bits", some_slow([4, 8], quick=[8]))
def test_ranks_are_turned_off_on_layers_of_the_library(tmp_path: Path, folder: Path, bits: int) -> None:
    torch.manual_seed(0)
    callback = InLightning(share=0.3, units="rank", compact=False)
    _, module = fit(tmp_path, callback, model=hl.adapt(base(folder, bits), rank=4, alpha=8.0))
    assert 0 < callback.search.parameters_on <= 0.3 * callback.search.whole
    size, expected = callback.search.parameters_on, deltas(module)
    hl.to_peft(module.network, "CAUSAL_LM").save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(base(folder, bits), tmp_path / "adapter")
    assert sum(each.parameters for each in peft_space(loaded).elements) == size
    assert is_equal(deltas(loaded), expected)
