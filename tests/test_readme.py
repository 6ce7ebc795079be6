"""The README is true: its commands run, its examples work as they stand, its tables are those of the program."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from actions.options import ACTIONS, declared, defaults, flag_of
from dataset import registry
from dataset.spec import DatasetSpec
from tests.tiny import word_tokenizer
from tests.world import ROOT, World, sentences, write_jsonl

README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    """Every command line of the README, continuation lines joined."""
    lines = "\n".join(code_blocks("bash")).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+", " ", line).strip() for line in lines if line.strip() and not line.startswith("#")]


def example_file(path: str) -> str:
    return re.search(rf"<!-- file: {re.escape(path)} -->\n```python\n(.*?)```", README, re.DOTALL)[1]


# ---- tables


def options_table() -> str:
    """One table for each group of options."""
    groups: dict[str, list[str]] = {}
    for name, info in declared().items():
        flags = ", ".join(f"`{flag}`" for flag in (flag_of(name), *info.aliases))
        choices = "" if not info.choices else f" ({', '.join(f'`{choice}`' for choice in info.choices)})"
        default = defaults()[name]
        shown = "" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        only = ", ".join(f"`{action}`" for action in info.actions) or "all"
        groups.setdefault(info.group, []).append(f"| {flags} | {info.help}{choices} | {shown} | {only} |")
    tables = (
        f"**{group.capitalize()}**\n\n| option | what it does | default | used by |\n| --- | --- | --- | --- |\n"
        + "\n".join(rows)
        for group, rows in groups.items()
    )
    return "\n\n".join(tables)


def datasets_table() -> str:
    rows = ["| `--dataset` | task | what | metrics |", "| --- | --- | --- | --- |"]
    for spec in registry.specs().values():
        rows.append(f"| `{spec.name}` | {spec.task.replace('_', ' ')} | {spec.summary} | {', '.join(spec.metrics)} |")
    return "\n".join(rows)


def test_every_option_is_there() -> None:
    assert options_table() in README


def test_every_data_set_is_there() -> None:
    assert datasets_table() in README


def test_error_messages_are_those_of_the_program() -> None:
    sources = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("actions", "dataset", "heterolora", "model", "tools", ".")
        for path in (ROOT / folder).glob("*.py" if folder == "." else "**/*.py")
    )
    quoted = re.findall(r"^\| `([^`]+)` \|", README.split("## Troubleshooting")[1].split("\n## ")[0], re.MULTILINE)
    assert len(quoted) >= 8
    for words in quoted:
        for part in words.split("…"):
            assert part.strip() in sources, words


def test_links_lead_somewhere() -> None:
    for target in [*re.findall(r"\]\((#?[^)\s]+)\)", README), *re.findall(r'src="([^"]+)"', README)]:
        if target.startswith("#"):
            anchors = [
                re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", README, re.M)
            ]
            assert target[1:] in anchors, target
        elif not target.startswith("http"):
            assert (ROOT / target).is_file(), target


# ---- commands


class Stage:
    """A copy of the program in which README commands run as they stand: names stand for tiny local folders."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder = folder
        for name in ("actions", "configs", "dataset", "heterolora", "model", "tools"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(ROOT / "main.py", folder / "main.py")
        shutil.copytree(world.opt, folder / "facebook" / "opt-350m")
        rows = [
            {"sentence1": row["sentence"], "sentence2": "a film", "label": row["label"]} for row in sentences(20, 0)
        ]
        for split in ("train", "validation"):
            write_jsonl(folder / "rte" / f"{split}.jsonl", rows)

    def run(self, line: str) -> str:
        words = shlex.split(line)
        assert words[0] == "python", line
        if "main" in words:
            words += self._small(words)
        done = subprocess.run(
            [sys.executable, *words[1:]], cwd=self.folder, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def _small(self, words: list[str]) -> list[str]:
        action = words[words.index("main") + 1]
        small = ["--accelerator", "cpu", "--max-token-len", "32"]
        if "rte" in words:
            small += ["--dataset-saved-path", "rte"]
        if action.startswith("train") and "--resume-training" not in words:
            small += ["--max-epochs", "1", "--max-steps", "2"]
        if "--load" in words and ".ckpt" in words[words.index("--load") + 1]:
            small = ["--accelerator", "cpu"]
        return small


@pytest.fixture(scope="module")
def stage(world: World, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage"), world)


@pytest.mark.slow
def test_every_command_runs(stage: Stage, tmp_path: Path) -> None:
    """In the README's order. What a command names that no other one made (NAME, OTHER) is made first."""
    base = "--model opt_lora --load facebook/opt-350m --pretrained --dataset rte"
    stage.run(f"python -m main train {base} --project NAME")
    for name in ("searched", "again"):
        stage.run(f"python -m main train-dyrealloc {base} --realloc-N 0.5 --project {name}")
    stage.run(f"python -m main imp-test {base} --project other")
    adapter = stage.folder / "path" / "to" / "adapter"
    shutil.copytree(stage.folder / "runs" / "NAME" / "adapter", adapter)
    ran = 0
    for line in commands():
        if line.startswith(("make ", "source ", "srun ")):
            continue
        if "path/to/reviews" in line or "--help" in line:
            continue  # a test of its own; and --help is quick everywhere
        if "plot_realloc" in line or "train-dyrealloc --resume" in line:
            line = line.replace("runs/NAME", "runs/searched").replace("runs/OTHER", "runs/again")
        line = line.replace("runs/OTHER", "runs/again").replace("--num-devices 2 --strategy ddp", "")
        stage.run(line)
        ran += 1
    assert ran >= 15
    (in_peft,) = (block for block in code_blocks("python") if "PeftModel" in block)
    done = subprocess.run(
        [sys.executable, "-c", in_peft], cwd=stage.folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_every_option_of_every_command_is_known() -> None:
    from actions.parse import parse

    for line in commands():
        words = shlex.split(line.removeprefix("srun "))
        if words[:3] == ["python", "-m", "main"] and "--help" not in words:
            assert parse(words[3:]).action in ACTIONS


@pytest.mark.parametrize("tool", sorted(set(re.findall(r"tools/(\w+)\.py", README))))
def test_every_tool_is_there_and_helps(tool: str) -> None:
    done = subprocess.run(
        [sys.executable, f"tools/{tool}.py", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 5


# ---- examples


class TestExamples:
    @pytest.fixture
    def written(self, stage: Stage):
        """Writes an example where the README says, and takes it away again."""
        files: list[Path] = []

        def write(path: str) -> None:
            files.append(stage.folder / path)
            files[-1].write_text(example_file(path), encoding="utf-8")

        yield write
        for file in files:
            file.unlink()

    def test_a_data_set(self, stage: Stage, written) -> None:
        written("dataset/entries/reviews.py")
        rows = [{"text": row["sentence"], "stars": row["label"]} for row in sentences(20, 0)]
        for split in ("train", "validation"):
            write_jsonl(stage.folder / "path" / "to" / "reviews" / f"{split}.jsonl", rows)
        (line,) = (line for line in commands() if "path/to/reviews" in line)
        assert "accuracy" in stage.run(f"{line} --load facebook/opt-350m --pretrained")

    def test_a_model_family(self, stage: Stage, written) -> None:
        written("model/family/mistral.py")
        from transformers import MistralConfig, MistralForCausalLM

        tokenizer = word_tokenizer([row["sentence"] for row in sentences(200, seed=0)], style="decoder")
        config = MistralConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        MistralForCausalLM(config).save_pretrained(stage.folder / "mistral")
        tokenizer.save_pretrained(stage.folder / "mistral")
        out = stage.run("python -m main train --model mistral_lora_ags --load mistral --pretrained --dataset rte")
        assert "shortcut2" in out

    def test_a_heuristic(self, stage: Stage, written) -> None:
        written("heterolora/saliency/heuristics/grad_sum.py")
        base = "--model opt_lora --load facebook/opt-350m --pretrained --dataset rte"
        out = stage.run(f"python -m main imp-test {base} --importance-test-name grad_sum")
        assert "scores.toml" in out


def test_the_data_set_example_says_what_it_seems_to() -> None:
    scope: dict[str, object] = {}
    exec(example_file("dataset/entries/reviews.py"), scope)
    (spec,) = scope["DATASETS"]
    assert isinstance(spec, DatasetSpec)
    assert spec.num_labels == 2
