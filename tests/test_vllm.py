"""`tools/export.py --format vllm`, read by vLLM's rules: one rank, one scaling, no patterns, no module saved whole."""

from __future__ import annotations

import json
import re
from pathlib import Path

import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from heterolora.common.errors import UserError
from model.peft_format.vllm import max_lora_rank, uniform
from model.peft_format.writing import write_adapter
from tests.adapted import CASES, VARIANTS, Adapted, adapted, lora_config
from tests.test_export import RECORD, logits, mixed
from tests.test_peft_in import trained_by_peft
from tests.tiny import tiny_network
from tests.world import World
from tools import export

LANGUAGE_MODELS = [variant for variant, task in CASES if task == "causal_language_modeling"]


@torch.no_grad()
def as_vllm_reads(network: PreTrainedModel, folder: Path, max_rank: int) -> PreTrainedModel:
    """Add an adapter to a network as vLLM does (`PEFTHelper` and `LoRAModel.from_lora_tensors`)."""
    said = json.loads((folder / "adapter_config.json").read_text())
    assert isinstance(said["lora_alpha"], int)
    assert said["r"] <= max_rank
    assert said["bias"] == "none"
    assert not said["modules_to_save"]
    assert not said.get("use_dora")
    scaling = said["lora_alpha"] / (said["r"] ** 0.5 if said["use_rslora"] else said["r"])
    matrices = load_file(folder / "adapter_model.safetensors")
    for name in [name for name in matrices if name.endswith(".lora_A.weight")]:
        A, B = matrices.pop(name), matrices.pop(name.replace("lora_A", "lora_B"))
        assert A.shape[0] == B.shape[1] == said["r"]
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        network.get_parameter(f"{module}.weight").add_(scaling * B @ A)
    assert not matrices
    return network


@pytest.mark.parametrize("variant", LANGUAGE_MODELS)
def test_the_same_logits(tmp_path: Path, variant: str) -> None:
    ours = mixed(variant, "causal_language_modeling")
    on = ours.space.on("lora")
    write_adapter(tmp_path, ours.network, ours.space, "causal_language_modeling", RECORD, lora=uniform(on))
    name, keys = VARIANTS[variant]

    def base() -> PreTrainedModel:
        return tiny_network(name, "causal_language_modeling", **keys)

    expected = logits(ours.network)
    assert (logits(base()) - expected).abs().max() > 1e-3
    vllm = as_vllm_reads(base(), tmp_path, max_lora_rank(on))
    torch.testing.assert_close(logits(vllm), expected, atol=1e-5, rtol=0)
    theirs = peft.PeftModel.from_pretrained(base(), tmp_path)
    torch.testing.assert_close(logits(theirs), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("rank", "limit"), [(1, 8), (8, 8), (9, 16), (300, 320), (512, 512)])
def test_the_least_limit_that_admits_a_rank(rank: int, limit: int) -> None:
    assert max_lora_rank(wide(rank).space.on("lora")) == limit


def test_a_rank_above_every_limit() -> None:
    with pytest.raises(UserError, match=r"is 513, and vLLM's highest --max-lora-rank is 512; use --format merged"):
        max_lora_rank(wide(513).space.on("lora"))


def wide(rank: int) -> Adapted:
    return adapted("opt-pre", "causal_language_modeling", lora_config(r=rank))


class TestTool:
    def test_an_adapter_of_peft(self, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """It has patterns, which vLLM ignores."""
        patterns = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 7}, "use_rslora": True}
        theirs = trained_by_peft(world.opt, tmp_path / "adapter", "CAUSAL_LM", **patterns)
        output = tmp_path / "served"
        export.main([str(tmp_path / "adapter"), "--format", "vllm", "--output", str(output), "--dataset", "wikitext2"])
        assert "--enable-lora --max-lora-rank 8" in capsys.readouterr().out
        base = AutoModelForCausalLM.from_pretrained(world.opt, dtype=torch.float32)
        torch.testing.assert_close(logits(as_vllm_reads(base, output, 8)), logits(theirs), atol=1e-5, rtol=0)
        card = (output / "README.md").read_text()
        front = yaml.safe_load(re.match(r"---\n(.*?)\n---", card, re.DOTALL)[1])
        assert front["base_model"] == str(world.opt)
        assert f"vllm serve {world.opt} --enable-lora --max-lora-rank 8 --lora-modules" in card
        text = "a good film"
        assert AutoTokenizer.from_pretrained(output)(text) == AutoTokenizer.from_pretrained(world.opt)(text)

    def test_a_trained_head_is_refused(self, world: World, tmp_path: Path) -> None:
        trained_by_peft(world.opt, tmp_path / "adapter")
        arguments = [str(tmp_path / "adapter"), "--format", "vllm", "--output", str(tmp_path / "served")]
        with pytest.raises(UserError, match=r"has a trained head, .*; use --format merged"):
            export.main([*arguments, "--dataset", "sst2"])
        assert not (tmp_path / "served").exists()
