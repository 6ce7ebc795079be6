"""Parameter groups, learning rates, LoRA+ and rsLoRA."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer

from actions.command.parse import parse_command
from actions.request.elements import request_of
from main import main
from model.task.optimization import build_optimizer, build_scheduler, rate_factor, recipe, warm_up
from options.every import Options
from options.optimization import Optimization
from tests.adapted import VARIANTS, adapted, lora_config
from tests.tiny import tiny_network
from tests.world import World, run, weights, write_lora

RATE, DECAY, RATIO = 1e-3, 0.1, 16.0


def settings_by_parameter(optimizer: torch.optim.Optimizer) -> dict[int, tuple[float, float]]:
    """id of a parameter → (learning rate, weight decay)."""
    return {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}


def trained(network: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def plus(ratio: float = RATIO, **more: object) -> Optimization:
    return Optimization(learning_rate=RATE, weight_decay=DECAY, loraplus_ratio=ratio, **more)


class TestGroups:
    def test_are_those_of_peft(self) -> None:
        """But for vectors, which PEFT moves at B's rate: the paper speaks of B alone."""
        model = adapted("roberta", lora=lora_config())
        ours = settings_by_parameter(build_optimizer(trained(model.network), plus(), model.space))

        theirs = tiny_network(*VARIANTS["roberta"][:1])
        modules = [low_rank.element.module for low_rank in model.space]
        config = peft.LoraConfig(r=3, target_modules=modules, modules_to_save=["classifier"])
        theirs = peft.PeftModelForSequenceClassification(theirs, config)
        made = create_loraplus_optimizer(
            theirs, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=RATIO, loraplus_weight_decay=DECAY
        )
        wrapped, expected = dict(theirs.base_model.model.named_modules()), settings_by_parameter(made)
        for low_rank in model.space:
            layer = wrapped[low_rank.element.module]
            assert ours[id(low_rank.A)] == expected[id(layer.lora_A["default"].weight)] == (RATE, DECAY)
            assert ours[id(low_rank.B)] == expected[id(layer.lora_B["default"].weight)] == (RATE * 16, DECAY)
        head, other = model.network.classifier, wrapped["classifier"].modules_to_save["default"]
        for name in ("dense", "out_proj"):
            weight = getattr(head, name).weight
            assert ours[id(weight)] == expected[id(getattr(other, name).weight)] == (RATE, DECAY)
            assert ours[id(getattr(head, name).bias)] == (RATE, 0.0)
        assert len(ours) == len(expected) == len(trained(model.network))

    def test_without_it_matrices_and_vectors(self) -> None:
        model = adapted("roberta", lora=lora_config())
        optimizer = build_optimizer(trained(model.network), plus(ratio=1.0), model.space)
        assert [group["name"] for group in optimizer.param_groups] == ["matrices", "vectors"]
        decayed = {p.ndim: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        assert decayed == {1: 0.0, 2: DECAY}
        assert {group["lr"] for group in optimizer.param_groups} == {RATE}

    def test_every_parameter_once_and_no_empty_group(self) -> None:
        model = adapted("opt-pre", "causal_language_modeling", lora_config())
        optimizer = build_optimizer(trained(model.network), plus(), model.space)
        assert [group["name"] for group in optimizer.param_groups] == ["matrices", "B"]
        found = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert sorted(found) == sorted(map(id, trained(model.network)))

    @pytest.mark.parametrize(
        ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
    )
    def test_every_optimizer(self, name: str, kind: type) -> None:
        model = adapted("opt-pre", lora=lora_config())
        optimizer = build_optimizer(trained(model.network), plus(optimizer=name), model.space)
        assert type(optimizer) is kind
        assert optimizer.param_groups[-1]["lr"] == RATE * RATIO

    def test_a_step_moves_b_so_much_further(self) -> None:
        """Plain gradient descent by hand: B −= ratio · η · g."""
        model = adapted("opt-pre", lora=lora_config()).train_b()
        optimizer = build_optimizer(trained(model.network), Optimization("sgd", RATE, loraplus_ratio=4), model.space)
        before = [(e.A.detach().clone(), e.B.detach().clone()) for e in model.space]
        for low_rank in model.space:
            low_rank.A.grad = torch.ones_like(low_rank.A)
            low_rank.B.grad = torch.ones_like(low_rank.B)
        optimizer.step()
        for low_rank, (a, b) in zip(model.space, before, strict=True):
            torch.testing.assert_close(low_rank.A, a - RATE)
            torch.testing.assert_close(low_rank.B, b - 4 * RATE)


class TestSchedule:
    def test_linear(self) -> None:
        settings = Optimization(lr_scheduler="linear", warmup_steps=4)
        factors = [rate_factor(step, 10, settings) for step in (0, 1, 3, 4, 7, 9, 10, 12)]
        assert factors == pytest.approx([1 / 5, 2 / 5, 4 / 5, 1.0, 0.5, 1 / 6, 0.0, 0.0])

    def test_cosine_from_the_peak_to_eta_min(self) -> None:
        settings = Optimization(learning_rate=1e-2, lr_scheduler="cosine_annealing", eta_min=1e-3, warmup_steps=2)
        rates = [1e-2 * rate_factor(step, 10, settings) for step in (2, 4, 6, 10)]
        expected = [1e-3 + 9e-3 * (1 + math.cos(math.pi * t)) / 2 for t in (0, 0.25, 0.5, 1)]
        assert rates == pytest.approx(expected)
        assert rates[-1] == pytest.approx(1e-3)

    def test_constant_after_warm_up(self) -> None:
        assert [rate_factor(step, math.inf, Optimization(warmup_steps=1)) for step in (0, 1, 99)] == [0.5, 1.0, 1.0]

    @pytest.mark.parametrize(("total", "warmup"), [(1, 0), (8, 0), (9, 1), (100, 6), (1000, 60)])
    def test_a_share_of_warm_up(self, total: int, warmup: int) -> None:
        shared, counted = Optimization(), Optimization(warmup_steps=warmup)
        assert warm_up(0.06, total) == warmup
        assert [rate_factor(step, total, shared) for step in range(total)] == [
            rate_factor(step, total, counted) for step in range(total)
        ]
        assert warm_up(0.99, total) == min(round(0.99 * total), total - 1)

    @pytest.mark.parametrize("scheduler", ["none", "linear", "cosine_annealing"])
    def test_multiplies_all_groups_alike(self, scheduler: str) -> None:
        model = adapted("roberta", lora=lora_config())
        settings = plus(lr_scheduler=scheduler, warmup_steps=3, eta_min=1e-5)
        optimizer = build_optimizer(trained(model.network), settings, model.space)
        schedule = build_scheduler(optimizer, 12, settings)["scheduler"]
        for step in range(12):
            matrices, vectors, b = (group["lr"] for group in optimizer.param_groups)
            assert matrices == vectors == pytest.approx(RATE * rate_factor(step, 12, settings))
            assert b == pytest.approx(RATIO * matrices)
            optimizer.step()
            schedule.step()


class TestDefaults:
    def options(self, *arguments: object) -> Options:
        return request_of(parse_command([*map(str, arguments)])).options

    def test_by_kind_of_model(self) -> None:
        lora, plain = (self.options("train", model) for model in ("opt_lora", "some/model"))
        assert (lora.optimization.learning_rate, plain.optimization.learning_rate) == (2e-4, 5e-5)
        assert lora.optimization == replace(plain.optimization, learning_rate=2e-4)
        assert recipe(lora.optimization, lora.loop.gradient_clip_val) == (
            "training: adamw, learning rate 0.0002, linear to 0, warm-up of 0.06 of the run, gradient norm clipped at 1"
        )

    def test_of_an_older_file(self, tmp_path: Path) -> None:
        old = 'learning_rate = 5e-5\nlr_scheduler = "none"\nwarmup_steps = 0\ngradient_clip_val = 0.0\n'
        (tmp_path / "config.toml").write_text(old)
        options = self.options("train", "opt_lora", "--config", tmp_path / "config.toml")
        assert recipe(options.optimization, options.loop.gradient_clip_val) == (
            "training: adamw, learning rate 5e-05, constant, warm-up of 0 steps, no clipping"
        )

    @pytest.mark.parametrize(("theirs", "ours"), [("cosine", "cosine_annealing"), ("constant", "none")])
    def test_names_of_other_programs(self, theirs: str, ours: str) -> None:
        assert self.options("train", "--lr-scheduler", theirs).optimization.lr_scheduler == ours

    def test_a_run_states_and_keeps_them(self, capfd, world: World, tmp_path: Path) -> None:
        start = world.training("--rank", 4, "--max-steps", 3, "--project-dir", tmp_path, "--project", "run")
        start[start.index("--lora-config") : start.index("--learning-rate") + 2] = []
        assert main([*start, "--accelerator", "cpu", "--logger", "csv"]) == 0
        assert "training: adamw, learning rate 0.0002, linear to 0" in capfd.readouterr().out
        last = tmp_path / "run" / "checkpoints" / "last.ckpt"
        assert main(["train", "--resume-training", "--load", str(last), "--max-steps", "4"]) == 0
        out = capfd.readouterr().out
        assert "--max-steps changes the length of the run" in out
        assert "training: adamw, learning rate 0.0002, linear to 0" in out


def moved(world: World, project: str, *more: object) -> dict[str, torch.Tensor]:
    """How far one step of gradient descent from the start takes what is trained."""
    start = ("--optimizer", "sgd", "--project", f"{project}-start", "--max-steps", 1, "--learning-rate", 1e-30)
    step = ("--optimizer", "sgd", "--project", project, "--max-steps", 1, "--learning-rate", 1e-2)
    assert run(*world.training(*start, *more)) == 0
    assert run(*world.training(*step, *more)) == 0
    before, after = weights(world.checkpoint(f"{project}-start")), weights(world.checkpoint(project))
    return {name: after[name] - before[name] for name in after}


@pytest.fixture(scope="module")
def one_step(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    lora = write_lora(tmp_path_factory.mktemp("lora") / "plain.toml")
    return moved(world, "sgd", "--lora-config", lora)


def test_loraplus_from_the_command_line(world: World, one_step: dict[str, torch.Tensor], tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "lora.toml")
    faster = moved(world, "sgd-plus", "--lora-config", lora, "--loraplus-ratio", 4)
    for name, plain in one_step.items():
        times = 4 if name.endswith(".B") else 1
        torch.testing.assert_close(faster[name], times * plain, rtol=1e-4, atol=1e-8)
    assert any(plain.abs().max() > 0 for name, plain in one_step.items() if name.endswith(".B"))


def test_rslora_from_the_command_line(world: World, one_step: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """B's first gradient is proportional to the scaling, which is α/√r for α/r: √4 times as large here."""
    lora = write_lora(tmp_path / "lora.toml", use_rslora="true")
    stabilised = moved(world, "sgd-rslora", "--lora-config", lora)
    layer = peft.tuners.lora.Linear(
        torch.nn.Linear(2, 2), "default", config=peft.LoraConfig(use_rslora=True), r=4, lora_alpha=8
    )
    assert layer.scaling["default"] == pytest.approx(8 / 4 * 2)
    for name, plain in one_step.items():
        times = 2 if name.endswith(".B") else 1
        torch.testing.assert_close(stabilised[name], times * plain, rtol=1e-4, atol=1e-8)


class TestMistakes:
    def test_a_plain_model(self, capsys, world: World, tmp_path: Path) -> None:
        model = ("train", world.opt, "sst2", "--pretrained", "--dataset-saved-path", world.sst2)
        assert run(*model, "--project-dir", tmp_path, "--loraplus-ratio", 4) == 2
        assert "--loraplus-ratio is 4, but" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("ratio", ["0", "-1"])
    def test_out_of_range(self, capsys, world: World, ratio: str) -> None:
        assert run(*world.training("--loraplus-ratio", ratio)) == 2
        assert "out of range" in capsys.readouterr().err
