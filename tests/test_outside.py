"""Files from outside: whatever is in them, the answer is one line, soon, and no code of theirs runs."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import random
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from actions.command.options_file import read_options
from actions.result.metrics_file import read_metrics
from heterolora.choosing import history, scores
from heterolora.common import patterns
from heterolora.common.errors import DivergenceError, NotFiniteError, UserError
from heterolora.common.outside import read_json, read_text, read_toml, reading
from heterolora.elements.config import load
from heterolora.elements.element import Element, Settings
from heterolora.elements.peft_config import peft_config
from heterolora.elements.targets import lora_elements
from model.checkpoint import read_checkpoint, read_state_dict
from model.peft_format.adapter import read_adapter
from model.peft_format.settings import read_settings
from tests.mistakes import complaint, refusal
from tests.test_architecture import product_files
from tests.world import ROOT, World, command, main
from tools.reporting.run import read_runs
from tools.studies.spec import read_study

FIXTURES = ROOT / "tests" / "fixtures" / "runs"


def progress_of(contents: dict) -> dict:
    return contents["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]


# The name of a document, and what reads it.
READERS: list[tuple[str, Callable[[Path], object]]] = [
    ("lora.toml", lambda path: load(path, "lora")),
    ("options.toml", read_options),
    (history.HISTORY, lambda path: history.read(path.parent)),
    ("scores.toml", scores.read),
    ("study.toml", read_study),
    ("adapter_config.json", read_settings),
]
NO_DOCUMENTS = [
    (b"\xff\xfe\x00", "is not UTF-8 text"),
    (b"seed =", "is not valid"),
    (b"seed = --1", "is not valid"),
    (b"seed = 1\nseed = 2", "is not valid"),
    (b"a = [", "is not valid"),
    (b"[" * 10**5, "is not valid"),
]


class TestDocuments:
    @pytest.mark.parametrize(
        "text",
        [
            ".".join("a" * 10_000) + " = 1",  # tomllib would need 400 MB
            "[" + ".".join(["'a.b'"] * 40) + "]",
            "a = " + "1" * 1_000_000,
            "a = " + "[" * 100_000,
            "a = 0x" + "f" * 10_000,
        ],
        ids=["dotted key", "dotted table", "digits", "nesting", "hexadecimal"],
    )
    def test_toml_that_would_take_all_memory(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "x.toml").write_text(text)
        assert "not valid TOML" in refusal(read_toml, tmp_path / "x.toml", "the file", "give another")

    def test_usual_toml_is_not_taken_for_that(self, tmp_path: Path) -> None:
        document = {"module": ".".join(["a"] * 40), "x": "." * 9000, "hash": "0f" * 2000}
        (tmp_path / "x.toml").write_text("".join(f"{key} = {value!r}\n" for key, value in document.items()))
        assert read_toml(tmp_path / "x.toml", "the file", "") == document

    def test_a_file_that_is_too_large(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_text("x" * 1001)
        assert "more than the 1,000 bytes" in refusal(read_text, tmp_path / "x", "the file", "", largest=1000)

    def test_a_device_without_an_end(self) -> None:
        assert "'/dev/zero' is not a regular file" in refusal(read_text, "/dev/zero", "the file", "")

    @pytest.mark.parametrize(("name", "read"), READERS)
    def test_what_no_reader_takes(self, tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
        path = tmp_path / name
        for _ in ("missing", "folder"):
            assert f"'{path}' (" in refusal(read, path)
            path.mkdir(exist_ok=True)
        path.rmdir()
        for content, found in NO_DOCUMENTS:
            path.write_bytes(content)
            line = refusal(read, path)
            assert f"'{path}' {found}" in line
            assert "; " in line
        path.unlink()
        os.mkfifo(path)
        assert f"'{path}' is not a regular file" in refusal(read, path)

    def test_a_pipe_in_the_folder_of_a_model(self, world: World, tmp_path: Path, capfd) -> None:
        folder = shutil.copytree(world.opt, tmp_path / "opt")
        for name in ("tokenizer.json", "model.safetensors", "config.json"):
            (folder / name).unlink()
            os.mkfifo(folder / name)
            line = complaint(capfd, *command(*world.training("--load", folder, "--project-dir", tmp_path / "runs")))
            assert f"'{folder / name}' is not a regular file" in line
            (folder / name).unlink()
            shutil.copyfile(world.opt / name, folder / name)

    def test_json_that_is_no_object(self, tmp_path: Path) -> None:
        (tmp_path / "x.json").write_text("[1]")
        assert "holds a list" in refusal(read_json, tmp_path / "x.json", "the file", "give another")

    def test_a_panic_of_a_library_in_rust(self) -> None:
        panic = type("PanicException", (BaseException,), {})
        with pytest.raises(UserError), reading("the file", "x", ""):
            raise panic
        with pytest.raises(KeyboardInterrupt), reading("the file", "x", ""):
            raise KeyboardInterrupt

    @pytest.mark.parametrize(
        "text",
        [
            'granularity = "network"\n["line\\nbreak".q_proj]\nr = 1',
            'granularity = "network"\n[default]\nr = 0x' + "f" * 4000,
            'granularity = "network"\n[default]\nr = ' + "[" * 300 + "]" * 300,
            f'granularity = "network"\n{"x" * 4000}{"y" * 900} = 1',
            'granularity = "layer"\n[model_layer_99999999999999999999.q_proj]\nr = 1',
            'granularity = "layer"\n[default]\nlora_alpha = 0x' + "f" * 400,
        ],
    )
    def test_any_value_makes_a_short_line(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "x.toml").write_text(text)
        refusal(load, tmp_path / "x.toml", "lora")


ROW = {"layer": 0, "name": "q_proj", "score": 1.0, "on": True}


class TestHistories:
    @pytest.mark.parametrize(
        "change",
        [
            {"layer": "0"},
            {"layer": -1},
            {"layer": 10**12},
            {"name": 3},
            {"score": "x"},
            {"score": True},
            {"on": 1},
            {"x": 1},
        ],
        ids=str,
    )
    def test_a_wrong_element(self, tmp_path: Path, change: dict) -> None:
        self.refused(tmp_path, [{**ROW, **change}])

    def test_other_mistakes(self, tmp_path: Path) -> None:
        assert "twice" in self.refused(tmp_path, [ROW, ROW])
        self.refused(tmp_path, [])
        self.refused(tmp_path, [3])
        self.refused(tmp_path, [ROW], epoch="0")
        self.refused(tmp_path, [ROW], step=-1)

    def refused(self, folder: Path, rows: list, **more: object) -> str:
        import toml

        table = {"epoch": 0, "step": 0, **more}
        inline = ", ".join(
            toml.TomlEncoder().dump_inline_table(row).strip() if isinstance(row, dict) else str(row) for row in rows
        )
        lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        (folder / history.HISTORY).write_text("\n".join(["[dyrealloc_0]", *lines, f"elements = [{inline}]"]))
        return refusal(history.read, folder)


class TestPatterns:
    @pytest.mark.parametrize("pattern", ["(a|aa)+b", "(.*)*.*(.*)*x{3}y", r"(?:(?:\w+)+\.)+!"])
    def test_none_runs_for_long(self, pattern: str) -> None:
        network = nn.ModuleDict({"a" * 60: nn.Linear(2, 2)})
        started = time.monotonic()
        try:
            lora_elements(network, pattern, Settings(1, 1.0))
        except UserError as error:
            assert "takes too long" in str(error) or "matches none" in str(error)  # noqa: PT017
        assert time.monotonic() - started < 20

    @pytest.mark.parametrize(
        "pattern", ["(", "x{e<=1}", "[[:alpha:]]", r"\p{L}", "(" * 5000, "x" * 200_000, "a{99999999999}"]
    )
    def test_what_is_no_expression(self, pattern: str) -> None:
        refusal(lora_elements, nn.ModuleDict({"q": nn.Linear(2, 2)}), pattern, Settings(1, 1.0))

    @pytest.mark.parametrize(
        "pattern",
        [
            r".*layers\.1\..*(q_proj|fc1)",
            r"(?i).*Q_PROJ",
            r"(?!.*k_proj).*_proj$",
            r"model.\w+\.layers\.[0-9]{1,2}\.fc1",
            ".*",
        ],
    )
    @pytest.mark.parametrize(
        "path", ["model.decoder.layers.1.self_attn.q_proj", "model.decoder.layers.10.fc1", "score"]
    )
    def test_they_match_as_re_does(self, pattern: str, path: str) -> None:
        assert bool(patterns.match(pattern, path)) == bool(re.match(pattern, path))
        assert bool(patterns.match(pattern, path, full=True)) == bool(re.fullmatch(pattern, path))

    @pytest.mark.parametrize(
        "values",
        [
            {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "(layers|h)"},
            {"target_modules": ["model.layers.0.q_proj", "fc1"], "layers_to_transform": 1},
            {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": ["blocks", "layers"]},
            {"target_modules": ["q_proj", "score"], "modules_to_save": ["score|fc1"]},
            {"target_modules": r".*(q_proj|fc1)", "exclude_modules": r"model\.layers\.1\..*"},
        ],
        ids=str,
    )
    def test_targets_are_those_of_peft(self, tmp_path: Path, values: dict) -> None:
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **values}))
        settings, theirs = read_settings(tmp_path / "adapter_config.json"), peft.LoraConfig(**values)
        for path in (
            "model.layers.0.q_proj",
            "model.layers.1.q_proj",
            "layers.1.q_proj",
            "model.layers.1.fc1",
            "score",
        ):
            found = check_target_module_exists(theirs, path)
            assert settings.targets(path) == (bool(found) and type(found).__name__ != "_ExcludedModule"), path

    @pytest.mark.parametrize(
        "change",
        [
            {"target_modules": {"a": 1}},
            {"target_modules": [3]},
            {"target_modules": "("},
            {"modules_to_save": "score"},
            {"layers_to_transform": [-1]},
            {"layers_to_transform": "1"},
            {"layers_pattern": ["("]},
            {"revision": 3},
            {"use_rslora": "yes"},
            {"rank_pattern": {"q_proj": 10**30}},
            {"lora_alpha": 10**400},
            {"init_lora_weights": {"a": 1}},
            {"peft_type": ["LORA"]},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_wrong_types(self, tmp_path: Path, change: dict) -> None:
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **change}))
        refusal(read_settings, tmp_path / "adapter_config.json")


class TestPathsThatEndAlike:
    """`layers.0.q` is the end of `encoder.layers.0.q`, and PEFT compares ends."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.ModuleDict({"q": nn.Linear(8, 8)})])
            self.encoder = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"q": nn.Linear(8, 8)})])})

    SHORT, LONG = "layers.0.q", "encoder.layers.0.q"

    def ranks(self, **on: int) -> dict[str, int]:
        modules = {"short": self.SHORT, "long": self.LONG}
        elements = [Element(0, name, "lora", modules[name], 8, 8, Settings(rank, 16.0)) for name, rank in on.items()]
        values = peft_config(elements, None, modules=modules.values())
        del values["peft_type"]
        model = peft.get_peft_model(self.Network(), peft.LoraConfig(**values))
        prefix = "base_model.model."
        return {
            name.removeprefix(prefix).removesuffix(".lora_A.default"): module.out_features
            for name, module in model.named_modules()
            if name.endswith(".lora_A.default")
        }

    def test_only_the_chosen_one_is_adapted(self) -> None:
        assert self.ranks(short=2) == {self.SHORT: 2}
        assert self.ranks(long=2) == {self.LONG: 2}

    def test_each_has_its_own_rank(self) -> None:
        assert self.ranks(short=2, long=4) == {self.SHORT: 2, self.LONG: 4}
        assert self.ranks(long=2, short=4) == {self.SHORT: 4, self.LONG: 2}

    def test_one_module_twice(self) -> None:
        element = Element(0, "q", "lora", "q", 8, 8, Settings(2, 4.0))
        assert "two elements" in refusal(peft_config, [element, element], None)


class TestCheckpoints:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return Path(shutil.copy(FIXTURES / "train" / "checkpoints" / "last.ckpt", tmp_path / "last.ckpt"))

    def test_a_flipped_bit_in_the_weights_is_found(self, path: Path) -> None:
        whole, draw = path.read_bytes(), random.Random(0)
        weights = next(iter(read_checkpoint(path).weights.values())).numpy().tobytes()
        start = whole.index(weights[:64])
        for _ in range(20):
            damaged = bytearray(whole)
            damaged[start + draw.randrange(64)] ^= 1 << draw.randrange(8)
            path.write_bytes(damaged)
            assert "checksum" in refusal(read_checkpoint, path)

    @pytest.mark.parametrize(
        "change",
        [
            {"options": 3},
            {"options": {"model": 3}},
            {"options": {"x": [1]}},
            {"base": {"name": 1}},
            {"base": {"name": "x", "branch": "y"}},
            {"base": None},
            {"base_sha256": None},
            {"on": "layer_0.q_proj"},
            {"lora": {"granularity": "hat"}},
            {"lora": 3},
            {"lora": {"granularity": "layer", 1: {}}},
            {"lora": {"granularity": "layer", "default": {1: 3}}},
            {"base": {1: "x"}},
            {"action": None},
        ],
        ids=str,
    )
    def test_a_record_of_another_version(self, path: Path, change: dict) -> None:
        contents = torch.load(path, weights_only=True)
        contents["heterolora"] = {**contents["heterolora"], **change, "version": "9.1"}
        torch.save(contents, path)
        assert "written by version 9.1" in refusal(read_checkpoint, path)

    @pytest.mark.parametrize(
        "change",
        [
            {"heterolora": 3},
            {"state_dict": [1]},
            {"state_dict": {"network.a": 1}},
            {"state_dict": {3: torch.zeros(2)}},
            {"state_dict": {"network.a": torch.zeros(2, dtype=torch.complex64)}},
            {"state_dict": {"network.a": torch.zeros(2, 2).to_sparse()}},
            {"global_step": "5"},
            {"loops": 3},
            {"optimizer_states": {}},
        ],
        ids=str,
    )
    def test_contents_of_another_kind(self, path: Path, change: dict) -> None:
        torch.save({**torch.load(path, weights_only=True), **change}, path)
        refusal(read_checkpoint, path)

    @pytest.mark.parametrize(
        ("change", "found"),
        [
            (lambda contents: contents["heterolora"].update(lora=None), "no LoRA configuration"),
            (lambda contents: contents["loops"]["fit_loop"].update(epoch_progress=3), "cannot be resumed"),
            (lambda contents: progress_of(contents).update(completed="x"), "cannot be resumed"),
            (lambda contents: contents.update(optimizer_states=[3]), "cannot be resumed"),
            (lambda contents: contents["optimizer_states"][0]["param_groups"][0].update(eps=""), "cannot be resumed"),
            (lambda contents: contents["lr_schedulers"][0].update(last_epoch=None), "cannot be resumed"),
        ],
    )
    def test_what_a_resumed_run_needs(self, capfd, world: World, change: Callable, found: str) -> None:
        project = f"needed-{time.monotonic_ns()}"
        assert main(command(*world.training("--max-steps", 1, "--project", project))) == 0
        path = world.checkpoint(project)
        contents = torch.load(path, weights_only=True)
        change(contents)
        torch.save(contents, path)
        arguments = ("train", "--resume-training", "--load", path, "--max-steps", 2)
        assert found in complaint(capfd, *command(*arguments))

    def test_a_history_of_another_kind(self) -> None:
        mine = history.History(())
        for state in ({}, {"places": [], "when": 3}, {"places": [], "when": [(0, 0)], "scores": 1, "on": 1}):
            refusal(mine.load_state_dict, state)

    @pytest.mark.parametrize(("key", "when"), [("epoch", ("1", 0)), ("step", (0, "1")), ("step", (0, -1))])
    def test_a_history_with_another_kind_of_number(self, key: str, when: tuple) -> None:
        none = torch.zeros(1, 0)
        state = {"places": [], "when": [when], "scores": none, "on": none}
        assert f"a reallocation: {key} is" in refusal(history.History(()).load_state_dict, state)

    @pytest.mark.parametrize("state", [[torch.zeros(2)], {"a": 1}, {3: torch.zeros(2)}, "text"])
    def test_a_state_dict_that_is_none(self, tmp_path: Path, state: object) -> None:
        torch.save(state, tmp_path / "x.pt")
        assert "no state dict" in refusal(read_state_dict, tmp_path / "x.pt")


class TestAdapters:
    def test_a_flipped_bit_is_found(self, world: World, tmp_path: Path) -> None:
        assert main(command(*world.training("--max-steps", 1, "--project", "digest"))) == 0
        adapter = shutil.copytree(world.runs / "digest" / "adapter", tmp_path / "adapter")
        path = adapter / "adapter_model.safetensors"
        read_adapter(adapter)
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        damaged = bytearray(path.read_bytes())
        damaged[-3] ^= 4
        path.unlink()  # the old file is mapped into memory
        path.write_bytes(damaged)
        assert "differs from its digest" in refusal(read_adapter, adapter)
        # Other programs write no digest.
        save_file(load_file(path), path, {key: value for key, value in metadata.items() if "sha256" not in key})
        read_adapter(adapter)

    @pytest.mark.parametrize("run", ["train", "train-dyrealloc"])
    def test_old_ones_have_none(self, run: str) -> None:
        assert read_adapter(FIXTURES / run / "adapter").lora


class TestModelFolders:
    @pytest.fixture
    def folder(self, world: World, tmp_path: Path) -> Path:
        return shutil.copytree(world.opt, tmp_path / "model")

    def refused(self, capfd, world: World, folder: Path) -> str:
        return complaint(capfd, *command(*world.training("--load", folder, "--max-steps", 1)))

    def test_no_code_of_theirs_runs(self, capfd, world: World, folder: Path, monkeypatch, tmp_path: Path) -> None:
        marker = tmp_path / "marker"
        code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
        (folder / "code.py").write_text(f"{code}class C: pass\n")
        names = ("AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
        known = json.loads((folder / "config.json").read_text()) | {"auto_map": dict.fromkeys(names, "code.C")}
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
        tokenizer["auto_map"] = {"AutoTokenizer": ["code.C", "code.C"]}
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        for model_type in ("opt", "mine"):
            monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
            (folder / "config.json").write_text(json.dumps({**known, "model_type": model_type}))
            code = main(command(*world.training("--load", folder, "--max-steps", 1, "--project", f"auto-{model_type}")))
            assert code == (0 if model_type == "opt" else 2)
            assert not marker.exists()
            assert "Traceback" not in capfd.readouterr().err

    def test_every_call_says_so(self) -> None:
        """`from_pretrained` and `from_config` of transformers ask on the terminal otherwise."""
        for path in product_files():
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                called = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
                if called in ("from_pretrained", "from_config"):
                    assert any(word.arg == "trust_remote_code" for word in node.keywords), f"{path}:{node.lineno}"

    @pytest.mark.parametrize(
        ("file", "damage", "found"),
        [
            *(("config.json", changed, "") for changed in (
                {"num_hidden_layers": "two"}, {"num_hidden_layers": -2}, {"num_hidden_layers": 10**9},
                {"num_labels": 10**9}, {"hidden_size": 10**9, "word_embed_proj_dim": 10**9}, {"hidden_size": 10**30},
                {"hidden_size": -32}, {"ffn_dim": 128}, {"num_attention_heads": 3}, {"num_attention_heads": 0},
                {"vocab_size": 10**12}, {"dropout": 7}, {"activation_function": "nothing"}, {"dtype": "banana"},
                {"attn_implementation": "someone/kernel"}, {"attn_implementation": {"": "someone/kernel"}},
                {"attn_implementation": "flash_attention_3"}, {"_attn_implementation": "flash_attention_2"},
                {"experts_implementation": "sonicmoe"}, {"model_type": ["opt"]})),
            *(("config.json", content, "config.json") for content in ("[]", "{", "[" * 100_000, "null", "\xff")),
            *(("tokenizer_config.json", changed, "tokenizer") for changed in (
                {"model_max_length": "long"}, {"model_max_length": 0}, {"padding_side": "up"})),
            *(("tokenizer.json", content, "tokenizer") for content in ("garbage", "{}", '{"version": "1.0", "trunc')),
        ],
        ids=lambda value: str(value)[:40],
    )  # fmt: skip
    def test_damaged_files(self, capfd, world: World, folder: Path, file: str, damage: dict | str, found: str) -> None:
        path = folder / file
        if isinstance(damage, dict):
            damage = json.dumps({**json.loads(path.read_text()), **damage})
        path.write_text(damage, encoding="latin-1")
        assert found in self.refused(capfd, world, folder)

    def test_tokens_that_the_model_lacks(self, capfd, world: World, folder: Path) -> None:
        path = folder / "tokenizer.json"
        document = json.loads(path.read_text())
        document["model"]["vocab"]["far"] = 10**6
        path.write_text(json.dumps(document))
        assert "1000001 tokens" in self.refused(capfd, world, folder)

    def test_weights(self, capfd, world: World, folder: Path) -> None:
        path = folder / "model.safetensors"
        whole = path.read_bytes()
        state = {name: tensor.clone() for name, tensor in load_file(path).items()}  # the file itself is mapped
        for damaged in (whole[: len(whole) // 2], b"", b"garbage" * 100, whole[:8] + b"\xff" * 100):
            path.write_bytes(damaged)
            assert "model" in self.refused(capfd, world, folder)
        name = "model.decoder.layers.1.fc1.weight"
        save_file({**state, name: torch.zeros(3, 3)}, path, {"format": "pt"})
        line = self.refused(capfd, world, folder)
        assert name in line
        assert "(3, 3)" in line
        path.unlink()
        index = {"metadata": {}, "weight_map": dict.fromkeys(state, "model-00001-of-00002.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        self.refused(capfd, world, folder)


class TestRunFolders:
    @pytest.mark.parametrize(
        ("file", "content"),
        [
            ("config.toml", "model = "),
            ("config.toml", 'logger = ["csv"]'),
            ("config.toml", 'action = "dance"'),
            ("config.toml", "action = 3"),
            ("config.toml", 'seed = "x"'),
            ("metrics.json", '{"metrics": '),
            ("metrics.json", "[]"),
            ("metrics.json", '{"metrics": [1]}'),
            ("metrics.json", '{"metrics": {"test": {"loss": "x"}}}'),
            ("metrics.json", '{"metrics": {"test": 3}}'),
            ("metrics.json", '{"versions": {"torch": 3}}'),
            ("parameters.json", "\x00"),
            ("parameters.json", '{"trainable": "x", "total": 1, "rows": []}'),
            ("parameters.json", '{"trainable": 1, "total": 0, "rows": []}'),
            ("parameters.json", '{"trainable": 1, "total": 1, "rows": [1]}'),
            ("parameters.json", '{"trainable": 1}'),
            ("logs/metrics.csv", "step,train/loss\nx,0.5\n"),
            ("logs/metrics.csv", "step,loss\n1e5,1\n"),
            ("logs/metrics.csv", "step,loss\n1,2,3,4\n"),
            ("logs/metrics.csv", "step,loss\n" + "9" * 400 + ",1\n"),
            ("logs/metrics.csv", "loss\n\xff\n"),
            ("scores.toml", "task = 1"),
            ("reallocation_history.toml", "[dyrealloc_0]\nepoch = 0\n"),
            ("lora.toml", "granularity = 3"),
        ],
    )
    def test_damaged_files(self, tmp_path: Path, file: str, content: str) -> None:
        folder = shutil.copytree(FIXTURES / "train", tmp_path / "run")
        (folder / file).write_text(content, encoding="latin-1")
        assert str(folder / file) in refusal(read_runs, [folder])

    def test_metrics_of_an_adapter_card(self, tmp_path: Path) -> None:
        assert read_metrics(tmp_path) == ({}, {})
        (tmp_path / "metrics.json").write_text('{"metrics": 3}')
        assert "metrics.json" in refusal(read_metrics, tmp_path)


def test_scores_files(tmp_path: Path) -> None:
    path = tmp_path / "scores.toml"
    for text in (
        "seed = 0x" + "f" * 4000,
        "[layer_99999999999999999999.q_proj]\nscore = 1",
        '["layer_0\\n".q_proj]',
        "layer_0 = 1",
    ):
        path.write_text(text)
        refusal(scores.read, path)


@pytest.mark.parametrize("kind", [UserError, NotFiniteError, DivergenceError])
def test_errors_pass_from_process_to_process(kind: type[Exception]) -> None:
    """A worker process of `datasets`, of a loader or of submitit pickles them."""
    error = pickle.loads(pickle.dumps(kind("the rank is 0", "give 1 or more")))
    assert type(error) is kind
    assert str(error) == "the rank is 0; give 1 or more"
