"""Kernels of the hub: none without being asked, and the same scores of a network that has them.

No hub is reached. `Cut` stands in for a kernel of inference that has no backward pass, and `Counted` for one of
training. transformers and the package `kernels` put them in place of layers on a CPU as they do others on a GPU.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import AutoConfig, PreTrainedModel, Trainer, TrainingArguments

import heterolora as hl
from dataset import registry
from heterolora.lightning import Reallocate as ReallocateInLightning
from heterolora.transformers import Reallocate
from model.load import load_base, load_config
from tests.mistakes import complains, refused
from tests.test_architecture import product_files
from tests.tiny import tiny_batch, tiny_network
from tests.trainer import quiet_trainer
from tests.world import ROOT, World, metrics_of, model_folder, run, weights

kernels = pytest.importorskip("kernels", reason="kernels is not installed: transformers asks for it from 5.25 on")

needs_the_mode = pytest.mark.skipif(
    not hasattr(PreTrainedModel, "kernels_mode"), reason="a network of transformers before 5.25 does not say its mode"
)


class Cut(nn.Module):
    """The activation, without a backward pass."""

    def forward(self, input: Tensor) -> Tensor:
        return F.silu(input.detach())


class Counted(nn.Module):
    """The activation with a backward pass."""

    def forward(self, input: Tensor) -> Tensor:
        Repository.calls += input.requires_grad
        return F.silu(input)


class Repository:
    """What the mapping of kernels names: it loads a layer."""

    calls = 0

    def __init__(self, layer: type[nn.Module]) -> None:
        self.layer = layer

    def load(self) -> type[nn.Module]:
        return self.layer


@pytest.fixture
def registered() -> Iterator[None]:
    """On a CPU, the activation of Llama has a kernel of training and one of inference."""
    repositories = {kernels.Mode.INFERENCE: Repository(Cut), kernels.Mode.TRAINING: Repository(Counted)}
    Repository.calls = 0
    with kernels.use_kernel_mapping({"SiLU": {"cpu": repositories}}):
        yield


def llama(with_kernels: bool, training: bool = False) -> Any:
    network = tiny_network("llama", "causal_language_modeling").train(training)
    if with_kernels:
        network.set_use_kernels(True)
    return network


def batches() -> list[dict[str, Tensor]]:
    return [{**(batch := tiny_batch(seed=seed)), "labels": batch["input_ids"]} for seed in (1, 2)]


def reaches_the_gate(network: nn.Module) -> bool:
    """Whether a gradient goes through the activation."""
    inputs = next(module for name, module in network.named_modules() if name.endswith("gate_proj")).weight
    inputs.requires_grad_(True)
    (gradient,) = torch.autograd.grad(network(**batches()[0]).loss, [inputs], materialize_grads=True)
    return bool(gradient.any())


@pytest.mark.usefixtures("registered")
class TestScores:
    def test_the_stand_in_cuts_gradients(self) -> None:
        assert not reaches_the_gate(llama(with_kernels=True))
        assert reaches_the_gate(llama(with_kernels=True, training=True))

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("heuristic", ["grad_norm", "snip", "weight_grad_norm"])
    def test_they_are_those_without_kernels(self, heuristic: str, training: bool) -> None:
        network = llama(True, training)
        found = hl.score(network, batches(), heuristic)
        expected = hl.score(llama(False, training), batches(), heuristic)
        assert [item.score for item in found.scored] == [item.score for item in expected.scored]
        assert all(item.score > 0 for item in found.scored if "gate" in item.element.key)
        assert all(module.training is training for module in network.modules())

    @pytest.mark.parametrize("training", [False, True])
    def test_the_kernels_of_before_are_in_place_again(self, training: bool) -> None:
        network = llama(True, training)
        hl.score(network, batches())
        assert reaches_the_gate(network) is training
        assert (Repository.calls > 0) is training
        assert network.use_kernels

    def test_functions_that_are_exchanged(self) -> None:
        """Such as rotary embeddings, which belong to a layer without being one of its modules."""

        class Rotated(nn.Module):
            def forward(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
                return q.detach() * 0, k.detach() * 0

        expected = hl.score(llama(False), batches())
        with kernels.use_kernel_mapping({"rotary_pos_emb": {"cpu": {kernels.Mode.INFERENCE: Repository(Rotated)}}}):
            network = llama(True)
            cut = network(**batches()[0]).logits
            found = hl.score(network, batches())
            assert torch.equal(network(**batches()[0]).logits, cut)
        assert not torch.equal(cut, llama(False)(**batches()[0]).logits)
        assert [item.score for item in found.scored] == [item.score for item in expected.scored]

    def test_a_layer_with_a_hook_of_accelerate(self) -> None:
        from accelerate.hooks import ModelHook, add_hook_to_module

        network = llama(False)
        for module in network.modules():
            if type(module).__name__ == "SiLUActivation":
                add_hook_to_module(module, ModelHook())
        network.set_use_kernels(True)
        assert not reaches_the_gate(network)
        expected = hl.score(llama(False), batches())
        assert [item.score for item in hl.score(network, batches()).scored] == [item.score for item in expected.scored]
        assert not reaches_the_gate(network)


class Switching(nn.Module):
    """`eval()` does more than to set modes, as that of libraries which merge adapters or exchange kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.fast = False
        self.kept: list[Tensor] = []

    def train(self, mode: bool = True) -> Switching:
        self.fast = not mode
        if mode:
            self.kept.clear()
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner[1](self.inner[0](x))
        if not self.training:
            self.kept.append(hidden)
        return self.inner[2](hidden.detach() if self.fast else hidden)


@pytest.mark.parametrize("mode", [True, False])
def test_a_network_whose_modes_do_more(mode: bool) -> None:
    torch.manual_seed(3)
    network, x = Switching().train(mode), torch.randn(5, 4)
    network.inner[1].train(not mode)  # a mode of its own
    plain = copy.deepcopy(network.inner).eval()
    found, expected = (
        hl.score(each, [x], "grad_norm", loss=lambda each, x: each(x).square().mean()) for each in (network, plain)
    )
    assert [item.score for item in found.scored] == [item.score for item in expected.scored]
    assert all(item.score > 0 for item in found.scored)
    assert (network.training, network.inner[1].training, network.fast) == (mode, not mode, not mode)
    assert not network.kept


# ---- the trainers of others


def adapter(with_kernels: bool) -> Any:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "gate_proj"], task_type="CAUSAL_LM")
    return peft.get_peft_model(llama(with_kernels), config)


def rows() -> list[dict[str, Tensor]]:
    return [{name: value[0] for name, value in batch.items()} for batch in batches() * 4]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("schedule", ["fixed", "shrink"])
def test_reallocations_in_a_trainer_are_those_without_kernels(schedule: Any, tmp_path: Path) -> None:
    found = {}
    for with_kernels in (True, False):
        callback = Reallocate(share=0.5, schedule=schedule, every=2, batches=2)
        options = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 1, "report_to": "none", "use_cpu": True}
        arguments = TrainingArguments(str(tmp_path / str(with_kernels)), per_device_train_batch_size=2, **options)
        data = {"train_dataset": rows(), "eval_dataset": rows()}
        Trainer(adapter(with_kernels), arguments, **data, callbacks=[callback]).train()
        found[with_kernels] = [(each.step, each.on, each.scores) for each in callback.search.history.decisions]
    assert len(found[True]) > 1
    assert found[True] == found[False]


class Module(pl.LightningModule):
    def __init__(self, with_kernels: bool) -> None:
        super().__init__()
        self.network = adapter(with_kernels).train()

    def forward(self, **batch: Tensor) -> Any:
        return self.network(**batch)

    def training_step(self, batch: Any) -> Tensor:
        return self(**batch).loss

    def validation_step(self, batch: Any) -> Tensor:
        return self(**batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def in_lightning(folder: Path, module: Module, schedule: Any) -> tuple[list[Any], dict[str, Tensor]]:
    """The decisions of a search with a validation after each step, and the weights at its end."""
    callback = ReallocateInLightning(share=0.5, schedule=schedule, every=2, batches=2, compact=False)
    options = {"max_steps": 6, "val_check_interval": 1, "limit_val_batches": 1, "default_root_dir": folder}
    data = DataLoader(rows(), batch_size=2)
    quiet_trainer([callback], **options).fit(module, data, data)
    decisions = [(each.step, each.on, each.scores) for each in callback.search.history.decisions]
    return decisions, {name: value for name, value in module.state_dict().items() if "lora_" in name}


@needs_the_mode
@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("schedule", ["fixed", "shrink"])
def test_reallocations_in_lightning_are_those_without_kernels(schedule: Any, tmp_path: Path) -> None:
    """Lightning restores modes after a validation without exchanging kernels."""
    found, trained = in_lightning(tmp_path / "with", Module(True), schedule)
    expected, weights = in_lightning(tmp_path / "without", Module(False), schedule)
    assert len(found) > 1
    assert found == expected
    assert all(torch.equal(value, trained[name]) for name, value in weights.items())
    assert Repository.calls > 0


@pytest.mark.usefixtures("registered")
def test_a_network_that_does_not_say_which_kernels_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in transformers before 5.25."""
    module = Module(True)
    monkeypatch.setattr(PreTrainedModel, "kernels_mode", None, raising=False)
    with refused("computes with kernels of the hub", "use_kernels=False"):
        in_lightning(tmp_path, module, "shrink")


# ---- the program


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("kernels") / "llama", "llama")


def training(base: Path, world: World, folder: Path, project: str, *more: object) -> tuple[object, ...]:
    data = ("sst2", "--dataset-saved-path", world.sst2, "--load", base, "--target", "w1,gate", "--rank", 2)
    return ("train", "lora", *data, "--max-epochs", 2, "--project-dir", folder, "--project", project, *more)


@pytest.mark.usefixtures("registered")
def test_a_loaded_base_has_none(base: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def spy(*arguments: Any, **named: Any) -> Any:
        loaded.append(load_base(*arguments, **named))
        return loaded[-1]

    monkeypatch.setattr("actions.training.experiment.load_base", spy)
    assert run(*training(base, world, tmp_path, "plain")) == 0
    assert [each.network.use_kernels for each in loaded] == [False]
    assert Repository.calls == 0


@pytest.mark.usefixtures("registered")
def test_a_run_with_kernels_trains_through_them_also_after_a_validation(
    base: Path, world: World, tmp_path: Path
) -> None:
    assert run(*training(base, world, tmp_path, "with", "--hub-kernels")) == 0
    calls = Repository.calls
    assert run(*training(base, world, tmp_path, "without")) == 0
    steps = 2 * -(-45 // 8)
    assert calls == 2 * steps  # two blocks
    assert Repository.calls == calls
    one, other = (weights(tmp_path / name / "checkpoints/last.ckpt") for name in ("with", "without"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert metrics_of(tmp_path / "with") == metrics_of(tmp_path / "without")


@pytest.mark.usefixtures("registered")
def test_a_kernel_that_cannot_be_loaded(
    base: Path, world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Repository) -> type[nn.Module]:
        raise ValueError("Cannot reach the hub. Check it.")

    monkeypatch.setattr(Repository, "load", fails)
    given = training(base, world, tmp_path, "unreached", "--hub-kernels")
    found = "the kernels of the hub cannot be loaded (Cannot reach the hub)"
    complains(capfd, found, "leave out --hub-kernels", *given)


@pytest.mark.parametrize(
    ("action", "more", "found"),
    [
        ("imp-test", (), "imp-test does not use --hub-kernels"),
        ("train-dyrealloc", (), "train-dyrealloc does not use --hub-kernels"),
        ("train", ("--compile",), "--hub-kernels was not tested with --compile"),
    ],
)
def test_what_it_is_not_used_with(
    base: Path, world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str], action: str, more: Any, found: str
) -> None:
    _, *given = training(base, world, tmp_path, "refused", "--hub-kernels", *more)
    complains(capfd, found, "leave", action, *given)


def test_flash_attention_that_would_be_a_kernel_of_the_hub(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "num_local_experts": 2}
    AutoConfig.for_model("gpt_oss", vocab_size=8, intermediate_size=8, **sizes).save_pretrained(tmp_path)
    with refused("would download and run", "use --attention sdpa"):
        load_config(str(tmp_path), registry.get("wikitext2"), "flash_attention_2")


def test_every_call_that_loads_a_model_says_that_it_wants_none() -> None:
    lacking = []
    for path in (*product_files(), *sorted((ROOT / "examples").rglob("*.py"))):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and _loads_a_model(call) and not _says_so(call):
                lacking.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert not lacking


def _loads_a_model(call: ast.Call) -> bool:
    is_named = isinstance(call.func, ast.Attribute) and call.func.attr == "from_pretrained"
    return is_named and not ast.unparse(call.func.value).endswith(("Tokenizer", "Config"))


def _says_so(call: ast.Call) -> bool:
    return any(keyword.arg == "use_kernels" for keyword in call.keywords)
