"""`--load-type peft`: adapters that the peft package trained, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import peft
import pytest
import toml
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from actions.command.parse import parse_command
from actions.request.elements import request_of
from actions.training.experiment import Experiment, build
from tests.test_bad_input import complaint
from tests.tiny import tiny_batch
from tests.world import World, command, metrics_of, model_folder, run, text_folder, weights, write_lora


def trained_by_peft(base: Path, folder: Path, task: str = "SEQ_CLS", **settings: object) -> peft.PeftModel:
    """An adapter that peft trained for a few steps on two rows, and saved in `folder`."""
    auto = AutoModelForSequenceClassification if task == "SEQ_CLS" else AutoModelForCausalLM
    labels = {"num_labels": 2} if task == "SEQ_CLS" else {}
    torch.manual_seed(0)
    network = auto.from_pretrained(base, dtype=torch.float32, **labels)
    config = peft.LoraConfig(task_type=task, **{"r": 4, "target_modules": ["q_proj", "v_proj"], **settings})
    model = peft.get_peft_model(network, config)
    batch = tiny_batch(rows=2, padding=None)
    target = torch.tensor([0, 1]) if task == "SEQ_CLS" else batch["input_ids"]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(**batch, labels=target).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return model.eval()


def loaded(*arguments: object) -> Experiment:
    return build(request_of(parse_command(command("test", *arguments))))


def on_sst2(world: World) -> tuple[object, ...]:
    return ("--dataset", "sst2", "--dataset-saved-path", world.sst2)


def assert_same(ours: Experiment, theirs: peft.PeftModel) -> None:
    """Same logits, and not because the adapter does nothing."""
    expected = logits(theirs)
    with theirs.disable_adapter():
        assert not torch.allclose(logits(theirs), expected, atol=1e-2)
    torch.testing.assert_close(logits(ours.task.network), expected, atol=1e-5, rtol=0)


def logits(network: PreTrainedModel | peft.PeftModel) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(**tiny_batch(padding=None)).logits


class TestSameFunction:
    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"use_rslora": True, "lora_alpha": 5},
            {"target_modules": r".*layers\.1\..*(q_proj|fc1)"},
            {"target_modules": ["fc1", "fc2", "out_proj"], "layers_to_transform": [1]},
            {"target_modules": ["fc1"], "layers_to_transform": 0, "layers_pattern": "layers"},
            {"target_modules": "all-linear", "exclude_modules": ["k_proj"]},
            {"rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 7}, "lora_alpha": 3},
            {"alpha_pattern": {"layers.0.self_attn.q_proj": 1, "q_proj": 9}, "use_rslora": True},
            {"init_lora_weights": "gaussian", "lora_dropout": 0.3},
        ],
        ids=lambda settings: ",".join(settings) or "default",
    )
    def test_every_way_to_say_where_and_how(self, world: World, tmp_path: Path, settings: dict) -> None:
        theirs = trained_by_peft(world.opt, tmp_path, **settings)
        ours = loaded("--load", tmp_path, *on_sst2(world))
        assert_same(ours, theirs)
        assert not ours.untrained_head
        assert {element.settings.dropout for element in ours.task.space.elements} == {settings.get("lora_dropout", 0.0)}

    @pytest.mark.parametrize("family", ["roberta", "gemma"])
    def test_other_families_are_told_from_the_base(self, world: World, tmp_path: Path, family: str) -> None:
        base = model_folder(tmp_path / "base", family)
        targets = {"roberta": ["query", "output.dense"], "gemma": ["q_proj", "gate_proj"]}[family]
        theirs = trained_by_peft(base, tmp_path / "adapter", target_modules=targets)
        ours = loaded("--load", tmp_path / "adapter", *on_sst2(world))
        assert ours.options.model == f"{family}_lora"
        assert_same(ours, theirs)

    def test_language_modelling(self, world: World, tmp_path: Path) -> None:
        theirs = trained_by_peft(world.opt, tmp_path / "adapter", "CAUSAL_LM")
        data = ("--dataset", "wikitext2", "--dataset-saved-path", text_folder(tmp_path / "text"))
        assert_same(loaded("--load", tmp_path / "adapter", *data, "--max-token-len", 16), theirs)

    def test_by_its_hub_name(self, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Offline, from the folder in which huggingface_hub keeps what it has fetched."""
        kept, commit = tmp_path / "models--someone--sentiment", "0123456789abcdef0123456789abcdef01234567"
        theirs = trained_by_peft(world.opt, kept / "snapshots" / commit)
        (kept / "refs").mkdir()
        (kept / "refs" / "main").write_text(commit)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        assert_same(loaded("--load", "someone/sentiment", "--load-type", "peft", *on_sst2(world)), theirs)

    def test_half_precision_files(self, world: World, tmp_path: Path) -> None:
        """Adapters are often saved in 16 bits; here they train in 32."""
        theirs = trained_by_peft(world.opt, tmp_path).to(torch.bfloat16)
        theirs.save_pretrained(tmp_path)
        ours = loaded("--load", tmp_path, *on_sst2(world))
        assert {p.dtype for p in ours.task.parameters()} == {torch.float32}
        torch.testing.assert_close(logits(ours.task.network), logits(theirs).float(), atol=0.05, rtol=0)

    def test_torch_files(self, world: World, tmp_path: Path) -> None:
        theirs = trained_by_peft(world.opt, tmp_path)
        torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
        (tmp_path / "adapter_model.safetensors").unlink()
        assert_same(loaded("--load", tmp_path, *on_sst2(world)), theirs)

    def test_the_base_may_have_moved(self, world: World, tmp_path: Path) -> None:
        shutil.copytree(world.opt, tmp_path / "old")
        theirs = trained_by_peft(tmp_path / "old", tmp_path / "adapter")
        shutil.move(tmp_path / "old", tmp_path / "new")
        moved = ("--backbone-model", tmp_path / "new")
        assert_same(loaded("--load", tmp_path / "adapter", *moved, *on_sst2(world)), theirs)


@pytest.fixture(scope="module")
def adapter(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    trained_by_peft(world.opt, folder)
    return folder


class TestActions:
    def test_training_starts_from_it(self, world: World, adapter: Path, tmp_path: Path) -> None:
        arguments = ("--load", adapter, "--load-type", "peft", *on_sst2(world), "--project-dir", tmp_path)
        steps = ("--max-steps", 1, "--learning-rate", 1e-9, "--project", "run")
        assert run("train", *arguments, *steps) == 0
        theirs = load_file(adapter / "adapter_model.safetensors")
        state = weights(tmp_path / "run" / "checkpoints" / "last.ckpt")
        assert len(state) == len(theirs)
        for name, matrix in theirs.items():
            ours = name.replace("base_model.model.", "network.").replace(".weight", "").replace("lora_", "low_rank.")
            ours += ".weight" if "score" in name else ""
            assert torch.allclose(state[ours], matrix, atol=1e-6)
        # A checkpoint of this run needs the adapter no more.
        assert run("test", "--load", tmp_path / "run" / "checkpoints" / "best.ckpt", "--project-dir", tmp_path) == 0

    def test_its_figures(self, world: World, adapter: Path, tmp_path: Path) -> None:
        """The accuracy of peft's own model, computed here."""
        assert run("test", "--load", adapter, *on_sst2(world), "--project-dir", tmp_path, "--project", "tested") == 0
        theirs = peft.AutoPeftModelForSequenceClassification.from_pretrained(adapter, num_labels=2, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(world.opt)
        theirs.config.pad_token_id = tokenizer.pad_token_id
        rows = [json.loads(line) for line in (world.sst2 / "validation.jsonl").read_text().splitlines()]
        said = [int(theirs.eval()(**tokenizer(row["sentence"], return_tensors="pt")).logits.argmax()) for row in rows]
        right = sum(label == row["label"] for label, row in zip(said, rows, strict=True))
        assert metrics_of(tmp_path / "tested")["validation"]["accuracy"] == pytest.approx(right / len(rows))

    def test_scoring_knows_its_elements(self, world: World, adapter: Path, tmp_path: Path) -> None:
        arguments = ("--load", adapter, *on_sst2(world), "--project-dir", tmp_path, "--project", "scored")
        assert run("imp-test", *arguments, "--imp-limit-test-batches", 1) == 0
        scored = toml.load(tmp_path / "scored" / "scores.toml")
        assert set(scored["layer_1"]) == {"q_proj", "v_proj"}

    def test_shortcuts_may_join(self, world: World, adapter: Path) -> None:
        plain = loaded("--load", adapter, *on_sst2(world))
        more = loaded("--load", adapter, "--model", "opt_lora_ags", *on_sst2(world))
        assert more.task.space.of_kind("shortcut")
        torch.testing.assert_close(logits(more.task.network), logits(plain.task.network))  # new shortcuts are zero

    def test_a_configuration_beside_it_says_what_peft_cannot(self, world: World, adapter: Path, tmp_path: Path) -> None:
        given = write_lora(tmp_path / "lora.toml", r=4, lora_alpha=8, lora_dropout=0.25)
        same = loaded("--load", adapter, *on_sst2(world), "--lora-config", given)
        assert {low_rank.element.settings.dropout for low_rank in same.task.space} == {0.25}


class TestRefusals:
    """In one line, from the command line."""

    @pytest.fixture
    def adapter(self, adapter: Path, tmp_path: Path) -> Path:
        return shutil.copytree(adapter, tmp_path / "adapter")

    def refused(self, capfd, world: World, adapter: Path, *more: object) -> str:
        return complaint(capfd, *command("test", "--load", adapter, "--load-type", "peft", *on_sst2(world), *more))

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"peft_type": "IA3"}, "type IA3"),
            ({"use_dora": True}, "DoRA"),
            ({"use_qalora": True}, "QALoRA"),
            ({"lora_bias": True}, "lora_bias"),
            ({"bias": "lora_only"}, "bias = 'lora_only'"),
            ({"fan_in_fan_out": True}, "fan_in_fan_out"),
            ({"trainable_token_indices": [3]}, "trained token embeddings"),
            ({"target_parameters": ["experts"]}, "target_parameters"),
            ({"layer_replication": [[0, 2]]}, "replicated layers"),
            ({"alora_invocation_tokens": [1]}, "aLoRA"),
            ({"init_lora_weights": "pissa_niter_4"}, "PiSSA changes the base"),
            ({"init_lora_weights": "olora"}, "OLoRA changes the base"),
            ({"init_lora_weights": "corda"}, "CorDA changes the base"),
            ({"init_lora_weights": "loftq"}, "LoftQ changes the base"),
            ({"init_lora_weights": "lora_ga"}, "LoRA-GA changes the base"),
            ({"init_lora_weights": "mica"}, "'mica' is a variant"),
            ({"use_something_new": {"k": 1}}, "use_something_new"),
            ({"task_type": "TOKEN_CLS"}, "TOKEN_CLS"),
            ({"r": 0}, "r is 0"),
            ({"r": 5}, "has rank 4, but adapter_config.json says 5"),
            ({"lora_alpha": "8"}, "lora_alpha is '8'"),
            ({"rank_pattern": {"(": 4}}, "rank_pattern"),
            ({"target_modules": ["q_proj"]}, "does not name"),
            ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "k_proj, which adapter_config.json names"),
            ({"base_model_name_or_path": None}, "names no base model"),
            ({"base_model_name_or_path": "nowhere/at-all"}, "nowhere/at-all"),
            ({"revision": "v2"}, "revision 'v2'"),
        ],
        ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
    )
    def test_by_name(self, capfd, world: World, adapter: Path, change: dict, named: str) -> None:
        config = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps({**config, **change}))
        assert named in self.refused(capfd, world, adapter)

    def test_dora_that_peft_made(self, capfd, world: World, tmp_path: Path) -> None:
        trained_by_peft(world.opt, tmp_path / "dora", use_dora=True)
        assert "DoRA" in self.refused(capfd, world, tmp_path / "dora")

    @pytest.mark.parametrize(
        ("extra", "named"),
        [
            ("model.decoder.embed_tokens.weight", "neither LoRA nor a head"),
            ("model.decoder.embed_tokens.lora_embedding_A", "only lora_A"),
            ("model.decoder.layers.0.fc1.lora_A.weight", "only lora_A"),
            ("model.decoder.layers.0.self_attn.q_proj.lora_magnitude_vector.weight", "DoRA"),
        ],
    )
    def test_weights_that_are_no_lora(self, capfd, world: World, adapter: Path, extra: str, named: str) -> None:
        path = adapter / "adapter_model.safetensors"
        save_file({**load_file(path), f"base_model.model.{extra}": torch.zeros(4, 32)}, path)
        assert named in self.refused(capfd, world, adapter)

    def test_lora_where_no_element_can_sit(self, capfd, world: World, tmp_path: Path) -> None:
        base = model_folder(tmp_path / "base", do_layer_norm_before=False, word_embed_proj_dim=16)
        trained_by_peft(base, tmp_path / "adapter", target_modules=["project_out", "q_proj"])
        line = self.refused(capfd, world, tmp_path / "adapter")
        assert "LoRA on model.decoder.project_out" in line
        assert "fc1" in line.split(";")[1]

    def test_another_base(self, capfd, world: World, adapter: Path, tmp_path: Path) -> None:
        narrow = model_folder(tmp_path / "narrow", hidden_size=16, word_embed_proj_dim=16)
        line = self.refused(capfd, world, adapter, "--backbone-model", narrow)
        assert "another base" in line
        assert "32 to 32 wide" in line
        assert "16 to 16" in line
        shallow = model_folder(tmp_path / "shallow", num_hidden_layers=1)
        line = self.refused(capfd, world, adapter, "--backbone-model", shallow)
        assert "no linear layer model.decoder.layers.1" in line
        gemma = model_folder(tmp_path / "gemma", "gemma")
        assert "has LoRA on" in self.refused(capfd, world, adapter, "--backbone-model", gemma)
        line = self.refused(capfd, world, adapter, "--backbone-model", gemma, "--model", "opt_lora")
        assert "does not fit a model of type 'gemma'; give --model gemma_lora" in line

    def test_a_head_of_another_width(self, capfd, world: World, adapter: Path) -> None:
        line = complaint(capfd, *command("test", "--load", adapter, "--dataset", "mnli"))
        assert "score.weight is (2, 32)" in line
        assert "(3, 32)" in line

    def test_files_that_are_cut_short_or_foreign(self, capfd, world: World, adapter: Path) -> None:
        path = adapter / "adapter_model.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        assert "adapter_model.safetensors' is damaged" in self.refused(capfd, world, adapter)
        save_file({"model.decoder.layers.0.fc1.weight": torch.zeros(2, 2)}, path)
        assert "expected a PEFT adapter" in self.refused(capfd, world, adapter)
        save_file({}, path)
        assert "holds no LoRA" in self.refused(capfd, world, adapter)
        path.unlink()
        assert "adapter_model.safetensors is not there" in self.refused(capfd, world, adapter)
        (adapter / "adapter_config.json").write_text("{")
        assert "is not valid JSON" in self.refused(capfd, world, adapter)
        (adapter / "adapter_config.json").write_text("{}")
        assert "no peft_type" in self.refused(capfd, world, adapter)

    def test_no_adapter_at_all(self, capfd, world: World, tmp_path: Path) -> None:
        assert "adapter_config.json" in self.refused(capfd, world, tmp_path)
        assert "is not a folder" in self.refused(capfd, world, tmp_path / "nowhere")
        assert "hub gives no adapter" in self.refused(capfd, world, Path("nowhere/at-all"))
        assert "has no adapter" in complaint(capfd, "test", "--load-type", "peft")

    def test_another_model_or_configuration(self, capfd, world: World, adapter: Path, tmp_path: Path) -> None:
        assert "plain model" in self.refused(capfd, world, adapter, "--model", world.opt)
        other = write_lora(tmp_path / "lora.toml", r=4, lora_alpha=16)
        assert "differs" in self.refused(capfd, world, adapter, "--lora-config", other)
        assert "no checkpoint" in self.refused_training(capfd, world, adapter)

    def refused_training(self, capfd, world: World, adapter: Path) -> str:
        return complaint(capfd, *command("train", "--load", adapter, "--resume-training", *on_sst2(world)))
