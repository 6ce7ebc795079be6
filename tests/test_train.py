"""`train` and `test`, from the command line to the files of the run folder."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import toml
import torch
from rich.console import Console
from rich.progress import Progress as RichProgress
from rich.progress import TextColumn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
)

from actions.command.parse import parse_command
from actions.request.elements import request_of
from actions.training.baseline import majority, nothing_learnt
from actions.training.callbacks import Progress, SeedEachBatch
from actions.training.experiment import build
from actions.training.limits import default_epochs
from dataset import registry
from main import main
from model.checkpoint import BaseSource
from model.load import load_base, load_config, load_tokenizer
from model.task.fine_tuning import FineTuning
from tests.tiny import tiny_batch
from tests.trainer import quiet_trainer
from tests.world import (
    World,
    command,
    metrics_of,
    model_folder,
    run,
    same_weights,
    summary_folder,
    text_folder,
    weights,
    write_lora,
)


@pytest.fixture(scope="module")
def trained(world: World) -> Path:
    """The run folder of two epochs."""
    assert run(*world.training("--max-epochs", 2, "--project", "trained")) == 0
    return world.runs / "trained"


def by_default(*arguments: object) -> list[str]:
    """A command without `--max-epochs`."""
    words = command(*arguments)
    place = words.index("--max-epochs")
    return words[:place] + words[place + 2 :]


def test_a_state_that_was_validated_is_not_measured_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test rows of SST-2 are its validation rows. Another pass has the same numbers."""
    short, rows = ("--max-epochs", 2, "--limit-train-batches", 3), ("--row-results", "true")
    tested, own = [], FineTuning.test_step
    monkeypatch.setattr(FineTuning, "test_step", lambda *given, **more: tested.append(1) or own(*given, **more))
    assert run(*world.training(*short, *rows, "--project", "once")) == 0
    assert not tested
    assert run("test", "--load", world.runs / "once", *rows, "--project-dir", world.runs, "--project", "again") == 0
    assert tested
    found, again = metrics_of(world.runs / "once"), metrics_of(world.runs / "again")
    assert found["validation"] == again["validation"]
    assert "official/accuracy" in found["validation"]
    rows_of = json.loads((world.runs / "once" / "metrics.json").read_text())["rows"]
    assert [*rows_of] == ["training", "validation"]
    assert (world.runs / "once" / "rows.csv").read_bytes() == (world.runs / "again" / "rows.csv").read_bytes()
    tested.clear()
    assert run(*world.training(*short, "--limit-test-batches", 1, "--project", "fewer")) == 0
    assert tested, "other rows are measured"


class TestLength:
    @pytest.mark.parametrize(
        ("steps", "max_steps", "epochs"),
        [(1, -1, 20), (68, -1, 5), (100, -1, 3), (5000, -1, 3), (68, 1000, 15), (1, 50, 50), (68, 10, 5)],
    )
    def test_epochs_by_default(self, steps: int, max_steps: int, epochs: int) -> None:
        assert default_epochs(steps, max_steps) == epochs

    def test_a_run_has_the_epochs_that_its_data_need(self, capfd, world: World, tmp_path: Path) -> None:
        where = ("--limit-train-batches", 2, "--project-dir", tmp_path, "--project")
        assert main(by_default(*world.training(*where, "open", "--stop-after", 3, "--lr-scheduler", "linear"))) == 0
        assert "note: --max-epochs is 20: an epoch has 2 optimizer steps" in capfd.readouterr().out
        last = tmp_path / "open" / "checkpoints" / "last.ckpt"
        assert toml.load(tmp_path / "open" / "config.toml")["max_epochs"] == 20
        assert run("train", "--resume-training", "--load", last, "--max-epochs", "NA") == 0
        assert run(*world.training(*where, "given", "--lr-scheduler", "linear", "--max-epochs", 20)) == 0
        assert "--max-epochs changes the length" not in capfd.readouterr().out
        assert same_weights(last, tmp_path / "given" / "checkpoints" / "last.ckpt")

    def test_packed_text_is_counted_in_blocks(self, capfd, world: World, tmp_path: Path) -> None:
        text = ("train", "opt_lora", "wikitext2", "--load", world.opt, "--dataset-saved-path", text_folder(tmp_path))
        assert main(by_default(*text, "--max-token-len", 8, "--stop-after", 1, "--project-dir", tmp_path)) == 0
        assert "optimizer steps" in capfd.readouterr().out


class TestMostFrequentClass:
    def test_a_run_that_learns_nothing_says_so(self, capfd, world: World) -> None:
        assert run(*world.training("--learning-rate", 1e-9, "--max-epochs", 2, "--project", "nothing")) == 0
        shown = capfd.readouterr().out
        assert shown.count("most frequent class of validation 0.5385") == 1
        sentence = "note: the result is not above the most frequent class: accuracy 0.5385 on validation"
        assert shown.splitlines()[-1].startswith(sentence)

    def test_a_result_above_it_gets_no_sentence(self, world: World) -> None:
        data = build(request_of(parse_command(command(*world.training())))).data
        assert majority(data, "validation") == pytest.approx(7 / 13)
        assert nothing_learnt(data, "validation", {"loss": 0.1, "accuracy": 8 / 13}) is None
        assert nothing_learnt(data, "validation", {"loss": 0.1}) is None
        assert "accuracy 0.5385" in nothing_learnt(data, "validation", {"accuracy": 7 / 13})
        assert "matthews 0.0000" in nothing_learnt(data, "validation", {"matthews": 0.0})

    def test_text_has_no_classes(self, capfd, world: World, tmp_path: Path) -> None:
        text = ("train", "opt_lora", "wikitext2", "--load", world.opt, "--dataset-saved-path", text_folder(tmp_path))
        assert run(*text, "--max-token-len", 8, "--max-steps", 1, "--project-dir", tmp_path) == 0
        assert "most frequent class" not in capfd.readouterr().out


class TestRunFolder:
    def test_its_files(self, trained: Path) -> None:
        names = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
        expected = {"checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.toml", "metrics.json", "parameters.json"}
        expected |= {"run.json", ".lock", "confusion.png"}
        adapter = {"adapter_config.json", "adapter_model.safetensors", "README.md", "allocation.png"}
        adapter |= {"tokenizer.json", "tokenizer_config.json"}
        assert names == expected | {"lora.toml"} | {f"adapter/{name}" for name in adapter}

    def test_a_checkpoint_holds_what_was_trained_and_nothing_else(self, trained: Path) -> None:
        state = weights(trained / "checkpoints" / "last.ckpt")
        elements = {name for name in state if name.endswith((".low_rank.A", ".low_rank.B"))}
        assert len(elements) == 2 * 2 * 2  # blocks, projections, A and B
        assert {name.split(".")[1] for name in state.keys() - elements} == {"score"}

    def test_metrics_with_options_and_versions(self, trained: Path) -> None:
        saved = json.loads((trained / "metrics.json").read_text())
        figures = saved["metrics"]["validation"]
        assert figures["accuracy"] == pytest.approx(figures["official/accuracy"])
        assert saved["options"]["learning_rate"] == 1e-2
        assert "torch" in saved["versions"]
        assert saved["checkpoint"].endswith("best.ckpt")

    def test_parameters_add_up(self, trained: Path) -> None:
        table = json.loads((trained / "parameters.json").read_text())
        state = weights(trained / "checkpoints" / "last.ckpt")
        assert table["trainable"] == sum(tensor.numel() for tensor in state.values())
        assert table["total"] == sum(row["total"] for row in table["rows"])

    def test_the_configuration_repeats_the_run(self, world: World, trained: Path) -> None:
        assert run("train", "--config", trained / "config.toml") == 0
        again = world.runs / "trained-2"  # a run never overwrites another
        assert same_weights(trained / "checkpoints" / "last.ckpt", again / "checkpoints" / "last.ckpt")
        assert metrics_of(again) == metrics_of(trained)

    def test_the_command_line_wins_over_the_file(self, world: World, trained: Path) -> None:
        assert run("train", "--config", trained / "config.toml", "--max-steps", 1, "--project", "wins") == 0
        assert toml.load(world.runs / "wins" / "config.toml")["max_steps"] == 1
        assert not same_weights(trained / "checkpoints" / "last.ckpt", world.checkpoint("wins"))

    def test_old_keys_and_NA(self, world: World, tmp_path: Path) -> None:
        old = {
            "model": "opt_lora",
            "dataset": "sst2",
            "load_name": str(world.opt),
            "is_pretrained": True,
            "training_optimizer": "sgd",
            "is_to_auto_requeue": False,
            "dataset_saved_path": str(world.sst2),
            "lora_config": str(world.lora),
            "backbone_model": "NA",
            "project_dir": str(tmp_path),
            "project": "old",
            "max_steps": 1,
        }
        (tmp_path / "old.toml").write_text(toml.dumps(old))
        assert run("train", "--config", tmp_path / "old.toml") == 0
        written = toml.load(tmp_path / "old" / "config.toml")
        assert written["optimizer"] == "sgd"
        assert written["load"] == str(world.opt)
        assert not {"load_name", "is_pretrained", "backbone_model"} & written.keys()


class TestAction:
    def test_a_checkpoint_alone_is_enough(self, world: World, trained: Path) -> None:
        best = trained / "checkpoints" / "best.ckpt"
        # In the batches of training: the last digit of a loss may depend on the batch's shape.
        arguments = ("--project-dir", world.runs, "--project", "tested", "--batch-size", 4)
        assert run("test", "--load", best, *arguments) == 0
        assert metrics_of(world.runs / "tested") == metrics_of(trained)

    def test_an_untrained_head_is_said(self, capsys, world: World) -> None:
        model = ("test", "--model", world.opt, "--dataset", "sst2", "--dataset-saved-path", world.sst2, "--pretrained")
        assert run(*model, "--project-dir", world.runs, "--project", "untrained") == 0
        assert "head is untrained" in capsys.readouterr().out

    def test_batch_size_does_not_change_the_figures(self, world: World, trained: Path) -> None:
        best = trained / "checkpoints" / "best.ckpt"
        arguments = ("--project-dir", world.runs, "--project", "batches", "--batch-size", 5)
        assert run("test", "--load", best, *arguments) == 0
        for name, value in metrics_of(trained)["validation"].items():
            assert metrics_of(world.runs / "batches")["validation"][name] == pytest.approx(value, abs=1e-5)

    def test_the_base_may_have_moved(self, world: World, trained: Path, tmp_path: Path) -> None:
        moved = model_folder(tmp_path / "moved")
        arguments = ("--backbone-model", moved, "--project-dir", world.runs, "--project", "moved", "--batch-size", 4)
        assert run("test", "--load", trained / "checkpoints" / "best.ckpt", *arguments) == 0
        assert metrics_of(world.runs / "moved") == metrics_of(trained)


class TestLoading:
    def test_a_checkpoint_starts_a_new_run(self, world: World, trained: Path) -> None:
        last = trained / "checkpoints" / "last.ckpt"
        arguments = ("--project-dir", world.runs, "--project", "onward", "--max-steps", 1, "--learning-rate", 1e-9)
        assert run("train", "--load", last, *arguments) == 0
        before, after = weights(last), weights(world.checkpoint("onward"))
        assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)

    def test_a_plain_model_is_trained_whole(self, world: World) -> None:
        arguments = ("--dataset-saved-path", world.sst2, "--project-dir", world.runs, "--max-steps", 2)
        model = ("train", world.opt, "sst2", "--pretrained", *arguments)
        assert run(*model, "--project", "plain", "--learning-rate", 1e-3) == 0
        network = AutoModelForSequenceClassification.from_pretrained(world.opt, num_labels=2)
        trained = {name.removeprefix("network.") for name in weights(world.checkpoint("plain"))}
        assert trained == {name for name, _ in network.named_parameters()}
        test = ("test", "--load", world.checkpoint("plain", "best"), "--project-dir", world.runs)
        assert run(*test, "--project", "plain-tested") == 0
        assert metrics_of(world.runs / "plain-tested") == metrics_of(world.runs / "plain")

    def test_a_head_of_two_layers(self, world: World, tmp_path: Path) -> None:
        """The pretrained model of a family without a table has no weight of it."""
        shape = {"vocab_size": 200, "dim": 32, "hidden_dim": 32, "n_layers": 1, "n_heads": 4}
        AutoModel.from_config(DistilBertConfig(**shape)).save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(world.opt).save_pretrained(tmp_path)
        arguments = ("--dataset-saved-path", world.sst2, "--project-dir", world.runs, "--max-steps", 1)
        assert run("train", tmp_path, "sst2", *arguments, "--project", "two-layers") == 0
        assert "network.pre_classifier.weight" in weights(world.checkpoint("two-layers"))

    def test_a_base_at_its_own_location_has_not_moved(self, tmp_path: Path) -> None:
        """--backbone-model may be given anew at each start. At another location the weights there are used."""
        stored = BaseSource(str(tmp_path), state_file=str(tmp_path / "state.pt"), seed=3)
        assert stored.moved_to(None) == stored.moved_to(str(tmp_path)) == stored
        assert stored.moved_to("elsewhere") == BaseSource("elsewhere", seed=3)
        random = BaseSource("configuration", pretrained=False, seed=3)
        assert random.moved_to("elsewhere") == BaseSource("elsewhere", pretrained=False, seed=3)

    @pytest.mark.parametrize("suffix", ["safetensors", "pt"])
    def test_a_state_dict(self, world: World, tmp_path: Path, suffix: str) -> None:
        """The weights from a file are those of the folder: the same frozen base, so the same run."""
        from safetensors.torch import save_file

        state = AutoModelForSequenceClassification.from_pretrained(world.opt, num_labels=2).state_dict()
        base = {name: tensor for name, tensor in state.items() if not name.startswith("score")}
        file = tmp_path / f"state.{suffix}"
        save_file(base, file) if suffix == "safetensors" else torch.save(base, file)
        arguments = ("--load", file, "--backbone-model", world.opt, "--max-steps", 1, "--learning-rate", 1e-9)
        assert run(*world.training(*arguments, "--project", f"state-{suffix}")) == 0
        checkpoint = world.checkpoint(f"state-{suffix}")
        record = torch.load(checkpoint, weights_only=True)["heterolora"]
        assert run(*world.training("--max-steps", 1, "--project", f"folder-{suffix}")) == 0
        of_folder = torch.load(world.checkpoint(f"folder-{suffix}"), weights_only=True)["heterolora"]
        assert record["base_sha256"] == of_folder["base_sha256"]
        assert run("test", "--load", checkpoint, "--project-dir", world.runs) == 0


TASKS = {
    "classification": ("sst2", lambda world, folder: world.sst2, "accuracy"),
    "causal_language_modeling": ("wikitext2", lambda world, folder: text_folder(folder / "text"), "perplexity"),
    "summarization": ("xsum", lambda world, folder: summary_folder(folder / "summaries"), "rouge1"),
}


@pytest.mark.parametrize(
    ("family", "task"),
    [
        *(("opt", task) for task in TASKS),
        ("roberta", "classification"),
        *(("gemma", task) for task in TASKS),
    ],
)
def test_every_family_and_task(world: World, tmp_path: Path, family: str, task: str) -> None:
    dataset, make_data, metric = TASKS[task]
    base = world.opt if family == "opt" else model_folder(tmp_path / family, family)
    arguments = ("--load", base, "--pretrained", "--dataset-saved-path", make_data(world, tmp_path))
    sizes = ("--max-token-len", 24, "--max-target-len", 4, "--max-steps", 3, "--project-dir", tmp_path)
    model = ("train", f"{family}_lora", dataset, "--task", task)
    assert run(*model, *arguments, *sizes, "--lora-config", world.lora, "--project", "run") == 0
    figures = metrics_of(tmp_path / "run")
    assert all(metric in row for row in figures.values())
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert run("test", "--load", best, "--project-dir", tmp_path, "--project", "tested") == 0
    tested = metrics_of(tmp_path / "tested")
    assert tested == {split: row for split, row in figures.items() if split in tested}


@pytest.mark.parametrize("precision", ["64", "bf16-mixed", "bf16-true"])
def test_elements_and_head_stay_float32(world: World, precision: str) -> None:
    project = f"precision-{precision}"
    assert run(*world.training("--max-steps", 3, "--precision", precision, "--project", project)) == 0
    state = weights(world.checkpoint(project))
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    start = weights(next(world.runs.glob("trained/checkpoints/last.ckpt")))
    assert any(not torch.equal(state[name], start[name]) for name in state)
    assert run("test", "--load", world.checkpoint(project), "--project-dir", world.runs, "--precision", "32") == 0


def test_a_base_in_16_bits_is_that_of_transformers(tmp_path: Path) -> None:
    """Its rotary frequencies stay in float32: rounded to 8 bits, they are wrong at far positions."""
    folder, spec = model_folder(tmp_path, "llama", max_position_embeddings=512), registry.get("wikitext2")
    config = load_config(str(folder), spec)
    tokenizer = load_tokenizer(str(folder), config)
    base = load_base(BaseSource(str(folder)), config, tokenizer, spec.task, "bf16-true")
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    batch = tiny_batch(1, 500)
    with torch.no_grad():
        assert torch.equal(base.network.eval()(**batch).logits, expected.eval()(**batch).logits)


def test_gradient_checkpointing_changes_no_weight(world: World) -> None:
    assert run(*world.training("--max-steps", 4, "--project", "stored")) == 0
    assert run(*world.training("--max-steps", 4, "--project", "recomputed", "--gradient-checkpointing")) == 0
    stored, recomputed = weights(world.checkpoint("stored")), weights(world.checkpoint("recomputed"))
    assert all(torch.allclose(stored[name], recomputed[name], atol=1e-6) for name in stored)


def test_patience_ends_a_run_that_gets_no_better(world: World) -> None:
    arguments = ("--max-epochs", 9, "--patience", 1, "--learning-rate", 1e-12, "--project", "patient")
    assert run(*world.training(*arguments)) == 0
    assert torch.load(world.checkpoint("patient"), weights_only=True)["epoch"] < 8


def test_a_loss_that_is_no_number_stops_the_run(capfd, world: World, tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "lora.toml", lora_alpha=1e20)
    arguments = ("--lora-config", lora, "--learning-rate", 1e20, "--optimizer", "sgd", "--project", "nan")
    assert run(*world.training(*arguments)) == 1
    assert "training loss became" in capfd.readouterr().err
    assert all(torch.isfinite(tensor).all() for tensor in weights(world.checkpoint("nan")).values())


def test_the_progress_bar_shows_the_loss_without_logging_it(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Lightning's `log` takes milliseconds in every step."""
    logged: set[str] = set()

    class Logged(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            logged.update(trainer.callback_metrics)
            shown.update(trainer.progress_bar_callback.get_metrics(trainer, pl_module))

    shown: dict[str, float] = {}
    experiment = build(request_of(parse_command(command(*world.training("--max-steps", 2)))))
    trainer = quiet_trainer([Progress(), Logged()], max_steps=2, enable_progress_bar=True)
    trainer.fit(experiment.task, datamodule=experiment.data)
    assert "train/loss" not in logged
    assert shown["train/loss"] == float(experiment.task.global_loss) > 0


def test_the_progress_is_one_line_of_80_columns(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning breaks the figures of a validation into lines of their own."""
    monkeypatch.setenv("COLUMNS", "80")
    assert run(*world.training("--max-steps", 12, "--max-epochs", 1, "--project", "one-line")) == 0
    lines = capsys.readouterr().out.splitlines()
    (place,) = (number for number, line in enumerate(lines) if line.startswith("Epoch "))
    assert "train/loss" in lines[place]
    assert "validation" not in lines[place]
    assert not lines[place + 1].startswith("        ") or "Metrics" in lines[place + 1]


def test_fast_and_long_runs_have_one_line_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of a line grow with the steps, the speed and the epochs; the bar must leave room for them."""
    console = Console(width=80, file=StringIO())
    monkeypatch.setattr("actions.training.callbacks.get_console", lambda: console)
    clock = (tick / 50 for tick in range(100_000))
    columns = [*Progress().configure_columns(None), TextColumn("train/loss: 10.123")]
    shown = RichProgress(*columns, console=console, get_time=lambda: next(clock))
    shown.add_task("Epoch 10/19", total=12_000, completed=3_000)
    validation = shown.add_task("Validation DataLoader 0", total=12_000)
    for _ in range(20):
        shown.advance(validation, 100)
    console.print(shown.make_tasks_table(shown.tasks))
    lines = console.file.getvalue().rstrip("\n").splitlines()
    assert len(lines) == 2, lines
    assert "train/loss: 10.123" in lines[0]
    assert "it/s" in lines[1]


def test_a_batch_has_the_random_numbers_of_its_seed() -> None:
    trainer = SimpleNamespace(global_rank=0, current_epoch=1, strategy=SimpleNamespace(root_device=torch.device("cpu")))
    with torch.random.fork_rng():
        SeedEachBatch(3).on_train_batch_start(trainer, None, None, 2)
        drawn = torch.rand(4)
        torch.manual_seed(int(np.random.SeedSequence([3, 0, 1, 2]).generate_state(3)[0]))
        assert torch.equal(drawn, torch.rand(4))
