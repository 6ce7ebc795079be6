"""`--model lora` on many architectures: random tiny weights, from their own configuration classes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
import transformers
from packaging.version import Version
from torch import distributed
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedModel

import heterolora as hl
import model.family as families
from heterolora import saliency
from heterolora.elements.adapt import adapt, heads, in_head, placement_of
from heterolora.elements.blocks import blocks_of, has_place
from heterolora.elements.found import family_of
from heterolora.elements.search_space import SearchSpace
from heterolora.elements.task import TASKS
from heterolora.saliency.problem import Batch
from heterolora.saliency.score import score
from model.base_family import tasks_of
from model.checkpoint import BaseSource, ModelRecord
from model.merge import fold, unwrap
from model.packing import packing_fails
from model.peft_format.writing import write_adapter
from model.quantize import check_layers, loading_arguments, put_nf4_layers, quantize
from model.sharding import Sharding, shard
from tests.adapted import Adapted, lora_config, put_into, shortcut_config
from tests.architectures import (
    ARCHITECTURES,
    CLASSIFICATION,
    ENCODER_DECODERS,
    LM,
    REPRESENTATIVES,
    SUMMARIZATION,
    Architecture,
)
from tests.mistakes import complaint, refusal
from tests.scoring import problem
from tests.tiny import tiny_batch, word_tokenizer
from tests.together import assert_same, both, run_commands, together
from tests.world import (
    command,
    metrics_of,
    run,
    same_weights,
    sentences,
    sst2_folder,
    summary_folder,
    text_folder,
    weights,
    write_lora,
)
from tools import export, realloc_lora_rank

every = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
#: Every architecture; all but the representatives in the slow tests.
matrix = pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(each, id=name, marks=() if name in REPRESENTATIVES else pytest.mark.slow)
        for name, each in sorted(ARCHITECTURES.items())
    ],
)


def adapted(architecture: Architecture) -> tuple[PreTrainedModel, SearchSpace]:
    network = architecture.network()
    family = family_of(network, architecture.model_type)
    config = lora_config()
    config = replace(config, sites=dict.fromkeys(architecture.experts.split(), config.default))
    return network, adapt(network, placement_of(network, family, config))


def batch_for(architecture: Architecture) -> dict[str, torch.Tensor]:
    return tiny_batch(padding="right" if architecture.task == CLASSIFICATION else None)


def labels_for(architecture: Architecture, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.zeros(3, dtype=torch.int64) if architecture.task == CLASSIFICATION else batch["input_ids"]


@torch.no_grad()
def logits(network: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return network.eval()(**batch).logits


@every
def test_places_start_step_adapter_and_merge(architecture: Architecture, tmp_path: Path):
    base, batch = architecture.network(), batch_for(architecture)
    network, space = adapted(architecture)
    names = list(dict.fromkeys(element.name for element in space.elements))
    assert names == [*architecture.places.split(), *architecture.experts.split()]
    assert len(space) == len(names) * len(space.blocks)
    assert torch.equal(logits(network, batch), logits(base, batch)), "it starts as the base"

    # A step reaches every element.
    network.train()(**batch, labels=labels_for(architecture, batch)).loss.backward()
    assert all(p.requires_grad == (".low_rank" in name or in_head(name)) for name, p in network.named_parameters())
    assert all(low_rank.B.grad.any() for low_rank in space)
    assert {name for name, p in network.named_parameters() if p.grad is not None} == {
        name for name, p in network.named_parameters() if p.requires_grad
    }
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for low_rank in space:
            low_rank.B.normal_(std=0.1, generator=generator)
    trained = logits(network, batch)
    assert (trained - logits(base, batch)).abs().max() > 1e-3

    # PEFT loads the adapter, and computes the same.
    base.save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    record = ModelRecord("train", {}, BaseSource(str(tmp_path / "base")), "")
    write_adapter(tmp_path / "adapter", network, space, architecture.task, record)
    loaded = peft.PeftModel.from_pretrained(architecture.network(), tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded, batch), trained, rtol=1e-5, atol=1e-5)

    # Merged into the base, it computes the same too.
    transposed = unwrap(network, space)
    fold(space, dict(network.named_parameters()).__getitem__, transposed)
    torch.testing.assert_close(logits(network, batch), trained, rtol=1e-5, atol=1e-5)
    assert network.state_dict().keys() == base.state_dict().keys()


@pytest.mark.parametrize("name", [name for name, each in ARCHITECTURES.items() if each.task == LM])
def test_packing_is_tried(name: str):
    architecture = ARCHITECTURES[name]
    config = architecture.network().config
    before = Version(transformers.__version__) < Version("5.24")  # a packed row of GPT-J had other outputs than alone
    assert (packing_fails(config, LM) is None) == (architecture.packs and not (before and name == "gptj"))


@every
def test_heads_for_tasks(architecture: Architecture):
    config = architecture.network().config
    assert tasks_of(config) == (tuple(TASKS) if architecture.task == LM else ("classification",))
    assert (type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING) == architecture.classifies


def test_tables_name_what_is_found():
    for name in families.names():
        table = families.get(name)
        network = ARCHITECTURES[table.model_types[0]].network()
        found, first = family_of(network, table.model_types[0]), blocks_of(network, table)[0]
        assert table.blocks == found.blocks
        assert table.experts == found.experts
        assert found.linears == {each: path for each, path in table.linears.items() if has_place(first, table, each)}
        assert list(found.linears) == [each for each in table.linears if each in found.linears], "in the same order"


class Commands:
    """The command line on a folder with an architecture and a small data set."""

    def __init__(self, architecture: Architecture, folder: Path) -> None:
        self.architecture, self.runs, self.base = architecture, folder / "runs", folder / "base"
        classifies, summarises = (architecture.task == task for task in (CLASSIFICATION, SUMMARIZATION))
        texts = [*(row["sentence"] for row in sentences(200, seed=0)), "Summarize : Summary Document Article"]
        architecture.network().save_pretrained(self.base)
        two_parts = architecture.model_type in ENCODER_DECODERS
        style = "encoder" if classifies or two_parts else "decoder"
        word_tokenizer(texts, style=style).save_pretrained(self.base)
        make = sst2_folder if classifies else summary_folder if summarises else text_folder
        name = "sst2" if classifies else "xsum" if summarises else "wikitext2"
        rows, length = make(folder / name), () if classifies else ("--max-token-len", 16)
        length = (*length, "--max-target-len", 4) if summarises else length
        self.data = ("--dataset", name, "--dataset-saved-path", rows, "--batch-size", 4, *length)

    def run(self, action: str, project: str, *more: object) -> Path:
        assert run(action, *self.data, "--project-dir", self.runs, "--project", project, *more) == 0
        return self.runs / project

    def check_all(self, tmp_path: Path) -> None:
        """Train, resume, test, score, search, and export merged."""
        lora = write_lora(tmp_path / "lora.toml", *self.names(), lora_dropout=0.1)
        base = ("--load", self.base, "--lora-config", lora)
        trained = self.run("train", "train", *base, "--max-steps", 4)
        last, best = (trained / "checkpoints" / name for name in ("last.ckpt", "best.ckpt"))
        places = self.places()
        assert sum(name.endswith(".A") for name in weights(last)) == places

        cut = self.run("train", "cut", *base, "--max-steps", 2) / "checkpoints" / "last.ckpt"
        assert not same_weights(last, cut)
        assert run("train", "--resume-training", "--load", cut, "--max-steps", 4) == 0
        assert same_weights(last, cut), "a resumed run ends with the same bits"

        measured = metrics_of(trained)
        merged = tmp_path / "merged"
        export.main([str(trained), "--format", "merged", "--output", str(merged)])
        results = {"checkpoint": ("--load", best), "adapter": ("--load", trained / "adapter")}
        for kind, result in {**results, "merged": ("--model", merged)}.items():
            again = metrics_of(self.run("test", f"test-{kind}", *result))
            assert again.keys() & measured.keys()
            for split in measured.keys() & again.keys():
                assert again[split]["loss"] == pytest.approx(measured[split]["loss"], abs=1e-5), kind

        few = ("--importance-test-name", "snip", "--imp-warmup-batches", 2, "--imp-limit-test-batches", 2)
        scored = self.run("imp-test", "scores", *base, *few)
        assert (scored / "scores.toml").read_text().count("score = ") == places
        searched = self.run("train-dyrealloc", "search", *base, *few, "--max-steps", 4, "--realloc-N", 2)
        history = (searched / "reallocation_history.toml").read_text()
        assert all(f'name = "{name}"' in history for name in self.names())

    def names(self) -> list[str]:
        return [*self.architecture.places.split(), *self.architecture.experts.split()]

    def places(self) -> int:
        if self.architecture.model_type in ENCODER_DECODERS:
            return 32
        return len(self.names()) * (1 if self.architecture.model_type == "albert" else 2)


@matrix
def test_every_action(architecture: Architecture, tmp_path: Path):
    Commands(architecture, tmp_path).check_all(tmp_path)


@matrix
def test_every_heuristic(architecture: Architecture):
    network, space = adapted(architecture)
    made = Adapted(network, space, {}).train_b()
    batches = [batch_for(architecture) for _ in range(2)]
    for batch in batches if architecture.task == CLASSIFICATION else ():
        batch["labels"] = torch.tensor([0, 1, 1])
    of_network = problem(made, batches)
    for name in saliency.names():
        if architecture.experts and name in ("activation", "synflow"):
            assert f"{name} cannot score the weights of experts" in refusal(score, name, of_network)
            continue
        if saliency.get(name).needs_table:
            assert "synflow needs a family table" in refusal(score, name, of_network)
            continue
        found = score(name, of_network)
        assert found.keys() == {element.key for element in space.elements}, name
        assert all(map(math.isfinite, found.values())), name


@pytest.mark.slow
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_training_with_a_sharded_base(name: str, tmp_path: Path):
    """It gives the bits of a replicated one."""
    commands = Commands(ARCHITECTURES[name], tmp_path)
    shared = ("train", *commands.data, "--load", commands.base, "--max-steps", 2, "--project-dir", tmp_path)
    together(2, run_commands, both(*shared))
    assert_same(tmp_path)


def step_of(architecture: Architecture, sharded: bool) -> list[torch.Tensor]:
    """Logits, and the gradients of all elements: LoRA, and shortcuts where a table tells the form of the blocks."""
    network, name = architecture.network(), architecture.model_type
    family = families.for_model_type(name) or family_of(network, name)
    shortcut = shortcut_config() if family.has_norms and not family.parallel(network.config) else None
    torch.manual_seed(0)
    space = put_into(network, family, lora_config(), shortcut)
    Adapted(network, space, {}).train_b()
    if sharded:
        shard(network, space, Sharding(2, torch.float32), torch.device("cpu"))
    batch = batch_for(architecture)
    output = network.train()(**batch, labels=labels_for(architecture, batch))
    output.loss.backward()
    return [output.logits.detach(), *(parameter.grad for parameter in space.parameters)]


def steps_of_all() -> dict[str, bool]:
    """`model_type` -> whether a sharded base gives the bits of a replicated one."""
    distributed.init_process_group("gloo")
    return {
        name: all(map(torch.equal, step_of(architecture, sharded=False), step_of(architecture, sharded=True)))
        for name, architecture in ARCHITECTURES.items()
    }


@pytest.mark.slow
def test_a_sharded_base_computes_the_same():
    """On two processes."""
    for found in together(2, steps_of_all):
        assert found == dict.fromkeys(ARCHITECTURES, True)


def packed_as_loaded(network: PreTrainedModel, batch: Batch, model_type: str, folder: Path) -> PreTrainedModel:
    """The network in 4 bits as transformers loads it. It must compute what the same layers do that are packed here."""
    check_layers(network, "nf4", model_type)
    network.save_pretrained(folder)
    loaded = type(network).from_pretrained(folder, dtype=torch.float32, **loading_arguments("nf4", "32"))
    put_nf4_layers(network, "32")
    for module in network.modules():
        quantize(module, torch.device("cpu"))
    # In evaluation mode, bitsandbytes needs wider layers on a CPU. There is no dropout.
    expected = network.train()(**batch).logits
    assert torch.equal(loaded.train()(**batch).logits, expected), "packed here, and by transformers"
    return loaded


@matrix
def test_a_base_in_4_bits(architecture: Architecture, tmp_path: Path):
    """All linear layers are packed, as bitsandbytes packs them when it loads a base. Experts stay as they are."""
    bits = pytest.importorskip("bitsandbytes")
    network, batch = architecture.network(), batch_for(architecture)
    if architecture.model_type == "falcon":
        assert "bitsandbytes packs no layer of 'falcon'" in refusal(check_layers, network, "nf4", "falcon")
        return
    loaded = packed_as_loaded(network, batch, architecture.model_type, tmp_path)
    expected = loaded(**batch).logits
    space = adapt(loaded, placement_of(loaded, family_of(loaded, architecture.model_type), lora_config()))
    assert all(isinstance(loaded.get_submodule(each.module).base, bits.nn.Linear4bit) for each in space.elements)
    every = adapted(architecture)[1].elements
    assert [each.key for each in space.elements] == [each.key for each in every if each.experts == 1]
    output = loaded(**batch, labels=labels_for(architecture, batch))
    assert torch.equal(output.logits, expected), "it starts as the base"
    output.loss.backward()
    assert all(low_rank.B.grad.any() for low_rank in space)


def test_lora_is_the_table_that_fits(tmp_path: Path):
    """`--model lora` has the numbers of `llama_lora`, bit for bit. So has no `--model` at all."""
    commands = Commands(ARCHITECTURES["llama"], tmp_path)
    runs = [
        commands.run("train", f"run{number}", "--load", commands.base, *model, "--max-steps", 2)
        for number, model in enumerate([("--model", "llama_lora"), ("--model", "lora"), ()])
    ]
    first, *others = (folder / "checkpoints" / "last.ckpt" for folder in runs)
    assert all(same_weights(first, other) for other in others)
    assert all(metrics_of(folder) == metrics_of(runs[0]) for folder in runs)
    commands.run("train", "shortcuts", "--load", commands.base, "--model", "lora_ags", "--max-steps", 1)


def test_shortcuts_without_a_table(tmp_path: Path):
    """The form of the blocks is found again by each command."""
    commands = Commands(ARCHITECTURES["starcoder2"], tmp_path)
    base = ("--load", commands.base, "--model", "lora_ags")
    trained = commands.run("train", "trained", *base, "--max-steps", 4)
    last, best = (trained / "checkpoints" / name for name in ("last.ckpt", "best.ckpt"))
    assert sum(".shortcuts." in name and name.endswith(".B") for name in weights(last)) == 7
    assert all(value.any() for name, value in weights(last).items() if name.endswith(".B")), "all were trained"
    cut = commands.run("train", "cut", *base, "--max-steps", 2) / "checkpoints" / "last.ckpt"
    assert run("train", "--resume-training", "--load", cut, "--max-steps", 4) == 0
    assert same_weights(last, cut)
    again = metrics_of(commands.run("test", "test", "--load", best))["test"]["loss"]
    assert again == pytest.approx(metrics_of(trained)["test"]["loss"], abs=1e-5)
    scored = commands.run("imp-test", "scores", *base, "--imp-limit-test-batches", 1)
    assert (scored / "scores.toml").read_text().count("score = ") == 2 * 6 + 7


def test_names_of_places(tmp_path: Path):
    """A place may be given by its name, by the last part of its path, or by its path in the block."""
    commands = Commands(ARCHITECTURES["gpt2"], tmp_path)
    ranks = ("--load", commands.base, "--max-steps", 1)
    chosen = commands.run("train", "by-target", *ranks, "--target", "attn.c_proj,c_fc,c_attn")
    assert places_of(chosen) == in_both("attn.c_proj", "mlp.c_fc", "attn.c_attn")
    assert places_of(commands.run("train", "attention", *ranks, "--target", "attention")) == in_both(
        "attn.c_attn", "attn.c_proj"
    )
    (tmp_path / "lora.toml").write_text(
        'granularity = "layer"\n[default]\nr = 2\nlora_alpha = 4\ndisable_adapter = true\n'
        '[model_layer_1."mlp.c_proj"]\ndisable_adapter = false\n[model_layer_1.c_attn]\ndisable_adapter = false\n'
    )
    given = commands.run("train", "by-file", *ranks, "--lora-config", tmp_path / "lora.toml")
    assert places_of(given) == {"1.mlp.c_proj", "1.attn.c_attn"}
    repeated = commands.run("train", "again", "--config", given / "config.toml")  # which contains the configuration
    assert same_weights(*(folder / "checkpoints" / "last.ckpt" for folder in (given, repeated)))


def test_scores_and_results_become_configurations(tmp_path: Path):
    """Of a model without a table, whose places have names of their own."""
    commands = Commands(ARCHITECTURES["gpt_neox"], tmp_path)
    base, chosen = ("--load", commands.base), tmp_path / "chosen.toml"
    scored = commands.run("imp-test", "scores", *base, "--imp-limit-test-batches", 1)
    realloc_lora_rank.main([str(scored), "--turn-on-percentile", "0.5", "--rank", "2", "--output", str(chosen)])
    trained = commands.run("train", "chosen", *base, "--lora-config", chosen, "--max-steps", 1)
    assert len(places_of(trained, ".layers.")) == 4
    peft_file = tmp_path / "lora.json"
    realloc_lora_rank.main([str(trained), "--format", "peft", "--output", str(peft_file)])
    names = json.loads(peft_file.read_text())["target_modules"]  # those of all blocks are one name
    paths = [path for path, _ in ARCHITECTURES["gpt_neox"].network().named_modules()]
    assert sum(any(path == name or path.endswith(f".{name}") for name in names) for path in paths) == 4


def in_both(*paths: str) -> set[str]:
    return {f"{block}.{path}" for block in range(2) for path in paths}


def places_of(folder: Path, blocks: str = ".h.") -> set[str]:
    """Block number and path inside the block of what was trained."""
    names = (name for name in weights(folder / "checkpoints" / "last.ckpt") if name.endswith(".low_rank.A"))
    return {name.removesuffix(".low_rank.A").split(blocks)[1] for name in names}


def test_mistakes(tmp_path: Path, capfd):
    commands = Commands(ARCHITECTURES["falcon"], tmp_path)
    on_data = [*commands.data, "--load", commands.base]

    def refused(action: str, *more: object) -> str:
        return complaint(capfd, *command(action, *on_data, *more))

    said = refused("train", "--model", "qwen2_lorra")
    assert f"'{commands.base}' is a model of type 'falcon'" in said
    assert "give --model lora, which adapts every architecture; docs/own-model.md" in said
    said = refused("train", "--model", "lora_ags")
    assert "a model of type 'falcon' has no table" in said
    assert "both halves of a block have the same input; give --model lora, or see docs/own-model.md" in said
    assert "synflow needs a table" in refused("imp-test", "--importance-test-name", "synflow")
    assert "--cache-frozen-prefix needs a table" in refused("train", "--cache-frozen-prefix")
    said = refused("train", "--target", "o_proj,c_attn")
    assert "'c_attn' is not known" in said
    (tmp_path / "lora.toml").write_text(
        'granularity = "network"\n[default]\nr = 2\nlora_alpha = 4\n[all_layers.q_prj]\n'
    )
    said = refused("train", "--lora-config", tmp_path / "lora.toml")
    assert f"{tmp_path / 'lora.toml'}: [all_layers.q_prj]: 'q_prj' is not known; did you mean 'q_proj'?" in said


def test_encoders_predict_no_tokens(tmp_path: Path, capfd):
    """They would see the tokens that they predict. The model has a head for it, so transformers would build it."""
    commands = Commands(ARCHITECTURES["electra"], tmp_path)
    words = ("--dataset", "wikitext2", "--dataset-saved-path", text_folder(tmp_path / "text"), "--load", commands.base)
    said = complaint(capfd, *command("train", *words))
    assert "electra models cannot write text, they classify texts; give data with labels" in said


def test_the_head_outside_of_the_base_is_trained(tmp_path: Path):
    """Parts of a head have their own names in some architectures. A frozen random one would be left in the way."""
    network, _ = adapted(ARCHITECTURES["distilbert"])
    assert [type(part).__name__ for part in heads(network)] == ["Linear", "Linear"]
    assert network.pre_classifier.weight.requires_grad
    assert not network.distilbert.embeddings.word_embeddings.weight.requires_grad


def test_experts_are_named(tmp_path: Path, capfd):
    commands = Commands(ARCHITECTURES["qwen3_moe"], tmp_path)
    commands.run("train", "run", "--load", commands.base, "--max-steps", 1)
    said = capfd.readouterr().out
    assert "the experts (experts.gate_up_proj, experts.down_proj) get LoRA only where --target or the LoRA" in said


def test_the_library_names_the_experts_that_it_does_not_score():
    architecture = ARCHITECTURES["qwen3_moe"]
    batch = batch_for(architecture)
    with pytest.warns(UserWarning, match=r"4 weights of experts are not scored: model\.layers\.0\.mlp\.experts"):
        scores = hl.score(architecture.network(), [{**batch, "labels": batch["input_ids"]}])
    assert len(scores.scored) == 8
