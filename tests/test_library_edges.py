"""The library with unusual networks, precisions and processes."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from transformers import T5Config, T5ForConditionalGeneration

import heterolora as hl
from heterolora.common.errors import UserError
from tests.test_library import VOCABULARY, Headed, Own, batches, neox, own_batches, squared


@pytest.mark.parametrize("factor", [1e-3, 1e4])
@pytest.mark.parametrize("heuristic", ["grad_norm", "fisher", "weight_grad_norm"])
def test_a_float16_model_has_small_and_large_gradients(heuristic: str, factor: float) -> None:
    """The range of float16 ends at 6e-8 and at 65504."""

    def loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return network(**batch).loss.float() * factor

    exact = hl.score(neox(), batches(), heuristic, loss=loss).by_module()
    found = hl.score(neox().half(), batches(), heuristic, loss=loss).by_module()
    assert min(exact.values()) > 0
    assert found == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize(("too_large", "passes"), [(0, 2 + 2 * 3), (1, 1 + 2 * 3)])
def test_only_what_leaves_the_range_of_float16_is_repeated(too_large: int, passes: int) -> None:
    """The first of three batches is also the warm-up. The scaled gradients of one batch are infinite in float16."""
    given, seen = batches(), []

    def loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        seen.append(batch)
        return network(**batch).loss.float() * (1e4 if batch is given[too_large] else 1.0)

    exact = hl.score(neox(), given, "snip", loss=loss, warmup_batches=1).by_module()
    assert len(seen) == 1 + 3
    found = hl.score(neox().half(), given, "snip", loss=loss, warmup_batches=1).by_module()
    assert len(seen) == 1 + 3 + passes
    assert found == pytest.approx(exact, rel=0.2)


def test_rslora_has_the_alpha_of_the_scoring_for_narrow_layers_too() -> None:
    network = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 4))  # rank 16 and rank 4
    scores = hl.score(network, [torch.randn(8, 32)], loss=lambda network, x: network(x).square().mean(), rank=16)
    found = peft.get_peft_model(network, hl.lora_config(scores, share=1.0, use_rslora=True))
    scalings = {
        layer.r["default"]: layer.scaling["default"] for layer in (found.base_model.model[0], found.base_model.model[1])
    }
    assert scalings == pytest.approx({16: 16 / 4, 4: 16 / 2})


def test_the_warm_up_of_a_float16_model_leaves_its_head() -> None:
    torch.manual_seed(0)
    network = Headed().half()
    rows = [(x.half(), y.half()) for x, y in own_batches()]
    assert 0 < hl.score(network, rows, "snip", loss=squared).by_module()["body"] < 1


def test_outer_autocast_is_that_of_the_network_alone() -> None:
    """The decomposition of a large gradient takes part in the score, and not in the network."""
    torch.manual_seed(0)
    network, rows = nn.Sequential(nn.Linear(300, 300)), [torch.randn(8, 300) for _ in range(2)]

    def loss(network: nn.Module, row: Tensor) -> Tensor:
        return network(row).float().square().mean()

    def inside(network: nn.Module, row: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss(network, row)

    with torch.autocast("cpu", torch.bfloat16):
        outer = hl.score(network, rows, "spectral", loss=loss)
    assert outer.scored == hl.score(network, rows, "spectral", loss=inside).scored
    assert outer.scored != hl.score(network, rows, "spectral", loss=loss).scored


def test_a_configuration_adapts_the_scored_layers_alone() -> None:
    """The path of a scored layer is the end of another path, of a layer that PEFT cannot adapt."""
    network = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.LayerNorm(6), nn.ReLU()), nn.Linear(6, 3))
    config = hl.lora_config(hl.score(network, own_batches(), loss=squared), share=0.5)
    adapted = peft.get_peft_model(network, config)
    layers = {path for path, module in adapted.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)}
    assert layers <= {"base_model.model.0", "base_model.model.2"}
    assert layers


def test_a_configuration_is_of_the_scores() -> None:
    scores = hl.score(neox(), batches())
    for fixed in ({"r": 4}, {"lora_alpha": 32}, {"target_modules": ["dense"]}, {"rank_pattern": {}}):
        with pytest.raises(hl.UserError, match=f"is given {next(iter(fixed))}; leave it out"):
            hl.lora_config(scores, share=0.5, **fixed)
    model = peft.get_peft_model(neox(), hl.lora_config(scores, share=0.5, use_rslora=True))
    layers = [module for module in model.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    ranks = [layer.r["default"] for layer in layers]
    assert len(set(ranks)) > 1
    expected = [16 / rank**0.5 for rank in ranks]  # the alpha of the scores
    assert [layer.scaling["default"] for layer in layers] == pytest.approx(expected)


@pytest.mark.parametrize("policy", ["proportional", "topk", "greedy"])
def test_no_rank_is_above_the_width_of_its_layer(policy: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2), nn.Linear(2, 64))
    rows = [torch.randn(8, 64) for _ in range(2)]
    scores = hl.score(network, rows, "spectral", rank=16, loss=lambda network, row: network(row).square().mean())
    assert [item.element.rank for item in scores.scored] == [16, 2, 2]
    config = hl.lora_config(scores, total_rank=20, policy=policy)
    model = peft.get_peft_model(network, config)
    layers = [module for module in model.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    assert [layer.r["default"] for layer in layers] == [16, 2, 2]


def test_the_layers_of_a_model_without_values_can_be_listed() -> None:
    assert set(hl.score(Headed().to("meta"), [], "constant").by_module()) == {"body"}


class Conv1D(nn.Conv1d):
    """A layer with the name of Transformers' transposed linear layer."""


def test_a_convolution_is_no_linear_layer() -> None:
    network = nn.Sequential(Conv1D(1, 1, 1), nn.Linear(6, 3))
    scores = hl.score(network, [torch.randn(2, 1, 6)], loss=lambda network, row: network(row).square().mean())
    assert set(scores.by_module()) == {"1"}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.cell = nn.Linear(6, 6), nn.LSTM(6, 3, batch_first=True)
        self.seen: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(torch.backends.cudnn.enabled)
        return self.cell(self.body(x))[0]


def test_a_recurrent_network_is_scored_without_cudnn() -> None:
    """cuDNN's backward pass needs training mode, and scoring has dropout off."""
    network, rows = Recurrent(), [torch.randn(2, 4, 6)]
    scores = hl.score(network, rows, loss=lambda network, row: network(row).square().mean())
    assert scores.by_module()["body"] > 0
    assert not any(network.seen)
    assert torch.backends.cudnn.enabled


def test_the_mask_of_an_encoder_is_not_that_of_the_decoder() -> None:
    """The decoder has as many tokens here, and none of them is padding."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    network = T5ForConditionalGeneration(config)
    ids, mask = torch.arange(1, 9).view(1, 8), torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids}
    longer = {**batch, "labels": torch.cat([ids, ids.new_tensor([[-100]])], 1)}  # one token more: no mask fits
    target = ["decoder.block.0.layer.0.SelfAttention.q"]
    masked, unmasked = (hl.score(network, [each], "activation", target_modules=target) for each in (batch, longer))
    (found,), (expected,) = masked.by_module().values(), unmasked.by_module().values()
    assert found == pytest.approx(expected, abs=0.02)


def _own_share(rank: int, folder: str) -> None:
    """Another number of batches in each process, and other ones for the warm-up."""
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    network, generator = Own(), torch.Generator().manual_seed(rank)
    rows = [
        (torch.randn(4, 6, generator=generator), torch.randn(4, 3, generator=generator)) for _ in range(4 - 2 * rank)
    ]
    found = {name: hl.score(network, rows, name, loss=squared).by_module() for name in ("alpha_test", "snip")}
    heads = []

    def watched(network: nn.Module, row: tuple[Tensor, Tensor]) -> Tensor:
        heads.append(network.classifier.weight.detach().clone())
        return squared(network, row)

    hl.score(Headed(), rows, "snip", loss=watched)
    found["head"] = heads[-1]
    with pytest.raises(UserError, match="give every process at least one batch"):
        hl.score(network, rows[:rank], loss=squared)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_with_other_batches_get_the_same_scores(tmp_path: Path) -> None:
    multiprocessing.spawn(_own_share, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first.pop("head"), second.pop("head"))
    assert first == second
    assert max(first["snip"].values()) > 0
