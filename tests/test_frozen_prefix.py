"""--cache-frozen-prefix: the same weights as without it, and no block below the lowest element runs twice for a row."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from actions.command.parse import parse_command
from actions.request.elements import request_of
from actions.training.experiment import build
from dataset.batching.packing import pack
from heterolora.common.errors import UserError
from heterolora.elements.element import PROJECTIONS
from model.task.frozen_prefix import FrozenPrefix
from model.task.row_cache import RowCache
from options.ranges import byte_size, bytes_of
from tests.adapted import VARIANTS, Adapted, adapted, gradients, lora_config, shortcut_config
from tests.quick import some_slow
from tests.tiny import PAD, VOCABULARY, tiny_batch
from tests.world import World, command, model_folder, run, run_apart, weights

LAYERS = 4
ROOM = 10**8


def a_batch(rows: list[int], length: int) -> dict[str, torch.Tensor]:
    """Rows of one small data set, padded to `length`: row i has 4 + i tokens."""
    whole = tiny_batch(rows=6, length=9, padding=None)
    mask = torch.arange(length) < torch.tensor(rows)[:, None] + 4
    ids = whole["input_ids"][rows][:, :9]
    ids = torch.nn.functional.pad(ids, (0, max(0, length - 9)))[:, :length]
    return {"input_ids": ids.masked_fill(~mask, 1), "attention_mask": mask.long()}


def prefix_of(model: Adapted, cache: RowCache | None = None, notes: list[str] | None = None) -> FrozenPrefix:
    return FrozenPrefix(
        model.network, model.space, cache or RowCache(ROOM), (notes if notes is not None else []).append
    )


def step(model: Adapted, prefix: FrozenPrefix | None, rows: list[int], length: int) -> dict[str, torch.Tensor]:
    """The gradients of a batch, and its loss."""
    batch = a_batch(rows, length)
    model.network.zero_grad()

    def loss() -> torch.Tensor:
        logits = model.network(**batch).logits
        if logits.ndim == 3:  # of tokens: padding has no loss
            logits = logits * batch["attention_mask"].unsqueeze(-1)
        return logits.square().sum() / logits.numel()

    if prefix is None:
        value = loss()
    else:
        with prefix.reused({**batch, "index": torch.tensor(rows)}, batch):
            value = loss()
    value.backward()
    return {**gradients(model.space), "loss": value.detach()}


def counted(model: Adapted) -> list[int]:
    """Grow by the number of a block whenever the block runs."""
    ran: list[int] = []
    for layer, block in enumerate(model.space.blocks):
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    return ran


@pytest.mark.parametrize("variant", some_slow(VARIANTS, quick=["opt-pre", "roberta", "gemma"]))
def test_gradients_are_those_without_it(variant: str) -> None:
    task = "causal_language_modeling" if variant in ("opt-post", "llama") else "classification"
    shortcut = shortcut_config(renormalize=variant == "opt-pre")
    model = adapted(variant, task, lora_config(), shortcut, num_hidden_layers=LAYERS).train_b()
    model.network.double().train()  # rounding differs with the rows that are computed together
    prefix, ran = prefix_of(model), counted(model)
    names = {element.key for element in model.space.elements}
    upper = {key for key in names if key.startswith("layer_3")} | {"layer_2.w1"}
    batches = [([0, 1, 2], 6), ([2, 5], 9), ([1, 0], 5), ([5, 3, 0], 12), ([3], 7)]
    # A lower block later, and back; shortcut2 reads the block before; at last the head alone trains.
    choices = [upper, upper - {"layer_2.w1"}, {"layer_1.residual1"}, upper, {"layer_0.q_proj"}, set()]
    for keys in choices if task == "classification" else choices[:-1]:
        model.space.switch(keys)
        for rows, length in batches:
            expected, found = step(model, None, rows, length), step(model, prefix, rows, length)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        if keys == upper:
            ran.clear()
            step(model, prefix, [0, 5, 1, 2, 3], 11)
            assert ran == [2, 3], "every row is in the cache"


def test_rows_that_are_packed_in_other_ways() -> None:
    model = adapted("llama", "causal_language_modeling", lora_config(), num_hidden_layers=LAYERS).train_b()
    model.network.double().train()
    model.space.switch({"layer_2.q_proj", "layer_3.w1"})
    prefix, ran = prefix_of(model), counted(model)
    ids = torch.randint(3, VOCABULARY, (6, 9), generator=torch.Generator().manual_seed(0))
    data = [
        {"input_ids": ids[row, : 4 + row].tolist(), "context": 1, "length": 4 + row, "weight": 1} for row in range(6)
    ]
    for rows, size in (([0, 1, 2], 12), ([4, 0, 5], 13), ([2, 1], 20), ([5, 2, 3, 0], 9), ([3, 0, 1, 5, 4], 16)):
        batch = {**pack([data[row] for row in rows], size, PAD), "index": torch.tensor(rows)}
        inputs = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask")}
        found = []
        for context in (nullcontext(), prefix.reused(batch, inputs)):
            model.network.zero_grad()
            ran.clear()
            with context:
                logits = model.network(**inputs).logits
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
            loss.backward()
            found.append({**gradients(model.space), "loss": loss.detach()})
        torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)
    assert ran == [2, 3], "every row is in the cache"


def test_dropout_that_a_later_choice_turns_off_is_told() -> None:
    model, notes = adapted("roberta", lora=lora_config(), num_hidden_layers=LAYERS, hidden_dropout_prob=0.1), []
    prefix = prefix_of(model, notes=notes)
    for key in ("layer_0.q_proj", "layer_2.q_proj", "layer_1.q_proj", "layer_0.q_proj"):
        model.space.switch({key})
        step(model, prefix, [0, 1], 6)
    assert ["saves no time" in note for note in notes] == [True, False]
    assert notes[1].endswith("(now the first 2 of 4)")


def test_only_the_rows_that_are_missing_are_computed() -> None:
    model = adapted("roberta", lora=lora_config(), num_hidden_layers=LAYERS).train_b()
    model.space.switch({"layer_2.q_proj"})
    said: list[int] = []
    prefix = prefix_of(model, RowCache(2 * 32 * 4 * 5, when_full=said.append))  # 10 tokens
    seen: list[int] = []
    computed: list[int] = []
    model.space.blocks[0].register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    for rows in ([0, 1], [2, 3], [1, 0, 3, 2], [0, 1]):
        expected = step(model, None, rows, 8)
        seen.clear()
        torch.testing.assert_close(step(model, prefix, rows, 8), expected, rtol=1e-5, atol=1e-6)
        computed.append(sum(seen))
    assert computed == [2, 2, 2, 0]
    assert said == [2]


def test_rows_of_another_depth_make_room(tmp_path: Path) -> None:
    row = torch.arange(8.0)  # 32 bytes
    for folder in (None, tmp_path):
        cache = RowCache(100, folder)
        cache.put(2, 0, row), cache.put(2, 1, row + 1)
        assert torch.equal(cache.at(2)[1], row + 1)
        cache.put(3, 0, row)
        assert set(cache.at(3)) == {0}
        assert not cache.at(2), "they were dropped"
    assert not list(tmp_path.iterdir()), "the file has no name"


# Runs


CACHE = "--cache-frozen-prefix"


@dataclass(frozen=True)
class Deep:
    """A RoBERTa of four blocks, whose elements are in the upper two, and its runs."""

    world: World
    folder: Path

    def command(self, action: str, project: str, *more: object) -> tuple[object, ...]:
        """A run of two epochs."""
        model = (action, "roberta_lora", *self.world.training()[2:], "--load", self.folder / "base")
        place = ("--lora-config", self.folder / "upper.toml", "--project-dir", self.folder, "--project", project)
        options = ("--max-epochs", 2, "--optimizer", "sgd", "--learning-rate", 0.05)
        return (*model, *place, *options, *more)

    def trained(self, action: str, project: str, *more: object) -> dict[str, torch.Tensor]:
        """The weights at the end of the run."""
        assert run(*self.command(action, project, *more)) == 0
        return weights(self.checkpoint(project))

    def checkpoint(self, project: str) -> Path:
        return self.folder / project / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def deep(world: World, tmp_path_factory: pytest.TempPathFactory) -> Deep:
    folder = tmp_path_factory.mktemp("deep")
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    for name, keys in (("base", {}), ("base-with-dropout", dropout)):
        model_folder(folder / name, "roberta", "classification", num_hidden_layers=LAYERS, num_labels=2, **keys)
    lines = ['granularity = "layer"', "[default]", "r = 4", "lora_alpha = 8", "lora_dropout = 0.1"]
    for layer, name in product(range(LAYERS), PROJECTIONS):
        off = layer < 2 or name not in ("v_proj", "w1")
        lines += [f"[model_layer_{layer}.{name}]", f"disable_adapter = {str(off).lower()}"]
    (folder / "upper.toml").write_text("\n".join(lines) + "\n")
    (folder / "no-dropout.toml").write_text("\n".join(lines).replace("0.1", "0.0") + "\n")
    return Deep(world, folder)


@pytest.mark.slow
def test_a_run_with_reallocations_has_the_weights_of_one_without_it(deep: Deep, capsys) -> None:
    search = ("--realloc-N", 6, "--imp-limit-test-batches", 3, "--turn-on-percentile", 0.5)
    windows = ("--accumulate-grad-batches", 2, "--gradient-checkpointing")
    plain = deep.trained("train-dyrealloc", "plain", *search, *windows)
    cached = deep.trained("train-dyrealloc", "cached", *search, *windows, CACHE)
    torch.testing.assert_close(cached, plain, rtol=0, atol=1e-6)
    assert "dropout" not in capsys.readouterr().out, "there is none to turn off"


def test_what_is_kept_changes_no_weight(deep: Deep, tmp_path: Path, capsys) -> None:
    """Dropout is off below and on above, whether rows are kept in a file, partly kept, or computed after a resume."""
    base = ("--load", deep.folder / "base-with-dropout", CACHE)
    in_file = deep.trained("train", "in-file", *base, "--cache-folder", tmp_path)
    assert "turns dropout off in the embeddings and in the blocks below" in " ".join(capsys.readouterr().out.split())
    deep.trained("train", "partly", *base, "--cache-limit", "2KiB", "--max-epochs", 1)
    assert "--cache-limit 2KiB is full with" in capsys.readouterr().out
    assert run("train", "--load", deep.checkpoint("partly"), "--resume-training", "--max-epochs", 2) == 0
    torch.testing.assert_close(weights(deep.checkpoint("partly")), in_file, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_each_of_two_processes_keeps_the_rows_that_it_sees(deep: Deep) -> None:
    lora = ("--lora-config", deep.folder / "no-dropout.toml")
    one = deep.trained("train", "one", CACHE, *lora)
    finished = run_apart(*deep.command("train", "two", CACHE, *lora, "--batch-size", 2, "--num-devices", 2))
    assert finished.returncode == 0, finished.stderr
    torch.testing.assert_close(weights(deep.checkpoint("two")), one, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--cache-limit", "4 pounds"), "--cache-limit 4 pounds is out of range; give a size such as 4GiB"),
        (("--cache-folder", "nowhere"), "--cache-folder 'nowhere' is no folder; give an existing folder"),
    ],
)
def test_mistakes(deep: Deep, capfd, more: tuple, expected: str) -> None:
    assert run(*deep.world.training(CACHE, *more)) == 2
    assert f"error: {expected}" in capfd.readouterr().err


def test_blocks_that_are_left_out_at_random_are_refused(world: World, tmp_path: Path, capfd) -> None:
    base = model_folder(tmp_path / "opt", layerdrop=0.1)
    assert run(*world.training(CACHE, "--load", base)) == 2
    assert "error: --cache-frozen-prefix does not work with layerdrop = 0.1" in capfd.readouterr().err
    request = request_of(
        parse_command(command(*world.training("--load", base, "--num-devices", 2, "--strategy", "fsdp")))
    )
    with pytest.raises(UserError, match=r"--strategy fsdp does not work with layerdrop = 0\.1"):
        build(request)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4GiB", 4 * 2**30),
        ("1.5 GB", 1_500_000_000),
        ("500mb", 500_000_000),
        ("7B", 7),
        ("2 kib", 2048),
        ("1000000", 10**6),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert bytes_of(text) == expected
    assert byte_size.valid(text)


@pytest.mark.parametrize("text", ["", "GiB", "-1", "0", "24", "999999", "0.5B", "1e9", "4 Gib b", "٣", "9" * 30])
def test_no_sizes(text: str) -> None:
    assert not byte_size.valid(text)
