"""What a run leaves for other tools: the adapter in PEFT's format, its card, and the result as configurations."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import toml
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from actions.command.parse import parse_command
from actions.request.elements import request_of
from actions.training.experiment import Experiment, build
from heterolora.common.errors import UserError
from heterolora.elements import config
from heterolora.elements.element import PROJECTIONS
from model import family
from model.checkpoint import BaseSource, ModelRecord
from model.peft_format.adapter import read_adapter
from model.peft_format.fit import config_of_adapter, put_into
from model.peft_format.writing import write_adapter
from tests.adapted import CASES, VARIANTS, Adapted, adapted, lora_config, shortcut_config
from tests.mistakes import refusal
from tests.test_bad_input import complaint
from tests.tiny import tiny_batch, tiny_network
from tests.world import ROOT, World, command, metrics_of, model_folder, run, write_lora, write_shortcuts
from tools import export, realloc_lora_rank

RECORD = ModelRecord("train", {}, BaseSource("somewhere"), base_sha256="0")


def mixed(variant: str, task: str, **overrides: object) -> Adapted:
    """Trained LoRA of different ranks, alphas and scalings, with some elements off, and a trained head."""
    document = {
        "granularity": "layer",
        "default": {"r": 3, "lora_alpha": 6},
        "model_layer_0": {
            "q_proj": {"r": 5, "lora_alpha": 1, "lora_dropout": 0.1},
            "w1": {"use_rslora": True},
            "w2": {"r": 1},
        },
    }
    made = adapted(variant, task, config.parse_config(document, "lora"), **overrides).train_b()
    for low_rank in made.space:
        low_rank.switch(low_rank.element.key not in ("layer_0.o_proj", "layer_1.q_proj", "layer_1.w2"))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in made.network.named_parameters():
            if name.startswith(("score", "classifier")):
                parameter.normal_(std=0.2, generator=generator)
    return made


def logits(network: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(**tiny_batch()).logits


class TestInPeft:
    @pytest.mark.parametrize(("variant", "task"), CASES)
    @pytest.mark.filterwarnings("error::UserWarning")
    def test_the_same_logits(self, tmp_path: Path, variant: str, task: str) -> None:
        ours = mixed(variant, task)
        write_adapter(tmp_path, ours.network, ours.space, task, RECORD)
        name, keys = VARIANTS[variant]
        theirs = peft.PeftModel.from_pretrained(tiny_network(name, task, **keys), tmp_path)
        torch.testing.assert_close(logits(theirs), logits(ours.network), atol=1e-5, rtol=0)
        targeted = {
            path.removeprefix("base_model.model.")
            for path, module in theirs.named_modules()
            if isinstance(module, peft.tuners.lora.LoraLayer)
        }
        assert targeted == {low_rank.element.module for low_rank in ours.space if low_rank.enabled}

    def test_more_modules_than_peft_lists(self, tmp_path: Path) -> None:
        """From twenty names on, PEFT shortens the list to ends of names."""
        ours = mixed("opt-pre", "classification", num_hidden_layers=5)
        write_adapter(tmp_path, ours.network, ours.space, "classification", RECORD)
        theirs = peft.PeftModel.from_pretrained(tiny_network("opt", num_hidden_layers=5), tmp_path)
        torch.testing.assert_close(logits(theirs), logits(ours.network), atol=1e-5, rtol=0)

    def test_its_configuration(self, tmp_path: Path) -> None:
        ours = mixed("roberta", "classification")
        write_adapter(tmp_path, ours.network, ours.space, "classification", RECORD)
        said = json.loads((tmp_path / "adapter_config.json").read_text())
        block = "roberta.encoder.layer.0."
        assert said["base_model_name_or_path"] == "somewhere"
        assert (said["task_type"], said["modules_to_save"]) == ("SEQ_CLS", ["classifier"])
        assert (said["r"], said["lora_dropout"], said["use_rslora"]) == (5, 0.1, False)
        ranks = {pattern.replace("\\", ""): rank for pattern, rank in said["rank_pattern"].items()}
        assert ranks[f"{block}output.dense"] == 1
        assert f"{block}attention.self.query" not in ranks  # it has what `r` says
        alphas = {pattern.replace("\\", ""): alpha for pattern, alpha in said["alpha_pattern"].items()}
        assert alphas[f"{block}attention.self.query"] == 1
        # rsLoRA scales by 6 / sqrt(3); divided by r = 3, that takes an alpha of 6 · sqrt(3), the largest here.
        assert said["lora_alpha"] == pytest.approx(6 * 3**0.5)

    def test_a_uniform_adapter_has_no_patterns(self, tmp_path: Path) -> None:
        ours = adapted("gemma", lora=lora_config(use_rslora=True))
        write_adapter(tmp_path, ours.network, ours.space, "classification", RECORD)
        said = json.loads((tmp_path / "adapter_config.json").read_text())
        assert said["use_rslora"] is True
        assert (said["r"], said["lora_alpha"], said["rank_pattern"], said["alpha_pattern"]) == (3, 6, {}, {})


class TestReadAgain:
    @pytest.mark.parametrize("variant", ["opt-post", "roberta", "gemma"])
    def test_lora_and_shortcuts(self, tmp_path: Path, variant: str) -> None:
        ours = adapted(variant, lora=lora_config(), shortcut=shortcut_config()).train_b()
        write_adapter(tmp_path, ours.network, ours.space, "classification", RECORD, shortcut_config())
        self.check(tmp_path, variant, ours)

    def test_shortcuts_alone(self, tmp_path: Path) -> None:
        """PEFT refuses an adapter that names no module; here it loads."""
        ours = adapted("opt-pre", lora=lora_config(), shortcut=shortcut_config(renormalize=True)).train_b()
        for low_rank in ours.space.of_kind("lora"):
            low_rank.switch(False)
        write_adapter(tmp_path, ours.network, ours.space, "classification", RECORD, shortcut_config(renormalize=True))
        self.check(tmp_path, "opt-pre", ours)
        with pytest.raises(ValueError, match="No modules were targeted"):
            peft.PeftModel.from_pretrained(tiny_network("opt"), tmp_path)

    def check(self, folder: Path, variant: str, ours: Adapted) -> None:
        adapter = read_adapter(folder)
        lora = config_of_adapter(adapter, family.get(VARIANTS[variant][0]))
        again = adapted(variant, lora=lora, shortcut=adapter.shortcut)
        assert put_into(adapter, again.network, again.space)
        assert torch.equal(logits(again.network), logits(ours.network))


def loaded(*arguments: object) -> Experiment:
    return build(request_of(parse_command(command("test", *arguments))))


@pytest.fixture(scope="module")
def plain(world: World) -> Path:
    """A run with LoRA alone."""
    assert run(*world.training("--max-epochs", 1, "--project", "for-peft")) == 0
    return world.runs / "for-peft"


@pytest.fixture(scope="module")
def dynamic(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dynamic run with LoRA and shortcuts of which half are on."""
    lora = write_lora(tmp_path_factory.mktemp("lora") / "lora.toml", "q_proj", "w1", "w2", lora_dropout=0.1)
    shortcut = write_shortcuts(lora.with_name("shortcut.toml"))
    arguments = world.training("--lora-config", lora, "--shortcut-config", shortcut, "--project", "dynamic")[3:]
    scoring = ("--turn-on-percentile", 0.5, "--dyrealloc-ags-mode", "separated", "--imp-limit-test-batches", 1)
    assert run("train-dyrealloc", "opt_lora_ags", "sst2", *arguments, *scoring, "--max-epochs", 1) == 0
    return world.runs / "dynamic"


class TestRuns:
    def test_the_card_loads_it_in_peft(self, world: World, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (code,) = re.findall(r"```python\n(.*?)```", (plain / "adapter" / "README.md").read_text(), re.DOTALL)
        monkeypatch.chdir(plain / "adapter")
        names: dict[str, object] = {}
        exec(code, names)
        ours = loaded("--load", plain / "checkpoints" / "best.ckpt")
        torch.testing.assert_close(logits(names["model"]), logits(ours.task.network), atol=1e-5, rtol=0)
        assert names["model"].config.id2label == {0: "negative", 1: "positive"}

    def test_the_card_says_what_it_is(self, world: World, plain: Path, dynamic: Path) -> None:
        text = (plain / "adapter" / "README.md").read_text()
        accuracy = f"{metrics_of(plain)['validation']['accuracy']:.4f}"
        for words in ("sst2", "`lora.toml`", "4 of 12 elements on", "rank 16 in all", "1,024 parameters", accuracy):
            assert words in text
        assert "shortcut" not in text
        assert f'base_model: "{world.opt}"' in text.split("---")[1]
        assert AutoTokenizer.from_pretrained(plain / "adapter").get_vocab()
        text = (dynamic / "adapter" / "README.md").read_text()
        for words in ("3 of 12 elements on", "4 of 7 elements on", "gain", "has shortcuts that are on", "0.5"):
            assert words in text
        for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
            assert (dynamic / "adapter" / picture).is_file()
        assert "allocation.png" in text
        assert "reallocation_frequency.png" in text

    def test_the_card_of_a_run_that_normalises_again(self, world: World, tmp_path: Path) -> None:
        """`renormalize` without any shortcut that is on: PEFT cannot hold that either."""
        shortcuts = write_shortcuts(tmp_path / "shortcut.toml", disable_projector="true")
        shortcuts.write_text("renormalize = true\n" + shortcuts.read_text())
        arguments = world.training("--shortcut-config", shortcuts, "--max-steps", 1, "--project-dir", tmp_path)[2:]
        assert run("train", "opt_lora_ags", *arguments, "--project", "again") == 0
        text = (tmp_path / "again" / "adapter" / "README.md").read_text()
        assert "normalise once more" in text
        assert "shortcuts that are on" not in text

    def test_the_card_of_a_static_run_says_what_chose(self, world: World, tmp_path: Path) -> None:
        """From scores to the card: heuristic and policy, the grid in the usual order, empty blocks drawn too."""
        where = ("--project-dir", tmp_path, "--load", world.opt, "--pretrained", "--dataset-saved-path", world.sst2)
        assert run("imp-test", "opt_lora", "sst2", *where, "--project", "scored", "--imp-limit-test-batches", 1) == 0
        found = tmp_path / "scored" / "scores.toml"
        chosen = tmp_path / "chosen.toml"
        realloc_lora_rank.main([str(found), "--total-rank", "8", "--rank", "4", "--output", str(chosen)])
        assert (
            run("train", "opt_lora", "sst2", *where, "--lora-config", chosen, "--project", "static", "--max-steps", 1)
            == 0
        )
        text = (tmp_path / "static" / "adapter" / "README.md").read_text()
        assert "| `chosen.toml`: topk by grad_norm of opt_lora on sst2 " in text
        assert "2 of 12 elements on, rank 8 in all" in text
        head = next(line for line in text.splitlines() if line.startswith("| block |"))
        names = [name.strip() for name in head.split("|")[2:-1]]
        assert names == sorted(names, key=[*PROJECTIONS].index)
        picture = (tmp_path / "static" / "adapter" / "allocation.png").read_bytes()
        assert picture.startswith(b"\x89PNG")

    @pytest.mark.parametrize("fixture", ["plain", "dynamic"])
    def test_its_own_folder_is_enough(self, world: World, request, tmp_path: Path, fixture: str) -> None:
        """Model, data and base are in the adapter; shortcuts too."""
        folder = request.getfixturevalue(fixture)
        place = ("--project-dir", tmp_path, "--project", "tested", "--batch-size", 4)
        assert run("test", "--load", folder / "adapter", *place) == 0
        assert metrics_of(tmp_path / "tested") == metrics_of(folder)

    def test_the_folder_of_a_run_is_its_checkpoint(self, capsys, plain: Path, tmp_path: Path) -> None:
        """The best; the last to resume, and if there is no best one yet."""
        capsys.readouterr()
        assert run("test", "--load", plain, "--project-dir", tmp_path, "--project", "tested", "--batch-size", 4) == 0
        assert metrics_of(tmp_path / "tested") == metrics_of(plain)
        assert "training:" not in capsys.readouterr().out
        resumed = request_of(parse_command(command("train", "--resume-training", "--load", plain)))
        assert resumed.checkpoint.path == plain / "checkpoints" / "last.ckpt"
        unfinished = shutil.copytree(plain, tmp_path / "unfinished")
        (unfinished / "checkpoints" / "best.ckpt").unlink()
        request = request_of(parse_command(command("test", "--load", unfinished)))
        assert request.checkpoint.path == unfinished / "checkpoints" / "last.ckpt"
        assert f"{unfinished} has no best.ckpt yet: its last.ckpt is used" in request.notes
        shutil.rmtree(unfinished / "checkpoints")  # as in a run of imp-test
        with pytest.raises(UserError, match=r"has no checkpoints/best.ckpt; give a run of train"):
            request_of(parse_command(command("test", "--load", unfinished)))

    def test_the_result_as_configurations(self, world: World, dynamic: Path) -> None:
        arguments = world.training("--model", "opt_lora_ags", "--lora-config", dynamic / "lora.toml")[3:]
        options = ("opt_lora_ags", "sst2", *arguments, "--shortcut-config", dynamic / "shortcut.toml")
        made = build(request_of(parse_command(command("train", *options))))
        left = loaded("--load", dynamic / "checkpoints" / "best.ckpt")
        on = {e.element.key: (e.element.rank, e.scaling) for e in left.task.space if e.enabled}
        assert {e.element.key: (e.element.rank, e.scaling) for e in made.task.space} == on
        assert len(on) == 7
        written = toml.load(dynamic / "lora.toml")
        tables = [table for name in ("model_layer_0", "model_layer_1") for table in written[name].values()]
        assert [table["disable_adapter"] for table in tables].count(False) == 3
        assert [table["r"] > 0 for table in tables].count(True) == 6, "the places that can be on"
        assert len(tables) == 12, "all places of the model"

    def test_other_trainers_get_no_shortcuts(self, capsys, dynamic: Path, tmp_path: Path) -> None:
        realloc_lora_rank.main([str(dynamic), "--format", "peft", "--output", str(tmp_path / "lora.json")])
        said = capsys.readouterr().out
        assert "7 of 19 places on, in every block" in said
        assert "PEFT has no shortcuts: the file leaves them out" in said
        names = json.loads((tmp_path / "lora.json").read_text())["target_modules"]
        assert sum(1 if "." in name else 2 for name in names) == 3  # a short name is a place in both blocks

    def test_its_base_is_known_by_its_weights(self, capfd, plain: Path, tmp_path: Path) -> None:
        other = model_folder(tmp_path / "other", seed=1)
        line = complaint(capfd, *command("test", "--load", plain / "adapter", "--backbone-model", other))
        assert "another base model" in line

    def test_a_model_with_shortcuts_needs_them(self, capfd, dynamic: Path) -> None:
        line = complaint(capfd, *command("test", "--load", dynamic / "adapter", "--model", "opt_lora"))
        assert "has shortcuts" in line
        assert "opt_lora_ags" in line

    def test_a_random_base_is_said_and_found_again(self, world: World, tmp_path: Path) -> None:
        arguments = [part for part in world.training("--max-steps", 2, "--seed", 3) if part != "--pretrained"]
        arguments.append("--random-init")
        assert run(*arguments, "--project-dir", tmp_path, "--project", "random") == 0
        assert "random, drawn from seed 3" in (tmp_path / "random" / "adapter" / "README.md").read_text()
        adapter = tmp_path / "random" / "adapter"
        place = ("--project-dir", tmp_path, "--project", "tested", "--batch-size", 4)
        assert run("test", "--load", adapter, *place) == 0
        assert metrics_of(tmp_path / "tested") == metrics_of(tmp_path / "random")


class TestTool:
    def test_a_checkpoint_as_an_adapter(self, plain: Path, tmp_path: Path) -> None:
        output = tmp_path / "made" / "here"
        export.main([str(plain), "--format", "peft", "--output", str(output)])
        for name in ("adapter_config.json", "README.md"):
            assert (output / name).read_text() == (plain / "adapter" / name).read_text()
        one, other = (read_adapter(folder) for folder in (output, plain / "adapter"))
        assert one.record == other.record
        assert all(torch.equal(one.lora[module].B, weights.B) for module, weights in other.lora.items())
        assert all(torch.equal(one.head[name], values) for name, values in other.head.items())
        assert list(output.parent.iterdir()) == [output]

    def test_dropping_shortcuts_shows_the_cost(self, world: World, dynamic: Path, tmp_path: Path, capsys) -> None:
        arguments = [str(dynamic), "--format", "peft", "--output", str(tmp_path / "adapter")]
        with pytest.raises(UserError, match=r"has shortcuts that are on.*--drop-shortcuts"):
            export.main(arguments)
        capsys.readouterr()
        export.main([*arguments, "--drop-shortcuts"])
        line = next(line for line in capsys.readouterr().out.splitlines() if "accuracy" in line)
        before, after, change = (float(number) for number in re.findall(r"[-+]?\d+\.\d+", line))
        assert before == pytest.approx(metrics_of(dynamic)["validation"]["accuracy"], abs=1e-4)
        assert change == pytest.approx(after - before, abs=2e-4)
        assert run("test", "--load", tmp_path / "adapter", "--project-dir", tmp_path, "--project", "lora") == 0
        assert metrics_of(tmp_path / "lora")["validation"]["accuracy"] == pytest.approx(after, abs=1e-4)
        assert not (tmp_path / "adapter" / "shortcuts.safetensors").exists()
        self.check_in_peft(world.opt, tmp_path / "adapter")

    def test_shortcuts_that_an_adapter_does_not_have_are_none(self, plain: Path, world: World, tmp_path: Path) -> None:
        """`--model opt_lora_ags` adds untrained shortcuts to it, whose sum is 0."""
        for model in ("opt_lora", "opt_lora_ags"):
            more = ("--model", model, "--output", str(tmp_path / model))
            export.main([str(plain / "adapter"), "--format", "merged", *more])
        one, other = ((tmp_path / model / "model.safetensors").read_bytes() for model in ("opt_lora", "opt_lora_ags"))
        assert one == other

    def test_the_card_has_metrics_of_its_own_weights_alone(self, world: World, dynamic: Path, tmp_path: Path) -> None:
        """Those of a run are with its shortcuts. A run with --measured last measures and exports the last ones."""
        accuracy = f"{metrics_of(dynamic)['validation']['accuracy']:.4f}"
        assert accuracy in (dynamic / "adapter" / "README.md").read_text()
        export.main([str(dynamic), "--format", "peft", "--output", str(tmp_path / "dropped"), "--drop-shortcuts"])
        assert accuracy not in (tmp_path / "dropped" / "README.md").read_text()
        options = ("--max-epochs", 2, "--measured", "last", "--project-dir", tmp_path, "--project", "last")
        assert run(*world.training(*options)) == 0
        export.main([str(tmp_path / "last"), "--format", "peft", "--output", str(tmp_path / "exported")])
        texts = [(tmp_path / name / "README.md").read_text() for name in ("last/adapter", "exported")]
        assert texts[0] == texts[1]
        assert (
            request_of(parse_command(command("test", "--load", tmp_path / "last"))).checkpoint.path.name == "last.ckpt"
        )

    def check_in_peft(self, base: Path, adapter: Path) -> None:
        theirs = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, dtype=torch.float32)
        theirs: PreTrainedModel = peft.PeftModel.from_pretrained(theirs, adapter)
        ours = loaded("--load", adapter)
        torch.testing.assert_close(logits(theirs), logits(ours.task.network), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("form", ["peft", "merged"])
    def test_what_is_refused(self, plain: Path, world: World, tmp_path: Path, form: str) -> None:
        def refused(result: Path, *more: str, output: Path = tmp_path / "output") -> str:
            line = refusal(export.main, [str(result), "--format", form, "--output", str(output), *more])
            assert not (tmp_path / "output").exists()
            return line

        assert "is there already" in refused(plain, output=plain / "checkpoints")
        assert "is there already" in refused(plain, output=plain / "config.toml")
        assert "nowhere is not there" in refused(tmp_path / "nowhere")
        assert "--max-shard-size '5 boxes' is no size" in refused(plain, "--max-shard-size", "5 boxes")
        assert "has no checkpoints/best.ckpt" in refused(tmp_path)
        assert "neither a run nor a checkpoint" in refused(world.lora)
        if form == "peft":
            assert "is a PEFT adapter already" in refused(plain / "adapter")
        broken = tmp_path / "broken.ckpt"
        broken.write_bytes((plain / "checkpoints" / "best.ckpt").read_bytes()[:3000])
        assert "broken.ckpt' is damaged" in refused(broken)
        torch.save({"state_dict": {}}, broken)
        assert "not a checkpoint of this program" in refused(broken)
        assert "--dropshortcuts" in refused(plain, "--dropshortcuts")

    def test_a_plain_model_has_nothing_for_peft(self, world: World, tmp_path: Path) -> None:
        arguments = ("--dataset-saved-path", world.sst2, "--project-dir", tmp_path, "--max-steps", 1)
        assert run("train", world.opt, "sst2", "--pretrained", *arguments, "--project", "whole") == 0
        assert not (tmp_path / "whole" / "adapter").exists()
        with pytest.raises(UserError, match="plain model"):
            export.main([str(tmp_path / "whole"), "--format", "peft", "--output", str(tmp_path / "adapter")])

    @pytest.mark.slow
    def test_as_a_script(self, plain: Path, tmp_path: Path) -> None:
        script = [sys.executable, str(ROOT / "tools" / "export.py"), str(plain), "--format", "peft", "--output"]
        wrong = subprocess.run([*script, str(plain)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
        assert wrong.stderr.startswith("error: --output")
