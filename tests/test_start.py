"""`--lora-init`: A starts along directions that matter, and the model is still the pretrained one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from heterolora.common.errors import UserError
from heterolora.saliency.heuristics.activation import inputs
from heterolora.saliency.no_trace import no_trace
from heterolora.saliency.weight_gradients import weight_gradients
from model.task.start import start
from tests.adapted import adapted, lora_config, shortcut_config
from tests.scoring import labelled, problem
from tests.test_bad_input import complaint
from tests.world import World, run, run_apart, same_weights, weights

KINDS = ("gradient", "activation", "orthogonal")


def projector(rows: np.ndarray) -> np.ndarray:
    """The projection onto the span of orthogonal rows of equal length."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit.T @ unit


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_still_the_pretrained_one(kind: str) -> None:
    made = adapted("opt-pre", lora=lora_config(), shortcut=shortcut_config())
    batches = labelled(made, 3)
    inputs_ = {name: batches[0][name] for name in ("input_ids", "attention_mask")}
    before, drawn = made.network(**inputs_).logits, [low_rank.A.detach().clone() for low_rank in made.space]
    start(problem(made, batches), kind)
    assert torch.equal(made.network(**inputs_).logits, before)
    for low_rank, A in zip(made.space, drawn, strict=True):
        assert not low_rank.B.any()
        assert not torch.equal(low_rank.A, A)
        gram = (low_rank.A @ low_rank.A.t()).detach().numpy()
        np.testing.assert_allclose(gram, np.eye(len(gram)) / 3, atol=1e-5)
        assert A.norm(dim=1).mean() == pytest.approx(3**-0.5, rel=0.2)  # as long as the rows of Kaiming's start


def test_a_spans_the_leading_directions_of_the_gradient() -> None:
    made = adapted("bert", lora=lora_config(), shortcut=shortcut_config())
    asked = problem(made, labelled(made, 4))
    with no_trace(made.network, made.space):
        gradients = [G.matrix().numpy() for (G,) in weight_gradients(asked)]
    start(asked, "gradient")
    for low_rank, G in zip(made.space, gradients, strict=True):
        V = np.linalg.svd(-G)[2][: low_rank.element.rank]
        np.testing.assert_allclose(projector(low_rank.A.detach().numpy()), V.T @ V, atol=1e-2)


def test_a_spans_the_leading_directions_of_the_inputs() -> None:
    made = adapted("llama", "causal_language_modeling", lora_config())
    batches = [{"input_ids": torch.arange(40).view(4, 10) + row, "attention_mask": torch.ones(4, 10)} for row in (3, 9)]
    asked = problem(made, batches)
    with no_trace(made.network, made.space):
        moments = inputs(asked)
    start(asked, "activation")
    for low_rank, place in zip(made.space, moments, strict=True):
        mean = place.sums[:-2].numpy() / 80
        covariance = place.products.matrix().numpy() - 80 * np.outer(mean, mean)
        V = np.linalg.eigh(covariance)[1][:, ::-1][:, : low_rank.element.rank]
        np.testing.assert_allclose(projector(low_rank.A.detach().numpy()), V @ V.T, atol=1e-2)


def test_orthogonal_directions_follow_the_seed() -> None:
    found = []
    for seed in (0, 0, 1):
        made = adapted("opt-pre", lora=lora_config())
        start(problem(made, []), "orthogonal", seed)
        found.append([low_rank.A.detach() for low_rank in made.space])
    assert all(map(torch.equal, found[0], found[1]))
    assert not any(map(torch.equal, found[0], found[2]))
    assert not torch.equal(found[0][0], found[0][1])


def test_a_rank_above_the_width_keeps_the_other_rows() -> None:
    made = adapted("opt-pre", lora=lora_config(r=40))  # the model is 32 wide
    drawn = [low_rank.A.detach().clone() for low_rank in made.space]
    start(problem(made, labelled(made, 2)), "gradient")
    for low_rank, A in zip(made.space, drawn, strict=True):
        assert not torch.equal(low_rank.A[:32], A[:32])
        assert torch.equal(low_rank.A[32:], A[32:])


def test_a_gradient_that_is_not_finite_stops_with_the_element() -> None:
    made = adapted("opt-pre", lora=lora_config())
    with torch.no_grad():
        made.network.score.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"the gradient at layer_0\.q_proj is not finite"):
        start(problem(made, labelled(made, 2)), "gradient")


class TestRuns:
    """The command line. A learning rate near 0 leaves A where it starts."""

    def starts(self, world: World, tmp_path: Path, project: str, *more: object) -> dict[str, torch.Tensor]:
        still = ("--learning-rate", 1e-12, "--max-steps", 1, "--imp-limit-test-batches", 4)
        assert run(*world.training(*still, "--project-dir", tmp_path, "--project", project, *more)) == 0
        return every_a(tmp_path / project)

    def test_every_kind(self, world: World, tmp_path: Path) -> None:
        found = {kind: self.starts(world, tmp_path, kind, "--lora-init", kind) for kind in (*KINDS, "kaiming")}
        again = self.starts(world, tmp_path, "again", "--config", tmp_path / "gradient" / "config.toml")
        default = self.starts(world, tmp_path, "default")
        for name, A in found["gradient"].items():
            assert torch.allclose(A @ A.t(), torch.eye(4) / 3, atol=1e-4)
            assert torch.equal(A, again[name])
            assert torch.equal(found["kaiming"][name], default[name])
            assert not torch.allclose(A, found["activation"][name], atol=1e-2)
            assert not torch.allclose(A, found["orthogonal"][name], atol=1e-2)

    def test_a_resumed_run_goes_on(self, world: World, tmp_path: Path) -> None:
        arguments = world.training("--lora-init", "gradient", "--project-dir", tmp_path)
        assert run(*arguments, "--max-epochs", 2, "--project", "whole") == 0
        assert run(*arguments, "--max-epochs", 1, "--project", "parts") == 0
        last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
        assert run("train", "--resume-training", "--load", last, "--max-epochs", 2) == 0
        assert same_weights(last, tmp_path / "whole" / "checkpoints" / "last.ckpt")

    def test_trained_elements_are_left_as_they_are(self, world: World, tmp_path: Path, capsys) -> None:
        assert run(*world.training("--max-steps", 4, "--project-dir", tmp_path, "--project", "first")) == 0
        best = tmp_path / "first" / "checkpoints" / "best.ckpt"
        place = ("--project-dir", tmp_path, "--project", "second", "--max-steps", 1, "--learning-rate", 1e-12)
        assert run("train", "--load", best, "--lora-init", "gradient", *place) == 0
        assert "--lora-init gradient has no effect: the elements are trained already" in capsys.readouterr().out
        assert all(
            torch.allclose(A, every_a(tmp_path / "second")[name]) for name, A in every_a(tmp_path / "first").items()
        )

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_head_alone_has_no_element_to_start(self, kind: str, world: World, tmp_path: Path, capsys) -> None:
        (tmp_path / "none.toml").write_text('granularity = "network"\n[default]\nr = 0\n')
        assert self.starts(world, tmp_path, "run", "--lora-init", kind, "--lora-config", tmp_path / "none.toml") == {}
        assert f"--lora-init {kind} has no effect: the model has no element" in capsys.readouterr().out

    @pytest.mark.slow
    def test_two_processes_start_as_one(self, world: World, tmp_path: Path) -> None:
        one = self.starts(world, tmp_path, "one", "--lora-init", "gradient")
        still = ("--learning-rate", 1e-12, "--max-steps", 1, "--imp-limit-test-batches", 4, "--lora-init", "gradient")
        done = run_apart(*world.training(*still, "--project-dir", tmp_path, "--project", "two", "--num-devices", 2))
        assert done.returncode == 0, done.stderr
        for name, A in every_a(tmp_path / "two").items():
            np.testing.assert_allclose(projector(A.numpy()), projector(one[name].numpy()), atol=1e-3)

    def test_a_plain_model_has_no_a(self, capfd) -> None:
        line = complaint(capfd, "train", "--model", "some/model", "--dataset", "rte", "--lora-init", "gradient")
        assert "--lora-init is gradient, but 'some/model' is a plain model" in line


def every_a(folder: Path) -> dict[str, torch.Tensor]:
    return {name: A for name, A in weights(folder / "checkpoints" / "last.ckpt").items() if name.endswith(".A")}
