"""A folder in which the commands of the documentation run: small models and data have the names that they use."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from options.actions import ACTIONS, CHAT, LISTS, TOOLS
from tests.world import ROOT, World, model_folder, sentences, text_folder, write_jsonl

ENVIRONMENT = {**os.environ, "PYTHONPATH": ".", "CUDA_VISIBLE_DEVICES": ""}


class Stage:
    """A copy of the program in which the commands run: names of models and data are tiny local folders."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder = folder
        for name in ("actions", "benchmarks", "configs", "dataset", "heterolora", "model", "options", "tools"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(ROOT / "main.py", folder / "main.py")
        shutil.copytree(world.opt, folder / "facebook" / "opt-350m")
        model_folder(folder / "minilm", "roberta")
        model_folder(folder / "FacebookAI" / "roberta-base", "roberta")
        shutil.copytree(ROOT / "tests/fixtures/plan/llama-2-7b", folder / "meta-llama" / "Llama-2-7b-hf")
        rows = [
            {"sentence1": row["sentence"], "sentence2": "a film", "label": row["label"]} for row in sentences(20, 0)
        ]
        for split in ("train", "validation"):
            write_jsonl(folder / "rte" / f"{split}.jsonl", rows)
        reviews = [f"{row['sentence1']},{5 * row['label']}" for row in rows]
        (folder / "reviews.csv").write_text("\n".join(["review,stars", *reviews]))
        for number in range(3):  # a split of several files, for --streaming
            write_jsonl(folder / "path" / "to" / "folder" / f"part-{number}.jsonl", sentences(20, number))
        write_jsonl(folder / "path" / "to" / "folder" / "validation" / "rows.jsonl", sentences(8, 3))
        question = {"question": "a", "choices": {"text": ["good", "bad"], "label": ["A", "B"]}, "answerKey": "A"}
        for split in ("train", "validation", "test"):
            write_jsonl(folder / "path" / "to" / "ai2_arc" / "ARC-Easy" / f"{split}.jsonl", [question] * 4)
        text_folder(folder / "wikitext2")
        (folder / "book.txt").write_text("".join(f"{row['sentence1']}\n" for row in rows))
        turns = [{"role": "user", "content": "a film"}, {"role": "assistant", "content": "good"}]
        write_jsonl(folder / "chat.jsonl", [{"messages": turns}] * 20)
        template = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
        (folder / "facebook" / "opt-350m" / "chat_template.jinja").write_text(template)
        shutil.copytree(folder / "facebook" / "opt-350m", folder / "HuggingFaceTB" / "SmolLM2-135M-Instruct")

    def run(self, line: str, typed: str = "") -> str:
        """Run a command on small data, with the text that is typed into it. Returns its output."""
        words = shlex.split(line)
        if words[0] == "heterolora":
            start = ("-m", "main") if words[1] in ACTIONS else (f"tools/{TOOLS[words[1]].file}.py",)
            words = ["python", *start, *words[1 if words[1] in ACTIONS else 2 :]]
        assert words[0] == "python", line
        if "main" in words:
            words += self._small(words)
        elif "--parameters" in words:
            words[words.index("--parameters") + 1] = "1000"
        return self._start(line, *words[1:], typed=typed)

    def python(self, code: str) -> str:
        """Run a block of Python. Returns its output."""
        return self._start(code, "-c", code)

    def _start(self, what: str, *words: str, typed: str = "") -> str:
        command = [sys.executable, *words]
        done = subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, timeout=1200, input=typed, env=ENVIRONMENT
        )
        assert done.returncode == 0, f"{what}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def _small(self, words: list[str]) -> list[str]:
        action = words[words.index("main") + 1]
        if action in LISTS:
            return []
        small = ["--accelerator", "cpu", "--max-token-len", "32"]
        small += ["--max-new-tokens", "4"] if action == CHAT else []
        for name in {"rte", "wikitext2"} & {*words}:
            small += ["--dataset-saved-path", name]
        if action.startswith("train") and "--resume-training" not in words:
            small += ["--max-steps", "2", *(() if "--streaming" in words else ("--max-epochs", "1"))]
        if "--load" in words and ".ckpt" in words[words.index("--load") + 1]:
            small = ["--accelerator", "cpu"]
        return small
