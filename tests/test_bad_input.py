"""Whatever a user can get wrong ends in one line that says what was found and what would be right, and exit code 2."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import torch

from options.every import declared
from tests.mistakes import complains, complaint
from tests.world import (
    World,
    command,
    main,
    model_folder,
    run,
    summary_folder,
    text_folder,
    write_lora,
    write_shortcuts,
)

# A mistake is found before the base is read, if the model names its family.
SEARCH = "train-dyrealloc --dataset rte --load nowhere/at-all --pretrained --model opt_lora"


@pytest.mark.parametrize(
    ("arguments", "found", "expected"),
    [
        ("", "no action", "train"),
        ("trian", "trian", "did you mean 'train'"),
        ("--dataset rte train", "'--dataset' is given before the action", "python -m main train …"),
        ("--dataset rte", "'--dataset' is given before the action", "one of train, "),
        ("train --lerning-rate 1", "--lerning-rate", "--learning-rate"),
        ("train --lr 1", "--lr", "--learning-rate"),
        ("train --lora-r 8", "--lora-r", "'--rank'"),
        ("train --lora-alpha=8", "--lora-alpha=8", "'--alpha'"),
        ("train --max_grad_norm 1", "--max_grad_norm", "'--gradient-clip-val'"),
        ("train --bf16", "--bf16", "'--precision bf16'"),
        ("train --warmup_ratio=0.1", "--warmup_ratio=0.1", "'--warmup-steps 0.06'"),
        ("train --train.epochs 3", "--train.epochs", "'--max-epochs'"),
        ("train --cutoff_len 100", "--cutoff_len", "'--max-token-len'"),
        ("train --model_name_or_path x", "--model_name_or_path", "'--load'"),
        ("train --random_seed 3", "--random_seed", "'--seed'"),
        ("train --lora_dropout 0.1", "--lora_dropout", "the key lora_dropout in a file for --lora-config"),
        ("train --use_dora", "--use_dora", "--help"),
        ("train --prompt-column instruction input", "two values follow --prompt-column", "instruction,input"),
        ("train --target q_proj, v_proj", "two values follow --target", "--target q_proj,v_proj"),
        ("train --target=q_proj v_proj", "two values follow --target", "--target q_proj,v_proj"),
        ("train --target q_proj v_proj", "two values follow --target", "--target q_proj,v_proj"),
        ("train --dataset x.csv --text-columns a b", "'a' and 'b'", "--text-columns a,b"),
        ("train --model optt_lora", "'optt_lora' is not known", "did you mean 'opt_lora'"),
        ("train --model gemma9_lora --load a/b", "'gemma9_lora' is not known", "give --model lora, which adapts every"),
        ("train --model qwen4_lora_ags", "'qwen4_lora_ags' is not known", "give --model lora_ags, which adapts every"),
        ("train --model phi_lora --load a/b", "'phi_lora' is not known", "give --model lora, which adapts every"),
        ("train --model phi_lora_ags", "'phi_lora_ags' is not known", "give --model lora_ags, which adapts every"),
        ("train --lr-scheduler cosin", "cosin", "did you mean 'cosine_annealing'"),
        ("train opt_lora rte --target all-linear", "all-linear", "did you mean 'all'"),
        ("train --learning-rate fast", "fast", "number"),
        ("train --learning-rate 0", "0", "above 0"),
        ("train --seed 4294967296", "--seed 4294967296", "0 to 4294967295"),
        ("train --max-epochs 9223372036854775808", "--max-epochs", "below 2^63"),
        (f"train --batch-size {'9' * 5000}", "99...", "whole number"),
        ("train --project .", "--project .", "a name, such as"),
        ("train --project runs/..", "--project runs/..", "a name, such as"),
        ("train --project a\x07b", "a\\x07b", "control characters"),
        ("train --project \udcc3\udca9", "\\udcc3", "UTF-8 locale"),
        ("train opt\x07_lora rte", "opt\\x07_lora", "control characters"),
        ("train --eta-min 1e-3 --lr-scheduler cosine_annealing", "--eta-min 0.001", "at most 0.0002"),
        ("train --warmup-steps 1.0", "--warmup-steps 1.0", "a share below 1"),
        ("train --warmup-steps -1", "--warmup-steps -1", "a number of steps"),
        ("train opt_lora rte --metric acuracy", "--metric 'acuracy' is not measured on 'rte'", "'accuracy'"),
        ("train opt_lora rte --metric perplexity", "--metric 'perplexity'", "loss"),
        ("train --num-workers 99999", "--num-workers 99999", "at most"),
        ("train --batch-size 0", "--batch-size 0", "at least 1"),
        ("train --batch-size 1.5", "1.5", "whole number"),
        ("train --max-epochs -2", "-2", "-1 for no limit"),
        ("train --limit-train-batches 0", "0", "at least 1"),
        ("train --val-check-interval 2.0", "2.0", "share in (0, 1]"),
        ("train --optimizer adamww", "adamww", "did you mean 'adamw'"),
        ("train --precision 8", "8", "bf16-mixed"),
        ("train --strategy horovod", "horovod", "ddp"),
        ("train --strategy deepspeed", "it replaces the optimizer", "fsdp"),
        ("train --strategy fsdp --num-nodes 2", "--num-devices is 1", "--shard-size 2"),
        ("train --strategy fsdp --num-devices 4 --shard-size 3", "--shard-size 3", "2 or 4"),
        ("train opt_lora rte --load a/b --random-init --strategy fsdp --num-devices 2", "pretrained", "--random-init"),
        (
            "train opt_lora rte --load some/base --pretrained --quantize int8 --strategy fsdp --num-devices 2",
            "--quantize int8",
            "nf4",
        ),
        ("train some/model rte --strategy fsdp --num-devices 2 --precision 64", "--precision 64", "32"),
        ("train --quantize nf5", "nf5", "did you mean 'nf4'?"),
        ("train --pretrained perhaps", "perhaps", "true or false"),
        ("train --random-init perhaps", "--random-init 'perhaps'", "true or false"),
        ("train --random-ini", "--random-ini", "'--random-init'"),
        ("train opt_lora rte more", "more", "at most a model and a data set"),
        ("train opt_lora --model roberta_lora", "given twice", "once"),
        ("train opt_lra", "opt_lra", "did you mean 'opt_lora'"),
        ("train opt_lora_agz", "opt_lora_agz", "did you mean 'opt_lora_ags'"),
        ("train opt_lora rtee", "rtee", "did you mean 'rte'"),
        ("train opt_lora rte --task summarization", "summarization", "classification"),
        ("train opt_lora rte --task translation", "translation", "classification"),
        ("train roberta_lora wikitext2 --load x", "roberta models cannot write text", "--load a decoder"),
        ("train roberta_lora rte", "--load is missing", "roberta"),
        ("train opt_lora rte --max-epochs -1", "--max-epochs", "give one"),
        ("train opt_lora rte --load nowhere/at-all --pretrained", "nowhere/at-all", "hub name or a folder"),
        ("train opt_lora rte --load ./nowhere", "'./nowhere' is not there", "hub name or a folder"),
        ("train opt_lora rte --rank 4 --lora-config x.toml", "--rank and --lora-config are both given", "one of them"),
        ("train opt_lora rte --target q_proj,v_prj", "'v_prj' is not known", "did you mean 'v_proj'"),
        ("train opt_lora rte --target attn", "'attn' is not known", "attention"),
        ("train opt_lora rte --target gate_proj", "opt has no gate_proj", "q_proj"),
        ("train opt_lora rte --target ,", "'' is not known", "all"),
        ("train opt_lora rte --rank 0", "--rank 0", "at least 1"),
        ("train opt_lora rte --alpha 0", "--alpha 0", "above 0"),
        ("train some/model rte --rank 4", "--rank is given, but 'some/model' is a plain model", "use --model lora"),
        ("train opt_lora rte --lora-config nowhere.toml", "nowhere.toml", "LoRA configuration"),
        ("train opt_lora rte --config nowhere.toml", "nowhere.toml", "TOML"),
        ("train some/model rte --lora-config configs/lora/lora_qv.toml", "plain model", "use --model lora"),
        ("train opt_lora rte --shortcut-config configs/shortcut/ags_networkwise.toml", "no shortcuts", "opt_lora_ags"),
        ("train --resume-training", "--resume-training", "--load"),
        ("train --resume-training --load some/folder", "--resume-training", "last.ckpt"),
        ("test --load nowhere.ckpt", "nowhere.ckpt", "path"),
        ("train opt_lora rte --num-devices 999 --accelerator cpu", "999", "CPU cores"),
        ("train opt_lora rte --precision 16-mixed --accelerator cpu", "16-mixed", "bf16-mixed"),
        ("imp-test --dataset rte --imp-limit-test-batches 0", "--imp-limit-test-batches 0", "a count of at least 1"),
        ("imp-test --dataset rte --imp-limit-test-batches 1.5", "1.5", "share in (0, 1]"),
        ("imp-test --dataset rte --imp-limit-test-batches some", "some", "a number"),
        ("imp-test --dataset rte --imp-warmup-batches -1", "-1", "at least 0"),
        ("imp-test --dataset rte --imp-warmup-lr 0", "0", "above 0"),
        ("imp-test --dataset rte --turn-on-percentile 0", "--turn-on-percentile 0", "(0, 1]"),
        ("imp-test --dataset rte --turn-on-percentile 1.01", "1.01", "(0, 1]"),
        ("imp-test --dataset rte --budget-parameters 0", "0", "at least 1"),
        ("imp-test --dataset rte --budget-parameters 9 --turn-on-percentile 0.5", "are both given", "give one of them"),
        ("imp-test --dataset rte --budget-parameters 9", "a budget of 9 (parameters) pays for no element", "at least"),
        ("imp-test --dataset rte --budget-parameters 1000000000", "is above the whole space", "at most"),
        ("imp-test --dataset rte --metric-red-tolerance -0.1", "-0.1", "at least 0"),
        ("imp-test --dataset rte --importance-test-name grad-norm", "grad-norm", "did you mean 'grad_norm'"),
        ("imp-test --dataset rte --dyrealloc-ags-mode combined", "needs shortcuts", "a model with shortcuts"),
        ("imp-test --dataset rte --dyrealloc-ags-mode both", "both", "separated"),
        ("imp-test --dataset rte --model some/model", "plain model", "use --model lora or lora_ags"),
        *((f"imp-test opt_lora rte --load a/b --pretrained --quantize nf4 --importance-test-name {name}",
           f"{name} cannot be used with --quantize", "grad_norm") for name in ("synflow", "weight_gradient")),
        (f"{SEARCH} --realloc-N 0", "--realloc-N 0", "at least 1"),
        (f"{SEARCH} --realloc-N 1.5", "--realloc-N 1.5", "share in (0, 1]"),
        (f"{SEARCH} --dyrealloc-ags-mode separated", "needs shortcuts", "off"),
        (f"{SEARCH} --imp-source training --importance-test-name synflow", "synflow", "grad_norm"),
        (f"{SEARCH} --imp-source training --importance-test-name alpha_test", "alpha_test", "dedicated"),
        (f"{SEARCH} --model some/model", "plain model", "use --model lora or"),
        (f"{SEARCH} --strategy deepspeed", "deepspeed", "ddp"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line(capfd, monkeypatch, arguments: str, found: str, expected: str) -> None:
    complains(capfd, found, expected, *arguments.split())


@pytest.mark.parametrize("name", [name for name, info in declared().items() if info.type in (float, int | float)])
def test_every_number_is_finite(capfd, tmp_path: Path, name: str) -> None:
    complains(capfd, "inf", "finite", "train", declared()[name].flag, "1e999")
    for value in ("inf", "nan"):
        complains(capfd, value, "number", "train", declared()[name].flag, value)
        (tmp_path / "options.toml").write_text(f"{name} = {value}\n")
        complains(capfd, value, "finite", "train", "--config", tmp_path / "options.toml")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(capfd) -> None:
    assert "no GPU" in complaint(capfd, "train", "opt_lora", "rte", "--accelerator", "gpu")


@pytest.mark.parametrize(
    ("text", "found", "expected"),
    [
        ("lerning_rate = 1.0", "lerning_rate", "learning_rate"),
        ('learning_rate = "fast"', "fast", "number"),
        ("batch_size = true", "True", "whole number"),
        (f"weight_decay = {'9' * 400}", "99...", "below 2^63"),
        ('load = "a\\u0007b"', "x07", "control characters"),
        ("batch_size = 0", "0", "at least 1"),
        ('optimizer = "adamv"', "adamv", "adamw"),
        ("seed = 1\nseed = 2", "not valid TOML", "learning_rate"),
        ('training_optimizer = "sgd"\noptimizer = "adam"', "second time", "once"),
        ("pretrained = true\nrandom_init = true", "second time", "once"),
        ("random_init = 1", "random_init", "true or false"),
        ('rank = 4\nlora_config = "x.toml"', "--rank and --lora-config are both given", "one of them"),
        ('alpha = 4\n[lora_config]\ngranularity = "network"', "--alpha and --lora-config are both given", "one"),
        ('[lora_config]\ngranularity = "netwrk"', "lora_config: granularity is 'netwrk'", '"network"'),
        ('[lora_config]\ngranularity = "network"\n[lora_config.all_layers.q_prj]', "q_prj", "did you mean 'q_proj'"),
    ],
)
def test_mistakes_in_the_config_file(capfd, tmp_path: Path, text: str, found: str, expected: str) -> None:
    config = tmp_path / "options.toml"
    config.write_text(text)
    complains(capfd, found, expected, "train", "--config", config)


def test_debug_shows_the_traceback(capfd) -> None:
    assert main(["train", "opt_lra", "--log-level", "debug"]) == 2
    assert "Traceback" in capfd.readouterr().err


class TestConfigurations:
    @pytest.mark.parametrize("kind", ["lora", "shortcut"])
    def test_a_rank_above_the_widths(self, capfd, world: World, tmp_path: Path, kind: str) -> None:
        name = {"lora": "q_proj", "shortcut": "residual1"}[kind]
        config = {"lora": write_lora, "shortcut": write_shortcuts}[kind](tmp_path / "config.toml", r=33)
        arguments = ("train", "opt_lora_ags", *world.training(f"--{kind}-config", config)[2:])
        complains(capfd, f"layer_0.{name} is 33", "at most 32", *command(*arguments))

    def test_nothing_left_on(self, capfd, world: World, tmp_path: Path) -> None:
        config = write_lora(tmp_path / "lora.toml", r=0)
        assert "no element" in complaint(capfd, *command(*world.training("--lora-config", config)))


class TestBeforeTheModel:
    """Limits that no run can keep, and wrong data, are refused before the base model is read."""

    @pytest.fixture(autouse=True)
    def no_model(self, monkeypatch) -> None:
        def load(*_: object) -> None:
            raise AssertionError("the base model is read")

        monkeypatch.setattr("actions.training.experiment.load_base", load)

    @pytest.mark.parametrize(
        ("options", "found", "expected"),
        [
            (("--limit-train-batches", 0.01), "0.01 of the 12 batches of the training set is no batch", "number of"),
            (("--limit-val-batches", 0.1), "0.1 of the 4 batches of validation is no batch", "number of"),
            (("--limit-test-batches", 0.1), "0.1 of the 4 batches of validation is no batch", "number of"),
            (("--val-check-interval", 13), "--val-check-interval 13 is longer than an epoch of 12", "at most 12"),
            (("--val-check-interval", 3, "--limit-train-batches", 2), "an epoch of 2 batches", "at most 2"),
            (("--warmup-steps", 36), "the run, which has 36 optimizer steps", "at most 35"),
            (("--warmup-steps", 5, "--max-steps", 5), "the run, which has 5 optimizer steps", "at most 4"),
            (("--warmup-steps", 6, "--accumulate-grad-batches", 7), "which has 6 optimizer steps", "at most 5"),
        ],
    )
    def test_of_a_training_run(self, capfd, world: World, options: tuple, found: str, expected: str) -> None:
        complains(capfd, found, expected, *command(*world.training(*options)))

    def test_damaged_rows(self, capfd, world: World, tmp_path: Path) -> None:
        data = shutil.copytree(world.sst2, tmp_path / "data")
        (data / "train.jsonl").write_text('{"sentence": "a good film", "label": 1}\n{"sentence": "a bad')
        line = complaint(capfd, *command(*world.training("--dataset-saved-path", data)))
        assert f"line 2 of '{data / 'train.jsonl'}'" in line

    def test_of_a_test(self, capfd, world: World) -> None:
        options = ("--load", world.opt, "--pretrained", "--dataset-saved-path", world.sst2, "--limit-test-batches", 0.1)
        assert "is no batch" in complaint(capfd, *command("test", "opt_lora", "sst2", *options))

    def test_of_generation(self, capfd, world: World, tmp_path: Path) -> None:
        data = summary_folder(tmp_path / "data")
        lengths = ("--max-token-len", 40, "--max-target-len", 8, "--max-new-tokens", 33)
        arguments = ("train", "opt_lora", "xsum", "--load", world.opt, "--dataset-saved-path", data, *lengths)
        found = "after a prompt of up to 32 tokens is more than the model's 64 positions"
        complains(capfd, found, "at most 32", *command(*arguments))


def test_limits_of_packed_text(capfd, world: World, tmp_path: Path) -> None:
    """The rows of packed text are known once it is encoded."""
    data = text_folder(tmp_path / "data")
    arguments = ("wikitext2", "--load", world.opt, "--pretrained", "--dataset-saved-path", data, "--max-token-len", 16)
    where = ("--project-dir", tmp_path / "runs")
    line = complaint(capfd, *command("train", "opt_lora", *arguments, *where, "--limit-train-batches", 0.01))
    assert "batches of the training set is no batch" in line
    line = complaint(capfd, *command("test", "opt_lora", *arguments, *where, "--limit-test-batches", 0.01))
    assert "batches of test is no batch" in line


class TestCheckpoints:
    @pytest.fixture(scope="class")
    def trained(self, world: World) -> Path:
        assert run(*world.training("--max-steps", 2, "--project", "for-mistakes")) == 0
        return world.checkpoint("for-mistakes")

    def test_of_another_model(self, capfd, world: World, trained: Path) -> None:
        line = complaint(capfd, *command("test", "--model", "opt_lora_ags", "--load", trained))
        assert "opt_lora" in line

    def test_of_another_configuration(self, capfd, world: World, trained: Path, tmp_path: Path) -> None:
        other = write_lora(tmp_path / "other.toml", "q_proj")
        assert "differs" in complaint(capfd, *command("test", "--load", trained, "--lora-config", other))

    def test_of_another_base(self, capfd, world: World, trained: Path, tmp_path: Path) -> None:
        other = model_folder(tmp_path / "other", seed=1)
        line = complaint(capfd, *command("test", "--load", trained, "--backbone-model", other))
        assert "another base model" in line

    def test_cut_short(self, capfd, trained: Path, tmp_path: Path) -> None:
        broken = tmp_path / "broken.ckpt"
        broken.write_bytes(trained.read_bytes()[:2000])
        assert "broken.ckpt" in complaint(capfd, *command("test", "--load", broken))

    def test_of_another_program(self, capfd, tmp_path: Path) -> None:
        torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
        assert "not a checkpoint of this program" in complaint(
            capfd, *command("test", "--load", tmp_path / "other.ckpt")
        )

    def test_code_inside_never_runs(self, capfd, tmp_path: Path) -> None:
        proof = tmp_path / "ran"

        class Malicious:
            def __reduce__(self):
                return Path.touch, (proof,)

        for name, write in (
            ("torch.ckpt", lambda path: torch.save({"heterolora": Malicious(), "state_dict": {}}, path)),
            ("pickle.ckpt", lambda path: path.write_bytes(pickle.dumps(Malicious()))),
        ):
            write(tmp_path / name)
            said = complaint(capfd, *command("test", "--load", tmp_path / name))
            assert "never loaded" in said
            assert "weights_only" not in said, "torch's advice to load it anyway"
            assert not proof.exists()

    def test_a_state_dict_that_does_not_fit(self, capfd, world: World, tmp_path: Path) -> None:
        torch.save({"some.weight": torch.zeros(2)}, tmp_path / "state.pt")
        arguments = world.training("--load", tmp_path / "state.pt", "--backbone-model", world.opt)
        assert "does not fit" in complaint(capfd, *command(*arguments))
