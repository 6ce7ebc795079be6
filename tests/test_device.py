"""No step mixes tensors of two devices, and none waits for its device more often than it must.

Tensors on the meta device have no values: mixing them with others, and reading one, raises an error. So they stand in
for a GPU, which no machine of these tests has.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning_fabric.utilities import move_data_to_device

from actions.command.parse import parse_command
from actions.request.elements import request_of
from actions.training.experiment import build
from heterolora.saliency.no_trace import no_trace
from model.task.fine_tuning import FineTuning
from model.task.optimization import build_optimizer
from model.task.scoring import scoring_problem
from tests.quick import some_slow
from tests.synchronisations import PerBatch
from tests.test_divergence import install
from tests.world import (
    World,
    command,
    instruction_folder,
    model_folder,
    run,
    text_folder,
    write_lora,
    write_shortcuts,
)

IN_THE_LIBRARY = "masking_utils"  # transformers asks before a forward pass whether rows are padded
UPPER = """granularity = "layer"
[default]
r = 4
lora_alpha = 8
disable_adapter = true
[model_layer_1.q_proj]
disable_adapter = false
"""


@pytest.fixture(scope="module")
def cases(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[object, ...]]:
    """Name → a command that trains."""
    folder = tmp_path_factory.mktemp("device")
    (folder / "upper.toml").write_text(UPPER)
    lora = ("--load", world.opt, "--pretrained", "--batch-size", 4, "--project-dir", folder, "--lora-config")
    plain = ("--pretrained", "--batch-size", 4, "--project-dir", folder)
    sst2 = ("sst2", "--dataset-saved-path", world.sst2)
    text = ("wikitext2", "--dataset-saved-path", text_folder(folder / "text"), "--max-token-len", 8)
    instructions = ("alpaca", "--dataset-saved-path", instruction_folder(folder / "alpaca", 22), "--max-token-len", 60)
    shortcuts = ("--shortcut-config", write_shortcuts(folder / "shortcut.toml"))
    roberta = model_folder(folder / "roberta", "roberta", "classification", max_position_embeddings=80)
    opt = ("opt_lora", *sst2, *lora, world.lora)
    training = (
        "--imp-source",
        "training",
        "--imp-limit-test-batches",
        4,
        "--realloc-N",
        4,
        "--turn-on-percentile",
        0.5,
    )
    every = write_lora(folder / "every.toml", "q_proj", "v_proj", "w1")
    return {
        "classification": ("train", *opt),
        "roberta": ("train", "roberta_lora", *sst2, *lora, every, "--load", roberta),
        "shortcuts": ("train", "opt_lora_ags", *sst2, *lora, world.lora, *shortcuts),
        "plain": ("train", world.opt, *sst2, *plain),
        "text": ("train", "opt_lora", *text, *lora, world.lora),
        "plain text": ("train", world.opt, *text, *plain),
        "packed": ("train", "opt_lora", *instructions, "--packing", *lora, world.lora),
        "windows": ("train", *opt, "--accumulate-grad-batches", 2, "--precision", "bf16-mixed"),
        "scores": ("train-dyrealloc", "opt_lora", *sst2, *lora, every, *training),
        "prefix": ("train", "opt_lora", *sst2, *lora, folder / "upper.toml", "--cache-frozen-prefix"),
    }


# Case → waits of the library and of the program, if not (2, 2).
WAITS = {"prefix": (4, 4), "packed": (0, 2), "windows": (2, 1)}  # of the prefix, also rows that are not cached yet


@pytest.mark.parametrize(
    "case",
    some_slow(
        ["shortcuts", "packed", "windows", "scores", "classification", "plain", "text", "prefix"],
        quick=["shortcuts", "windows", "scores"],
    ),
)
def test_waits_of_a_step(cases, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether numbers are finite, and the loss for the progress bar."""
    with PerBatch() as found:
        install(monkeypatch, found)
        assert run(*cases[case], "--max-steps", 4, "--realloc-warmup-epochs", 0) == 0
    assert len(found.batches) >= 3
    library, program = WAITS.get(case, (2, 2))
    for batch in found.batches:
        of_library = sum(number for place, number in batch.items() if IN_THE_LIBRARY in place)
        assert of_library <= library, batch
        assert batch.total() - of_library <= program, batch


def on_device(case: tuple[object, ...], device: torch.device) -> tuple[FineTuning, list[dict[str, object]]]:
    """The task of a command, and two training batches."""
    experiment = build(request_of(parse_command(command(*case))))
    batches = [batch for batch, _ in zip(experiment.data.train_dataloader(), range(2), strict=False)]
    experiment.task.loss(batches[0])  # the first pass of a language model compares its logits with those of its head
    experiment.task.to(device)
    batches = [move_data_to_device(batch, device) for batch in batches]
    for batch in batches:
        if batch["attention_mask"].ndim == 2:
            del batch["attention_mask"]  # transformers would read it
    return experiment.task, batches


def step(task: FineTuning, batches: list[dict[str, object]]) -> None:
    names = dict(task.network.named_parameters(remove_duplicate=False))
    optimizer = build_optimizer(dict.fromkeys(names[name] for name in task.trained), task.optimization, task.space)
    task.window.start()
    for batch in batches:
        task.window.add(task.loss(batch)).backward()
    task.window.finish(optimizer)
    optimizer.step()


@pytest.mark.parametrize("case", ["classification", "roberta", "shortcuts", "plain", "text", "plain text", "packed"])
def test_one_device_in_a_step(cases, case: str) -> None:
    more = ("--gradient-checkpointing",) if case in ("shortcuts", "text") else ()
    task, batches = on_device((*cases[case], *more, "--learning-rate", 1e-3), torch.device("meta"))
    step(task, batches)
    if (space := task.space) is not None:
        problem = scoring_problem(task, [], 0.0)
        with no_trace(problem.network, space):
            loss = problem.evaluate(batches[0]).mean
            gradients = torch.autograd.grad(loss, space.parameters, materialize_grads=True)
        assert all(gradient.is_meta for gradient in gradients)


def test_the_network_stays_on_its_device(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning moves it to the CPU after each `fit`, `validate` and `test`, and back for the next one."""
    moved = []
    monkeypatch.setattr(FineTuning, "cpu", lambda task: moved.append(task))
    assert run(*world.training("--max-steps", 1, "--project-dir", tmp_path)) == 0
    assert not moved
