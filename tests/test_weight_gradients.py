"""Heuristics that see the gradient of the frozen weight: against autograd and NumPy, whole and projected."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import heterolora as hl
from heterolora.common.errors import UserError
from heterolora.saliency import weight_gradients as module
from heterolora.saliency.no_trace import no_trace
from heterolora.saliency.score import score, scored
from heterolora.saliency.weight_gradients import ProductSum, leading_directions, weight_gradients
from tests.adapted import CASES, Adapted, adapted, lora_config, shortcut_config
from tests.scoring import labelled, loss_and_logits, problem
from tests.tiny import tiny_batch


def trained_with(variant: str, task: str) -> tuple[Adapted, list]:
    """A network with LoRA and shortcuts whose B is not zero, and three batches with padding."""
    made = adapted(variant, task, lora_config(), shortcut_config()).train_b()
    many = labelled(made, 3) if task == "classification" else [tiny_batch(seed=seed) for seed in range(3)]
    return made, many


def gradients_of(made: Adapted, batches: list, parts: int = 1) -> dict[str, list[np.ndarray]]:
    asked = problem(made, batches)
    with no_trace(made.network, made.space):
        found = weight_gradients(asked, parts)
    keys = [element.key for element in made.space.elements]
    return {key: [each.matrix().numpy() for each in sums] for key, sums in zip(keys, found, strict=True)}


@pytest.mark.parametrize(("variant", "task"), CASES)
def test_the_gradients_of_all_places(variant: str, task: str) -> None:
    """G against autograd: of the frozen weight for LoRA, and through A and B for every element."""
    made, batches = trained_with(variant, task)
    found = gradients_of(made, batches)
    bases = {
        each.element.key: made.network.get_submodule(each.element.module).base for each in made.space.of_kind("lora")
    }
    for base in bases.values():
        base.weight.requires_grad_(True)
    for batch in batches:
        loss_and_logits(made.network, batch)[0].backward()
    for low_rank in made.space:
        key = low_rank.element.key
        (G,) = found[key]
        A, B = low_rank.A.detach().numpy(), low_rank.B.detach().numpy()
        np.testing.assert_allclose(low_rank.scaling * G @ A.T, low_rank.B.grad.numpy(), rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(low_rank.scaling * B.T @ G, low_rank.A.grad.numpy(), rtol=1e-3, atol=1e-6)
        if key in bases:
            np.testing.assert_allclose(G, bases[key].weight.grad.numpy(), rtol=1e-3, atol=1e-6)


def test_scores_are_formulas_in_the_gradient() -> None:
    made, batches = trained_with("roberta", "classification")
    G = {key: sums[0] for key, sums in gradients_of(made, batches).items()}
    norms, products = (score(name, problem(made, batches)) for name in ("weight_grad_norm", "weight_gradient"))
    for element in made.space.elements:
        assert norms[element.key] == pytest.approx(np.linalg.norm(G[element.key]), rel=1e-5)
        if element.kind == "shortcut":
            assert products[element.key] == 0
        else:
            W = made.network.get_submodule(element.module).base.weight.detach().numpy()
            assert products[element.key] == pytest.approx(np.abs(W * G[element.key]).mean(), rel=1e-5)


def test_the_norm_does_not_depend_on_the_draw_of_a() -> None:
    made, batches = trained_with("opt-pre", "classification")
    with torch.no_grad():
        for low_rank in made.space:
            low_rank.B.zero_()
    asked = problem(made, batches)
    before, of_draw = score("weight_grad_norm", asked), score("grad_norm", asked)
    with torch.no_grad():
        for low_rank in made.space:
            low_rank.A.normal_()
    assert score("weight_grad_norm", asked) == before
    assert score("grad_norm", asked) != of_draw


def test_the_batches_are_divided_in_turn() -> None:
    made, batches = trained_with("opt-pre", "classification")
    halves = gradients_of(made, batches, parts=2)
    even, odd = gradients_of(made, batches[::2]), gradients_of(made, batches[1::2])
    for key, (first, second) in halves.items():
        np.testing.assert_allclose(first, even[key][0], rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(second, odd[key][0], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("variant", ["opt-pre", "llama"])
def test_activation_is_the_explained_variance(variant: str) -> None:
    """NumPy, on the inputs of the tokens that are no padding."""
    made, batches = trained_with(variant, "causal_language_modeling")
    scores = score("activation", problem(made, batches))
    inputs: dict[str, list[torch.Tensor]] = {}
    lora = [element for element in made.space.elements if element.kind == "lora"]
    for element in lora:
        layer, found = made.network.get_submodule(element.module), inputs.setdefault(element.key, [])
        layer.register_forward_pre_hook(lambda _, args, found=found: found.append(args[0].detach()))
    for batch in batches:
        loss_and_logits(made.network, batch)
    masks = torch.cat([batch["attention_mask"].flatten() for batch in batches]) > 0
    for element in lora:
        X = torch.cat([x.flatten(0, -2) for x in inputs[element.key]])[masks].double().numpy()
        values = np.linalg.eigvalsh((X - X.mean(0)).T @ (X - X.mean(0)))[::-1]
        assert scores[element.key] == pytest.approx(values[: element.rank].sum() / values.sum(), rel=1e-3)


def test_constant_inputs_have_no_variance_to_explain() -> None:
    """Σ x² - (Σ x)² / n is a small number of any sign then. Dividing by it gave scores of 1e36."""

    def loss(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return network(x).square().mean()

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 2))
    same = 10 * torch.randn(1, 64).expand(7, 64)
    constant = hl.score(network, [same] * 4, "activation", loss=loss)
    assert constant.by_module() == {"0": 0.0, "1": 0.0}
    varied = hl.score(network, [same + 0.5 * torch.randn(7, 64) for _ in range(4)], "activation", loss=loss)
    assert all(0 < value <= 1 for value in varied.by_module().values())


def test_spectral_is_its_formula() -> None:
    """NumPy: the slopes of G₁ along its own singular directions, times those of G₂, per parameter."""
    made, batches = trained_with("bert", "classification")
    halves = gradients_of(made, batches, parts=2)
    found = scored("spectral", problem(made, batches))
    for item in found:
        first, second = halves[item.element.key]
        U, S, Vt = np.linalg.svd(first)
        terms = [S[k] * max(U[:, k] @ second @ Vt[k], 0) for k in range(item.element.rank)]
        expected = np.array(sorted(terms, reverse=True)) / (item.element.in_features + item.element.out_features)
        assert item.by_rank == pytest.approx(expected, rel=1e-3, abs=1e-9)
        assert item.score == pytest.approx(expected.sum(), rel=1e-3, abs=1e-9)
    assert sum(item.score > 0 for item in found) > len(found) / 2


def test_spectral_does_not_take_noise_for_signal() -> None:
    """Place 0 has a weak signal and place 1 only strong noise, which differs from batch to batch."""
    generator = torch.Generator().manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(16, 16, bias=False), torch.nn.Linear(16, 16, bias=False))
    direction = torch.randn(16, 16, generator=generator)[:, :1] @ torch.randn(1, 16, generator=generator)
    batches = [torch.randn(64, 16, generator=generator) for _ in range(12)]
    noise = iter([4 * torch.randn(16, 16, generator=generator) for _ in batches] * 2)

    def loss(_network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        signal = (network[0](x) * (x @ direction.t())).mean()
        return signal + (network[1](x) * (x @ next(noise).t())).mean()

    norms, spectral = (
        hl.score(network, batches, name, loss=loss).by_module() for name in ("weight_grad_norm", "spectral")
    )
    assert norms["0"] < norms["1"]
    assert spectral["0"] > spectral["1"]


def test_spectral_needs_two_batches() -> None:
    made, batches = trained_with("opt-pre", "classification")
    with pytest.raises(UserError, match="two halves of the batches and has 1; give 2 batches or more"):
        score("spectral", problem(made, batches[:1]))


def test_gpt2_whose_weights_are_transposed() -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=40, n_positions=16, resid_pdrop=0, embd_pdrop=0)
    network = GPT2LMHeadModel(config).eval()
    ids = torch.randint(0, 40, (4, 12), generator=torch.Generator().manual_seed(1))
    batches = [{"input_ids": rows, "labels": rows} for rows in ids.split(2)]
    found = {name: hl.score(network, batches, name).by_module() for name in ("weight_grad_norm", "weight_gradient")}
    for batch in batches:
        network(**batch).loss.backward()
    for path in found["weight_grad_norm"]:
        weight = network.get_submodule(path).weight
        W, G = weight.detach().numpy(), weight.grad.numpy()
        assert found["weight_grad_norm"][path] == pytest.approx(np.linalg.norm(G), rel=1e-4)
        assert found["weight_gradient"][path] == pytest.approx(np.abs(W * G).mean(), rel=1e-4)


class TestProjections:
    @staticmethod
    def low_rank_and_noise(rank: int = 6, rows: int = 300, columns: int = 260) -> tuple[torch.Tensor, torch.Tensor]:
        """left (tokens, rows) and right (tokens, columns) whose product has `rank` large singular values."""
        generator = torch.Generator().manual_seed(0)
        left, right = (torch.randn(500, size, generator=generator) for size in (rows, columns))
        shared = torch.randn(500, rank, generator=generator)
        for factor in (left, right):
            factor.mul_(0.2).add_(shared @ torch.randn(rank, factor.shape[1], generator=generator))
        return left, right

    def test_the_error_is_bounded_by_the_tail(self) -> None:
        left, right = self.low_rank_and_noise()
        M = left.t() @ right
        projected = ProductSum(*M.shape, whole=False, seed=0, device=M.device)
        for rows in range(0, 500, 100):  # as batches come
            projected.add(left[rows : rows + 100], right[rows : rows + 100])
        assert not projected.whole
        values = np.linalg.svd(M.numpy(), compute_uv=False)
        tail = (values[module.WIDTH // 2 - 1 :] ** 2).sum()
        error = float((projected.matrix() - M).square().sum())
        assert 0 < error <= 4 * tail
        assert projected.norm() == pytest.approx(float(M.norm()), rel=0.25)

    def test_leading_directions_of_a_large_matrix(self) -> None:
        left, right = self.low_rank_and_noise(rows=400)
        M = left.t() @ right
        U, S, V = (part.numpy() for part in leading_directions(M, 6))
        expected = np.linalg.svd(M.numpy())
        np.testing.assert_allclose(S, expected[1][:6], rtol=1e-4)
        np.testing.assert_allclose(
            U @ np.diag(S) @ V.T, (expected[0][:, :6] * expected[1][:6]) @ expected[2][:6], atol=0.2
        )

    def test_a_small_matrix_is_kept_whole(self) -> None:
        assert ProductSum(32, 5000, whole=False, seed=0, device=torch.device("cpu")).whole

    @pytest.mark.parametrize("name", ["weight_gradient", "spectral", "activation"])
    def test_what_is_not_finite_is_named(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        made, batches = trained_with("opt-pre", "causal_language_modeling")
        monkeypatch.setattr(module, "WHOLE", 0)
        monkeypatch.setattr(module, "WIDTH", 10)
        with torch.no_grad():
            made.network.get_input_embeddings().weight.fill_(torch.nan)
        with pytest.raises(UserError, match=f"the {name} score of layer_0.q_proj is nan; expected a finite score"):
            score(name, problem(made, batches))

    @pytest.mark.parametrize("name", ["weight_grad_norm", "activation"])
    def test_under_autocast(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The sums are float32, as they are without autocast."""
        made, batches = trained_with("opt-pre", "causal_language_modeling")
        monkeypatch.setattr(module, "WHOLE", 0)
        monkeypatch.setattr(module, "WIDTH", 10)
        expected = score(name, problem(made, batches))
        with torch.autocast("cpu", torch.bfloat16):
            found = score(name, problem(made, batches))
        assert found != expected
        assert found == pytest.approx(expected, rel=0.1)

    @pytest.mark.parametrize("name", ["weight_grad_norm", "weight_gradient", "activation", "spectral"])
    def test_scores_are_close_to_those_of_whole_matrices(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        made, batches = trained_with("opt-pre", "causal_language_modeling")
        exact = score(name, problem(made, batches))
        monkeypatch.setattr(module, "WHOLE", 0)
        monkeypatch.setattr(module, "WIDTH", 10)
        monkeypatch.setattr(module, "EXACT", 8)
        close = score(name, problem(made, batches))
        assert close != exact
        assert np.corrcoef([*close.values()], [*exact.values()])[0, 1] > 0.9
