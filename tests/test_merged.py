"""`tools/export.py --format merged`: LoRA folded into the base, as a plain Hugging Face folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
)

from actions.command.parse import parse_command
from actions.request.elements import request_of
from actions.training.experiment import build
from benchmarks.sharding import Peak
from heterolora.common.errors import UserError
from heterolora.elements.search_space import SearchSpace
from model import family
from model.merge import fold as fold_into
from model.merge import in_numbers, unwrap
from tests.adapted import CASES, Adapted, adapted, lora_config, put_into, shortcut_config
from tests.quick import some_slow
from tests.test_peft_in import trained_by_peft
from tests.tiny import tiny_batch
from tests.together import together
from tests.world import World, command, model_folder, run, text_folder, weights, write_lora
from tools import export

AUTO = {"classification": AutoModelForSequenceClassification, "causal_language_modeling": AutoModelForCausalLM}


def logits(network: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(**tiny_batch(padding=None)).logits


def fold(network: PreTrainedModel, space: SearchSpace) -> None:
    """The plain network, in place."""
    unwrap(network, space)
    fold_into(space, network.get_parameter)


def some_off(made: Adapted) -> Adapted:
    """Every third element off."""
    for number, low_rank in enumerate(made.space):
        low_rank.switch(number % 3 > 0)
    return made


class TestFold:
    @pytest.mark.parametrize(("variant", "task"), CASES)
    def test_the_same_function_without_elements(self, variant: str, task: str) -> None:
        made = some_off(adapted(variant, task, lora_config()).train_b())
        expected = logits(made.network)
        fold(made.network, made.space)
        torch.testing.assert_close(logits(made.network), expected, atol=1e-4, rtol=0)
        assert made.network.state_dict().keys() == made.pretrained.keys()
        changed = {
            name for name, tensor in made.network.state_dict().items() if not tensor.equal(made.pretrained[name])
        }
        assert changed == {f"{low_rank.element.module}.weight" for low_rank in made.space if low_rank.enabled}

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
    def test_each_weight_is_rounded_once(self, dtype: torch.dtype) -> None:
        """Against the sum in float64, to half a unit in the last place (and float32's own error of the sum)."""
        made = adapted("gemma", lora=lora_config(use_rslora=True))
        base = {name: made.pretrained[name].to(dtype) for name in made.pretrained}
        made.network.to(dtype)
        for low_rank in made.space:
            low_rank.float()
        made.train_b()
        fold(made.network, made.space)
        for low_rank in made.space:
            weight = made.network.get_parameter(f"{low_rank.element.module}.weight")
            a, b = (matrix.detach().double().numpy() for matrix in (low_rank.A, low_rank.B))
            exact = base[f"{low_rank.element.module}.weight"].double().numpy() + 6 / 3**0.5 * b @ a
            assert weight.dtype == dtype
            off = np.abs(weight.detach().double().numpy() - exact)
            assert (off <= torch.finfo(dtype).eps / 2 * np.abs(exact) * 1.01 + 1e-6).all()

    def test_in_place(self) -> None:
        """No second copy: each weight stays where it lies in memory."""
        made = adapted("opt-pre", lora=lora_config()).train_b()
        before = {name.replace(".base.", "."): p.data_ptr() for name, p in made.network.named_parameters()}
        fold(made.network, made.space)
        assert all(before[name] == p.data_ptr() for name, p in made.network.named_parameters())

    def test_a_head_gets_the_dtype_of_its_base(self) -> None:
        made = adapted("roberta", lora=lora_config()).train_b()
        made.network.to(torch.bfloat16)
        for part in (*(low_rank for low_rank in made.space), made.network.classifier):
            part.float()
        expected = logits(made.network)
        fold(made.network, made.space)
        assert {p.dtype for p in made.network.parameters()} == {torch.bfloat16}
        torch.testing.assert_close(logits(made.network).float(), expected, atol=0.05, rtol=0)

    def test_shortcuts_that_are_off_go_without_a_trace(self) -> None:
        made = adapted("opt-post", lora=lora_config(), shortcut=shortcut_config()).train_b()
        for low_rank in made.space.of_kind("shortcut"):
            low_rank.switch(False)
        expected = logits(made.network)
        fold(made.network, made.space)
        torch.testing.assert_close(logits(made.network), expected, atol=1e-4, rtol=0)
        assert made.network.state_dict().keys() == made.pretrained.keys()

    def test_a_quantised_base_in_numbers_again(self, tmp_path: Path) -> None:
        pytest.importorskip("bitsandbytes")
        folder = model_folder(tmp_path, "llama", hidden_size=64)
        quantised = quantised_and_adapted(folder)
        expected = logits(quantised.network)  # of a model of its own: on a CPU a forward pass repacks the weights
        made = quantised_and_adapted(folder)
        network = in_numbers(made.network, torch.float32)
        torch.testing.assert_close(logits(network), expected, atol=0.05, rtol=0)
        unfolded = logits(network)
        fold(network, made.space)
        torch.testing.assert_close(logits(network), unfolded, atol=1e-4, rtol=0)
        assert {p.dtype for p in network.parameters()} == {torch.float32}
        assert network.state_dict().keys() == AutoModelForCausalLM.from_pretrained(folder).state_dict().keys()


def quantised_and_adapted(folder: Path) -> Adapted:
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    network = AutoModelForCausalLM.from_pretrained(folder, quantization_config=how, dtype=torch.float32)
    torch.manual_seed(0)
    return Adapted(network, put_into(network, family.get("llama"), lora_config()), {}).train_b()


def exported(result: Path, output: Path, *more: str) -> None:
    export.main([str(result), "--format", "merged", "--output", str(output), *more])


def own_memory_of(function: Callable[..., None], *arguments: Any) -> int:
    """The peak of the bytes that this process has for itself, beyond those before; mapped files do not count."""
    with Peak(torch.device("cpu")) as peak:
        function(*arguments)
        return peak.take()


def trained(result: Path, *more: object) -> PreTrainedModel:
    """The model of a checkpoint, as the program runs it."""
    return build(request_of(parse_command(command("test", "--load", result, *more)))).task.network


class TestTool:
    @pytest.mark.parametrize(
        ("name", "task"),
        some_slow(
            [("opt", "classification"), ("roberta", "classification"), ("gemma", "causal_language_modeling")],
            quick=[("gemma", "causal_language_modeling")],
        ),
    )
    def test_the_folder_loads_as_any(self, world: World, tmp_path: Path, name: str, task: str) -> None:
        base = model_folder(tmp_path / "base", name)
        lora = write_lora(tmp_path / "lora.toml", "q_proj", "w2", "o_proj")
        data = world.sst2 if task == "classification" else text_folder(tmp_path / "text")
        dataset = "sst2" if task == "classification" else "wikitext2"
        arguments = ("--load", base, "--pretrained", "--dataset-saved-path", data, "--lora-config", lora)
        sizes = ("--max-token-len", 16, "--max-steps", 3, "--learning-rate", 0.02, "--project-dir", tmp_path)
        assert run("train", f"{name}_lora", dataset, *arguments, *sizes, "--project", "run") == 0
        exported(tmp_path / "run", tmp_path / "merged")
        network, info = AUTO[task].from_pretrained(tmp_path / "merged", output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        ours = trained(tmp_path / "run" / "checkpoints" / "best.ckpt")
        torch.testing.assert_close(logits(network), logits(ours), atol=1e-4, rtol=0)
        plain = AUTO[task].from_pretrained(base, **({"num_labels": 2} if task == "classification" else {}))
        assert not torch.allclose(logits(network), logits(plain), atol=1e-2)
        assert network.config.use_cache
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
        assert tokenizer("a good film").input_ids == AutoTokenizer.from_pretrained(base)("a good film").input_ids
        if task == "classification":
            assert network.config.id2label == {0: "negative", 1: "positive"}

    @pytest.fixture(scope="class")
    def lora_run(self, world: World) -> Path:
        assert run(*world.training("--max-steps", 3, "--project", "to-merge")) == 0
        return world.runs / "to-merge"

    def test_in_shards(self, lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        exported(lora_run, tmp_path / "merged", "--max-shard-size", "20KB")
        files = sorted(path.name for path in (tmp_path / "merged").glob("*.safetensors"))
        assert len(files) > 2
        assert f"{len(files)} files" in capsys.readouterr().out
        index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
        assert sorted(set(index["weight_map"].values())) == files
        network = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
        ours = trained(lora_run / "checkpoints" / "best.ckpt")
        torch.testing.assert_close(logits(network), logits(ours), atol=1e-4, rtol=0)

    @pytest.mark.slow
    def test_the_memory_does_not_grow_with_the_base(self, world: World, tmp_path: Path) -> None:
        """A base of 100 MB, of which the largest matrix has 4 MB."""
        wide = {"hidden_size": 512, "ffn_dim": 2048, "word_embed_proj_dim": 512, "num_hidden_layers": 8}
        base = model_folder(tmp_path / "base", **wide)
        place = ("--project-dir", tmp_path, "--project", "run", "--limit-test-batches", 1, "--limit-val-batches", 1)
        assert run(*world.training("--load", base, "--max-steps", 1, *place)) == 0
        (peak,) = together(1, own_memory_of, exported, tmp_path / "run", tmp_path / "merged")
        assert (tmp_path / "merged" / "model.safetensors").stat().st_size > 95e6
        assert peak < 60e6

    @pytest.mark.parametrize("dtype", some_slow([torch.bfloat16, torch.float16], quick=[torch.bfloat16]))
    def test_a_16_bit_base_stays_one(
        self, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: torch.dtype
    ) -> None:
        base = model_folder(tmp_path / "base")
        AutoModelForCausalLM.from_pretrained(base, dtype=dtype).save_pretrained(base)
        place = ("--project-dir", tmp_path, "--project", "run")
        assert run(*world.training("--load", base, "--max-steps", 3, *place)) == 0
        capsys.readouterr()
        exported(tmp_path / "run", tmp_path / "merged")
        network = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", dtype="auto")
        assert {p.dtype for p in network.parameters()} == {dtype}
        said = re.search(r"by (\S+) at most; the largest is (\S+) \((\w+),", capsys.readouterr().out)
        assert said[3] == str(dtype).removeprefix("torch.")
        assert 0 < float(said[1]) <= 4 * torch.finfo(dtype).eps * float(said[2])
        exact = logits(trained(tmp_path / "run" / "checkpoints" / "best.ckpt"))
        off = (logits(network).float() - exact).abs().max() / exact.abs().max()
        assert off <= 8 * torch.finfo(dtype).eps

    def test_an_adapter_made_here(self, lora_run: Path, tmp_path: Path) -> None:
        exported(lora_run / "adapter", tmp_path / "merged")
        exported(lora_run, tmp_path / "same")
        one, other = (AutoModelForSequenceClassification.from_pretrained(tmp_path / n) for n in ("merged", "same"))
        assert torch.equal(logits(one), logits(other))

    def test_an_adapter_made_by_peft(self, world: World, tmp_path: Path) -> None:
        theirs = trained_by_peft(world.opt, tmp_path / "adapter")
        with pytest.raises(UserError, match="give --dataset"):
            exported(tmp_path / "adapter", tmp_path / "merged")
        with pytest.raises(UserError, match="is for SEQ_CLS, and wikitext2 for"):
            exported(tmp_path / "adapter", tmp_path / "merged", "--dataset", "wikitext2")
        exported(tmp_path / "adapter", tmp_path / "merged", "--dataset", "sst2")
        network = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(logits(network), logits(theirs), atol=1e-4, rtol=0)

    def test_without_shortcuts(self, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = world.training("--max-steps", 2, "--project-dir", tmp_path, "--project", "ags")[2:]
        assert run("train", "opt_lora_ags", *arguments) == 0
        with pytest.raises(UserError, match=r"shortcuts that are on.*--drop-shortcuts"):
            exported(tmp_path / "ags", tmp_path / "merged")
        exported(tmp_path / "ags", tmp_path / "merged", "--drop-shortcuts")
        assert "What dropping the shortcuts costs" in capsys.readouterr().out
        network = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
        ours = build(
            request_of(parse_command(command("test", "--load", tmp_path / "ags" / "checkpoints" / "best.ckpt")))
        )
        for low_rank in ours.task.space.of_kind("shortcut"):
            low_rank.switch(False)
        torch.testing.assert_close(logits(network), logits(ours.task.network), atol=1e-4, rtol=0)

    def test_a_quantised_base_is_refused(self, lora_run: Path, tmp_path: Path) -> None:
        """Without a GPU there is no such run: a checkpoint that says it is one will do."""
        checkpoint = torch.load(lora_run / "checkpoints" / "best.ckpt", weights_only=True)
        checkpoint["heterolora"]["options"]["quantize"] = "nf4"
        torch.save(checkpoint, tmp_path / "quantised.ckpt")
        with pytest.raises(UserError, match=r"is quantised \(nf4\).*--dequantize"):
            exported(tmp_path / "quantised.ckpt", tmp_path / "merged")
        export.main([str(tmp_path / "quantised.ckpt"), "--format", "peft", "--output", str(tmp_path / "adapter")])
        exported(tmp_path / "quantised.ckpt", tmp_path / "merged", "--quantize", "none")
        assert (tmp_path / "merged" / "model.safetensors").is_file()

    def test_trained_weights_of_a_plain_model_are_not_rounded(self, world: World, tmp_path: Path) -> None:
        base = AutoModelForCausalLM.from_pretrained(world.opt, dtype=torch.bfloat16)
        base.save_pretrained(tmp_path / "base")
        AutoTokenizer.from_pretrained(world.opt).save_pretrained(tmp_path / "base")
        arguments = ("--dataset-saved-path", world.sst2, "--project-dir", tmp_path, "--max-steps", 2)
        small = ("--learning-rate", 1e-5, "--project", "small")
        assert run("train", tmp_path / "base", "sst2", *arguments, *small) == 0
        exported(tmp_path / "small", tmp_path / "merged")
        network = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
        found, expected = network.state_dict(), weights(tmp_path / "small" / "checkpoints" / "best.ckpt")
        assert expected
        for name, tensor in expected.items():
            assert torch.equal(found[name.removeprefix("network.")], tensor), name
