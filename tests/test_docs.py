"""README and documentation are true: commands run, examples work, tables and quotes are those of the program.

`python -m tests.test_docs` writes the tables of docs/ again, after a change of the program.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import torch
from torch import nn
from transformers import AutoModel

import heterolora
from dataset import registry
from dataset.spec import DatasetSpec
from options.actions import ACTIONS, LISTS
from options.declare import flag_of
from options.every import declared, defaults
from tests import architectures
from tests.stage import Stage
from tests.tiny import tiny_network, word_tokenizer
from tests.world import ROOT, World, model_folder, run, sentences, write_jsonl

OPTIONS, DATA_SETS = ROOT / "docs" / "options.md", ROOT / "docs" / "data-sets.md"
MODELS, ARCHITECTURES_MARK = ROOT / "docs" / "own-model.md", "<!-- architectures -->"
MANUAL = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*MANUAL, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]

NOT_PLAIN = r"no better than it is|\blies?\b|told from|goes best with|to be had|is a draw|is said|written and said"


def text_of(*pages: Path) -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


def code_blocks(language: str) -> list[str]:
    """The distinct blocks of README and docs, in order."""
    return list(dict.fromkeys(re.findall(rf"```{language}\n(.*?)```", text_of(*MANUAL), re.DOTALL)))


def commands() -> list[str]:
    """The distinct command lines of README and docs, in order; continuation lines are joined."""
    lines = "\n".join(code_blocks("bash")).replace("\\\n", " ").splitlines()
    found = (re.sub(r"\s+", " ", line).strip() for line in lines if line.strip() and not line.startswith("#"))
    return list(dict.fromkeys(found))


def marked(mark: str) -> list[str]:
    """The distinct Python blocks below the comment `<!-- mark -->`."""
    pattern = rf"<!-- {re.escape(mark)} -->\n```python\n(.*?)```"
    return list(dict.fromkeys(re.findall(pattern, text_of(*MANUAL), re.DOTALL)))


def example_file(path: str) -> str:
    (block,) = marked(f"file: {path}")
    return block


# ---- tables


def options_tables() -> str:
    """One section with a table for each group of options."""
    groups: dict[str, list[str]] = {}
    for name, info in declared().items():
        opposite = (flag_of(info.opposite),) if info.opposite else ()
        flags = ", ".join(f"`{flag}`" for flag in (flag_of(name), *info.aliases, *opposite))
        choices = "" if not info.choices else f" ({', '.join(f'`{choice}`' for choice in info.choices)})"
        default = defaults()[name]
        shown = "" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        only = ", ".join(f"`{action}`" for action in info.actions) or "all"
        says = re.sub(r"(?:<\w+>\w*)+", r"`\g<0>`", info.help)  # a page would take <family> for HTML
        groups.setdefault(info.group, []).append(f"| {flags} | {says}{choices} | {shown} | {only} |")
    sections = (
        f"## {group.capitalize()}\n\n| option | what it does | default | used by |\n| --- | --- | --- | --- |\n"
        + "\n".join(rows)
        for group, rows in groups.items()
    )
    return "\n\n".join(sections) + "\n"


def datasets_table() -> str:
    rows = ["| `--dataset` | task | what | metrics |", "| --- | --- | --- | --- |"]
    for spec in registry.specs().values():
        rows.append(f"| `{spec.name}` | {spec.task.replace('_', ' ')} | {spec.summary} | {', '.join(spec.metrics)} |")
    return "\n".join(rows) + "\n"


def write_tables() -> None:
    """Replace the sections of the options page and the table of the data sets page by those of the program."""
    OPTIONS.write_text(text_of(OPTIONS).split("## ")[0] + options_tables(), encoding="utf-8")
    table = re.compile(r"^\|.*?\n(?!\|)", re.DOTALL | re.MULTILINE)
    DATA_SETS.write_text(table.sub(lambda _: datasets_table(), text_of(DATA_SETS), count=1), encoding="utf-8")
    before, after = text_of(MODELS).split(ARCHITECTURES_MARK)
    rest = after.lstrip().partition("\n\n")[2]  # after the table
    MODELS.write_text(f"{before}{ARCHITECTURES_MARK}\n\n{architectures.table()}\n{rest}", encoding="utf-8")


def test_every_option_is_there() -> None:
    assert text_of(OPTIONS).endswith(f"\n\n{options_tables()}"), "run python -m tests.test_docs"


def test_every_data_set_is_there() -> None:
    assert datasets_table() in text_of(DATA_SETS), "run python -m tests.test_docs"


def test_every_architecture_of_the_tests_is_there() -> None:
    assert f"{ARCHITECTURES_MARK}\n\n{architectures.table()}\n" in text_of(MODELS), "run python -m tests.test_docs"


def test_error_messages_are_those_of_the_program() -> None:
    sources = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("actions", "dataset", "heterolora", "model", "options", "tools", ".")
        for path in (ROOT / folder).glob("*.py" if folder == "." else "**/*.py")
    )
    quoted = re.findall(r"^\| `([^`]+)` \|", text_of(ROOT / "docs" / "troubleshooting.md"), re.MULTILINE)
    assert len(quoted) >= 8
    for words in quoted:
        for part in words.split("…"):
            assert part.strip() in sources, words


# ---- text and links


def test_the_readme_is_short() -> None:
    assert len(text_of(ROOT / "README.md").splitlines()) <= 250


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_english_is_plain(page: Path) -> None:
    assert not re.findall(NOT_PLAIN, text_of(page), re.IGNORECASE)


def anchors(page: Path) -> list[str]:
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = text_of(page)
    for target in [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'src="([^"]+)"', text)]:
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.is_file(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_in_the_text_are_there(page: Path) -> None:
    of_examples = set(re.findall(r"<!-- file: (\S+) -->", text_of(*MANUAL)))
    folders = "actions|benchmarks|configs|dataset|docs|examples|heterolora|model|options|tests|tools"
    for path in re.findall(rf"`((?:{folders})/[^`\s*]*|main\.py)`", text_of(page)):
        assert path in of_examples or (ROOT / path).exists(), path


def test_make_targets_are_there() -> None:
    makefile = text_of(ROOT / "Makefile")
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", text_of(*PAGES), re.MULTILINE))
    assert targets >= {"quickstart", "test", "test-slow", "lint", "docs"}
    for target in targets:
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target


def test_the_walk_of_one_batch_is_that_of_a_real_run(world: World, tmp_path: Path) -> None:
    section = text_of(ROOT / "docs" / "how-it-is-built.md").split("## One batch")[1].split("\n## ")[0]
    walk = [(file, function) for function, file in re.findall(r"^\d+\. `([^`]+)` in `([^`]+)`", section, re.MULTILINE)]
    assert 5 < len(walk) <= 15
    assert len({file for file, _ in walk}) == len(walk)
    scoring = ("--importance-test-name", "grad_norm", "--imp-limit-test-batches", 1)
    data = ("imp-test", "opt_lora", "sst2", "--load", world.opt, "--dataset-saved-path", world.sst2)
    called = calls_of(lambda: run(*data, *scoring, "--project-dir", tmp_path))
    assert [call for call in dict.fromkeys(called) if call in walk] == walk


def calls_of(command: Callable[[], int]) -> list[tuple[str, str]]:
    """The file, below the root, and the name of each function of the program that a command enters, in order."""
    called: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(f"{ROOT}/"):
            called.append((frame.f_code.co_filename.removeprefix(f"{ROOT}/"), frame.f_code.co_qualname))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        assert command() == 0
    finally:
        sys.setprofile(before)
    return called


def test_the_site_builds_without_warnings_and_needs_no_network(tmp_path: Path) -> None:
    # without --quiet, which hides warnings from --strict, too
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    pages = {page.stem for page in (tmp_path / "site").glob("*.html")}
    assert pages >= {page.stem for page in PAGES if page.stem != "README"} | {"index"}
    for page in (tmp_path / "site").glob("*.html"):
        fetched = re.findall(r'<(?:script|img|iframe)[^>]* src="([^"]+)"', text_of(page))
        fetched += re.findall(r'<link[^>]*rel="stylesheet"[^>]*href="([^"]+)"', text_of(page))
        assert not [address for address in fetched if "//" in address], page.name
        assert "unpkg.com" not in text_of(page), page.name
    for name in heterolora.__all__:
        assert f'id="heterolora.{name}"' in text_of(tmp_path / "site" / "api.html"), name


# ---- commands


@pytest.fixture(scope="module")
def stage(world: World, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage"), world)


@pytest.mark.slow
def test_every_command_runs(stage: Stage, world: World) -> None:
    """In the order of the pages. The runs NAME and OTHER, which no command makes, are made first."""
    base = "--model opt_lora --load facebook/opt-350m --pretrained --dataset rte"
    stage.run(f"python -m main train {base} --project NAME")
    for name in ("searched", "again"):
        stage.run(f"python -m main train-dyrealloc {base} --realloc-N 0.5 --project {name}")
    stage.run(f"python -m main imp-test {base} --project other")
    of_sentences = base.replace("rte", f"sst2 --dataset-saved-path {world.sst2}")
    stage.run(f"python -m main train {of_sentences} --project sentences")
    adapter = stage.folder / "path" / "to" / "adapter"
    shutil.copytree(stage.folder / "runs" / "NAME" / "adapter", adapter)
    (stage.folder / "new.csv").write_text("sentence1,sentence2\na man sleeps,a man rests\n")
    ran, failed = 0, []
    for line in commands():
        if line.startswith(("make ", "source ", "srun ", "pip ", "heterolora ")):
            continue
        if "path/to/reviews" in line or "tools/study.py" in line or "--help" in line or "main chat" in line:
            continue  # tests of their own; and --help is quick everywhere
        if "plot_realloc" in line or "train-dyrealloc --resume" in line:
            line = line.replace("runs/NAME", "runs/searched").replace("runs/OTHER", "runs/again")
        if "--text" in line:  # NAME reads pairs of sentences
            line = line.replace("runs/NAME", "runs/sentences")
        line = re.sub(r"--num-devices 2 --strategy \w+", "", line.replace("runs/OTHER", "runs/again"))
        try:
            stage.run(line)
        except AssertionError as failure:  # the others run, too: one run of this test names every broken command
            failed.append(str(failure))
        ran += 1
    assert ran >= 15
    assert not failed, "\n\n".join(failed)
    (in_peft,) = (block for block in code_blocks("python") if "PeftModel" in block)
    stage.python(in_peft)


def test_every_option_of_every_command_is_known() -> None:
    from actions.command.parse import parse_command

    for line in commands():
        words = shlex.split(line.removeprefix("srun "))
        words = ["sst2" if word == "reviews" else word for word in words]  # an entry that the reader adds
        if words[:3] == ["python", "-m", "main"] and not {"--help", *LISTS} & {*words}:
            assert parse_command(words[3:]).action in ACTIONS


@pytest.mark.parametrize("tool", sorted(set(re.findall(r"tools/(\w+)\.py", text_of(*MANUAL)))))
def test_every_tool_is_there(tool: str) -> None:
    """`tests/test_tools_package.py` runs `--help` of every tool."""
    assert (ROOT / "tools" / f"{tool}.py").is_file()


# ---- examples


def test_the_roberta_of_the_studies_computes_what_the_bert_does(tmp_path: Path, monkeypatch) -> None:
    (script,) = marked("minilm")
    source = model_folder(tmp_path / "bert", "bert", "classification")
    assert script.count('source = "') == 1
    monkeypatch.chdir(tmp_path)
    exec(re.sub(r'source = ".*"', f"source = {str(source)!r}", script), {})
    tokens = torch.arange(5, 13).reshape(2, 4)
    theirs, ours = (AutoModel.from_pretrained(path).eval() for path in (source, tmp_path / "minilm"))
    assert ours.config.model_type == "roberta"
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens).last_hidden_state, theirs(tokens).last_hidden_state)


@pytest.mark.slow
class TestExamples:
    @pytest.fixture
    def written(self, stage: Stage):
        """Write an example to the file that its page names, and remove it afterwards."""
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
        written("model/family/helium.py")
        from transformers import HeliumConfig, HeliumForCausalLM

        tokenizer = word_tokenizer([row["sentence"] for row in sentences(200, seed=0)], style="decoder")
        config = HeliumConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=8, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        HeliumForCausalLM(config).save_pretrained(stage.folder / "helium")
        tokenizer.save_pretrained(stage.folder / "helium")
        out = stage.run("python -m main train --model helium_lora_ags --load helium --pretrained --dataset rte")
        assert "shortcut2" in out

    def test_a_heuristic(self, stage: Stage, written) -> None:
        written("heterolora/saliency/heuristics/grad_sum.py")
        base = "--model opt_lora --load facebook/opt-350m --pretrained --dataset rte"
        out = stage.run(f"python -m main imp-test {base} --importance-test-name grad_sum")
        assert "scores.toml" in out

    def test_a_heuristic_that_is_a_function(self, stage: Stage, written) -> None:
        written("heterolora/saliency/heuristics/mean_gradient.py")
        base = "--model opt_lora --load facebook/opt-350m --pretrained --dataset rte"
        out = stage.run(f"python -m main imp-test {base} --importance-test-name mean_gradient --project function")
        assert "scores.toml" in out
        scores = (stage.folder / "runs" / "function" / "scores.toml").read_text()
        assert len(set(re.findall(r"^score = (.*)$", scores, re.MULTILINE))) > 2


def test_the_data_set_example_says_what_it_seems_to() -> None:
    scope: dict[str, object] = {}
    exec(example_file("dataset/entries/reviews.py"), scope)
    (spec,) = scope["DATASETS"]
    assert isinstance(spec, DatasetSpec)
    assert spec.num_labels == 2


def test_the_library_examples_run() -> None:
    torch.manual_seed(0)
    ids = torch.randint(5, 20, (2, 6))
    scope: dict[str, object] = {
        "model": tiny_network("opt", "causal_language_modeling"),
        "batches": [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}] * 2,
        "classifier": nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)),
        "pairs": [(torch.randn(3, 4), torch.tensor([0, 1, 1]))] * 2,
    }
    blocks = marked("library")
    assert len(blocks) >= 2
    for block in blocks:
        exec(block.replace("2_000_000", "1_000"), scope)  # the model is tiny
    assert scope["config"].rank_pattern


if __name__ == "__main__":
    write_tables()
