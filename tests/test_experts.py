"""LoRA on the weights of experts: the map, the scores from the parameter's own gradient, PEFT, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn

import heterolora as hl
from heterolora.choosing import scores as score_files
from heterolora.elements.adapt import adapt, placement_of
from heterolora.elements.element import Settings
from heterolora.elements.found import family_of
from heterolora.elements.low_rank import LowRank
from heterolora.elements.rank_units import compact_ranks, rank_units
from heterolora.elements.targets import lora_elements
from heterolora.saliency import get
from heterolora.saliency.from_training import TrainingGradients
from heterolora.saliency.problem import Metric
from heterolora.saliency.score import score
from model.peft_format.adapter import read_adapter
from model.peft_format.fit import check_modules, config_of_adapter, named, put_into
from model.task.start import start
from tests.adapted import Adapted, lora_config
from tests.architectures import ARCHITECTURES
from tests.mistakes import refused
from tests.scoring import loss_and_logits, problem
from tests.test_any_model import Commands, logits
from tests.tiny import tiny_batch
from tests.world import metrics_of, same_weights, weights
from tools import export, realloc_lora_rank

#: One whose parameters are (experts, out, in), and one whose parameters are (experts, in, out), which PEFT swaps.
MIXTURES = ("qwen3_moe", "gpt_oss")
BATCHES = [tiny_batch(padding=None, seed=seed) for seed in range(2)]
mixtures = pytest.mark.parametrize("name", MIXTURES)


def on_experts(name: str, rank: int = 3, trained: bool = True) -> Adapted:
    """LoRA on all places of a mixture."""
    architecture = ARCHITECTURES[name]
    network = architecture.network()
    pretrained = {key: value.clone() for key, value in network.state_dict().items()}
    config = lora_config(r=rank)
    config = replace(config, sites=dict.fromkeys(architecture.experts.split(), config.default))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Adapted(network, adapt(network, placement_of(network, family_of(network, name), config)), pretrained)
    return made.train_b() if trained else made


def of_experts(made: Adapted) -> list[LowRank]:
    return [low_rank for low_rank in made.space if low_rank.element.experts > 1]


def parameter(made: Adapted, low_rank: LowRank) -> nn.Parameter:
    """The weights of the experts themselves."""
    host = made.network.get_submodule(low_rank.element.host)
    return getattr(host.base, low_rank.element.module.rpartition(".")[2])


def weight_gradient(made: Adapted, low_rank: LowRank) -> Tensor:
    """Of the parameter (experts, out, in), over all batches, by autograd."""
    weight = parameter(made, low_rank).requires_grad_()
    total = sum(loss_and_logits(made.network, batch)[0] for batch in BATCHES)
    return untransposed(torch.autograd.grad(total, weight)[0], low_rank)


def untransposed(weight: Tensor, low_rank: LowRank) -> Tensor:
    return weight if weight.shape[2] == low_rank.A.shape[1] else weight.mT


def trained_by_peft(network: nn.Module, folder: Path, **settings: object) -> peft.PeftModel:
    model = peft.get_peft_model(network, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "lora_B" in key:
                value.normal_(std=0.1)
    model.save_pretrained(folder)
    return model.eval()


@mixtures
def test_off_is_absent_and_routers_are_frozen(name: str) -> None:
    made = on_experts(name)
    trained = {key for key, value in made.network.named_parameters() if value.requires_grad}
    assert trained
    assert all(key.endswith((".A", ".B")) for key in trained)
    made.space.switch(set())
    assert torch.equal(logits(made.network, BATCHES[0]), logits(ARCHITECTURES[name].network(), BATCHES[0]))


@mixtures
def test_the_cost_counts_all_experts(name: str) -> None:
    for low_rank in of_experts(on_experts(name)):
        shape = parameter(on_experts(name), low_rank).shape
        assert low_rank.element.experts == shape[0]
        assert low_rank.element.parameters == low_rank.A.numel() + low_rank.B.numel() == 3 * shape[0] * sum(shape[1:])


@mixtures
def test_scores_are_formulas_in_the_gradient_of_the_parameter(name: str) -> None:
    made = on_experts(name)
    asked = problem(made, BATCHES)
    grad_norm, norms, weighted = (score(which, asked) for which in ("grad_norm", "weight_grad_norm", "weight_gradient"))
    for low_rank in of_experts(made):
        key, W = low_rank.element.key, untransposed(parameter(made, low_rank).detach(), low_rank)
        G = weight_gradient(made, low_rank)
        assert norms[key] == pytest.approx(float(G.norm()), rel=1e-4)
        assert weighted[key] == pytest.approx(float((W * G).abs().mean()), rel=1e-4)
        A, B = low_rank.by_expert
        of_A, of_B = low_rank.scaling * B.mT @ G, low_rank.scaling * G @ A.mT
        assert grad_norm[key] == pytest.approx((of_A.norm() + of_B.norm()).item(), rel=1e-4)


def test_spectral_sees_each_expert() -> None:
    made = on_experts("qwen3_moe", rank=2)
    found = score("spectral", problem(made, BATCHES))
    for low_rank in of_experts(made):
        weight = parameter(made, low_rank).requires_grad_()
        first, second = (torch.autograd.grad(loss_and_logits(made.network, b)[0], weight)[0] for b in BATCHES)
        U, S, Vt = torch.linalg.svd(first)
        along = torch.einsum("eok,eoi,eki->ek", U[..., :2], second, Vt[:, :2]).clamp(min=0)
        expected = float((S[:, :2] * along).sum()) / low_rank.element.width
        assert found[low_rank.element.key] == pytest.approx(expected, rel=1e-3)


@mixtures
@pytest.mark.parametrize("heuristic", ["snip", "fisher", "gain", "constant", "alpha_test"])
def test_other_heuristics(name: str, heuristic: str) -> None:
    made = on_experts(name)
    found = score(heuristic, problem(made, BATCHES, Metric(tolerance=1e-6)))
    assert any(found[low_rank.element.key] > 0 for low_rank in of_experts(made))


@mixtures
@pytest.mark.parametrize("trained", [True, False])
def test_the_gradients_of_elements_that_are_off(name: str, trained: bool) -> None:
    """Their probes see what the elements would get if they were on and changed nothing."""
    made = on_experts(name, trained=trained)
    off = of_experts(made)
    made.space.switch({low_rank.element.key for low_rank in made.space if low_rank.element.experts == 1})
    gradients = [weight_gradient(made, low_rank) for low_rank in off]
    for low_rank in off:
        parameter(made, low_rank).requires_grad_(False)
    found = TrainingGradients(made.space, get("grad_norm").score)
    found.start()
    sum(loss_and_logits(made.network, batch)[0] for batch in BATCHES).backward()
    found.collect()
    found.stop()
    totals = dict(zip(made.space.elements, zip(*[iter(found.totals())] * 2, strict=True), strict=True))
    for low_rank, G in zip(off, gradients, strict=True):
        A, B = (p.detach().clone().requires_grad_() for p in (low_rank.A, low_rank.B))
        experts, out = low_rank.element.experts, low_rank.element.out_features
        delta = low_rank.scaling * B.view(out, -1, experts).permute(2, 0, 1) @ A.view(experts, -1, A.shape[1])
        expected = torch.autograd.grad((delta * G).sum(), (A, B))
        for got, wanted in zip(totals[low_rank.element], expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-6)


@mixtures
def test_a_start_along_the_gradient(name: str) -> None:
    made = on_experts(name, rank=2, trained=False)
    start(problem(made, BATCHES), "gradient")
    for low_rank in of_experts(made):
        G = weight_gradient(made, low_rank)
        V = torch.linalg.svd(G)[2][:, :2]  # (experts, 2, in)
        along = (low_rank.by_expert[0] * 3**0.5 @ V.mT).detach().abs()
        torch.testing.assert_close(along, torch.eye(2).expand_as(along), rtol=1e-2, atol=1e-2)


def test_single_ranks_are_those_of_every_expert() -> None:
    made = on_experts("qwen3_moe")
    low_rank = of_experts(made)[0]
    before = low_rank.matrix(torch.float32).detach().clone()
    A, B = (factor.detach().clone() for factor in low_rank.by_expert)
    units = [unit for unit in rank_units(made.space) if unit.whole is low_rank]
    assert sum(unit.element.parameters for unit in units) == low_rank.element.parameters
    units[1].switch(False)
    without = before - low_rank.scaling * B[:, :, 1:2] @ A[:, 1:2]
    torch.testing.assert_close(low_rank.matrix(torch.float32).detach(), without)
    outputs = logits(made.network, BATCHES[0])
    compact_ranks(made.space)
    assert low_rank.element.rank == 2
    torch.testing.assert_close(logits(made.network, BATCHES[0]), outputs)


@pytest.mark.parametrize("name", [*MIXTURES, "mixtral", "llama4_text"])
@pytest.mark.parametrize(
    "settings",
    [
        {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
        {"target_parameters": ["experts.down_proj"], "target_modules": ["q_proj"], "use_rslora": True},
        {"target_parameters": ["gate_up_proj", "down_proj"], "rank_pattern": {"experts.down_proj": 5}},
    ],
    ids=["both", "one", "ranks"],
)
def test_adapters_of_peft_are_read(name: str, settings: dict, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    torch.manual_seed(0)
    theirs = trained_by_peft(architecture.network(), tmp_path, **{"target_modules": [], "r": 2, **settings})
    network = architecture.network()
    family = family_of(network, name)
    adapter = named(read_adapter(tmp_path), family)
    check_modules(adapter, network, name)
    space = adapt(network, placement_of(network, family, config_of_adapter(adapter, family)))
    put_into(adapter, network, space)
    torch.testing.assert_close(logits(network, BATCHES[0]), logits(theirs, BATCHES[0]), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(architecture.network(), BATCHES[0]), logits(theirs, BATCHES[0]), atol=1e-2)


@mixtures
def test_the_library_scores_experts_and_peft_adapts_them(name: str) -> None:
    network = ARCHITECTURES[name].network()
    batches = [{**batch, "labels": batch["input_ids"]} for batch in BATCHES]
    state = {key: value.clone() for key, value in network.state_dict().items()}
    scores = hl.score(network, batches, target_parameters=["down_proj"], target_modules=["q_proj"], rank=2)
    assert [item.element.name for item in scores.scored][:2] == ["self_attn.q_proj", "mlp.experts.down_proj"]
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    budget = int(sum(item.element.parameters for item in scores.scored) * 0.7)
    config = hl.lora_config(scores, parameters=budget, max_rank=4, task_type="CAUSAL_LM")
    assert config.target_parameters
    model = peft.get_peft_model(network, config)
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert budget - min(item.element.width for item in scores.scored) < trained <= budget


def test_peft_adapts_the_chosen_blocks_of_a_mixture_only() -> None:
    """PEFT takes a regular expression for the ends of what it matches, in every block of a mixture."""
    network = ARCHITECTURES["qwen3_moe"].network()
    batches = [{**batch, "labels": batch["input_ids"]} for batch in BATCHES]
    scores = hl.score(network, batches, target_modules=["q_proj", "v_proj"])
    (best,) = list(scores.by_module())[:1]
    config = hl.lora_config(scores, total_rank=8, policy="topk", task_type="CAUSAL_LM")
    model = peft.get_peft_model(network, config)
    adapted = [path for path, module in model.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    assert adapted == [f"base_model.model.{best}"]


@pytest.mark.parametrize("heuristic", ["synflow", "activation"])
def test_what_cannot_score_experts_says_so(heuristic: str) -> None:
    batches = [{**batch, "labels": batch["input_ids"]} for batch in BATCHES]
    with refused(f"{heuristic} cannot score the weights of experts, such as layer_0.mlp.experts", "leave the experts"):
        hl.score(ARCHITECTURES["qwen3_moe"].network(), batches, heuristic, target_parameters=["down_proj"])


def test_names_that_are_none() -> None:
    network = ARCHITECTURES["qwen3_moe"].network()
    with refused("'downproj' is the name of no weight of experts", "did you mean 'down_proj'"):
        lora_elements(network, [], Settings(2, 4.0), target_parameters=["downproj"])
    with refused("'w' is the name of no weight of experts", "leave it out"):
        lora_elements(ARCHITECTURES["llama"].network(), [], Settings(2, 4.0), target_parameters=["w"])


def test_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    commands = Commands(ARCHITECTURES["qwen3_moe"], tmp_path)
    base = ("--load", commands.base, "--max-steps", 1, "--rank", 2)
    trained = commands.run("train", "experts", *base, "--target", "experts")
    assert len([key for key in weights(trained / "checkpoints" / "last.ckpt") if key.endswith(".A")]) == 4
    both = commands.run("train", "both", *base, "--target", "all,experts")
    assert len([key for key in weights(both / "checkpoints" / "last.ckpt") if key.endswith(".A")]) == 12
    repeated = commands.run("train", "again", "--config", both / "config.toml")
    assert same_weights(*(folder / "checkpoints" / "last.ckpt" for folder in (both, repeated)))
    again = metrics_of(commands.run("test", "test", "--load", both / "adapter"))
    assert again["test"]["loss"] == pytest.approx(metrics_of(both)["test"]["loss"], abs=1e-5)

    few = ("--importance-test-name", "grad_norm", "--imp-limit-test-batches", 2)
    scored = commands.run("imp-test", "scores", "--load", commands.base, "--target", "experts", *few) / "scores.toml"
    read = score_files.read(scored)
    assert {item.element.experts for item in read.scored} == {4}
    chosen, peft_file = tmp_path / "chosen.toml", tmp_path / "peft.json"
    choice = [str(scored), "--parameters", str(sum(item.element.parameters for item in read.scored) // 2)]
    realloc_lora_rank.main([*choice, "--output", str(chosen), "--load", str(commands.base)])
    realloc_lora_rank.main([*choice, "--output", str(peft_file), "--format", "peft"])
    assert '"target_parameters"' in peft_file.read_text()
    commands.run("train", "chosen", "--load", commands.base, "--lora-config", chosen, "--max-steps", 1)
    capfd.readouterr()

    with refused("--format vllm cannot hold LoRA on the weights of experts", "use --format merged"):
        export.main([str(both), "--format", "vllm", "--output", str(tmp_path / "served")])
    with refused("--format trl cannot name the weights of experts", "use --format peft"):
        realloc_lora_rank.main([*choice, "--output", str(tmp_path / "trl.yaml"), "--format", "trl"])
