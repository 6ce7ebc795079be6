"""`tools/realloc_lora_rank.py`: scores file → configurations that the program and PEFT take."""

import dataclasses
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import peft
import pytest

from heterolora.choosing import scores
from heterolora.choosing.allocation import Scored
from heterolora.choosing.scores import Scores
from heterolora.common.errors import UserError
from heterolora.elements import config
from heterolora.elements.element import Element
from heterolora.elements.search_space import SearchSpace
from model import family
from tests.adapted import lora_config, put_into, shortcut_config
from tests.mistakes import refusal
from tests.tiny import tiny_network
from tools import realloc_lora_rank as tool

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("opt", "roberta", "gemma")


def _space(name: str, shortcuts: bool = True) -> SearchSpace:
    return put_into(tiny_network(name), family.get(name), lora_config(), shortcut_config() if shortcuts else None)


def _scores(name: str, shortcuts: bool = True, seed: int = 0) -> Scores:
    """Random scores of everything in a tiny network, as imp-test would write them."""
    generator = random.Random(seed)
    return Scores(
        task="classification",
        dataset="rte",
        model=f"{name}_lora_ags" if shortcuts else f"{name}_lora",
        load="",
        importance_test_name="grad_norm",
        batches=2,
        batch_size=4,
        seed=3,
        scored=tuple(
            Scored(
                dataclasses.replace(element, settings=dataclasses.replace(element.settings, dropout=0.1)),
                generator.random(),
            )
            for element in _space(name, shortcuts).elements
        ),
    )


@pytest.fixture
def files(tmp_path: Path):
    """Write scores; the arguments that name the file and the two outputs."""

    def write(content: Scores) -> list[str]:
        scores.write(tmp_path / "scores.toml", content)
        shortcuts = content.has_shortcuts
        output = ["--output", str(tmp_path / "lora.toml")]
        more = ["--shortcut-output", str(tmp_path / "shortcut.toml")] if shortcuts else []
        return [str(tmp_path / "scores.toml"), *output, *more]

    return write


def _rank_and_scaling(element: Element) -> tuple[int, float]:
    return element.rank, round(element.settings.scaling, 9)


def _elements(tmp_path: Path, name: str) -> dict[str, Element]:
    """Key → element of the network that the two files make."""
    lora, shortcut = config.load(tmp_path / "lora.toml", "lora"), config.load(tmp_path / "shortcut.toml", "shortcut")
    space = put_into(tiny_network(name), family.get(name), lora, shortcut)
    return {element.key: element for element in space.elements}


@pytest.mark.parametrize("name", FAMILIES)
def test_topk_configurations_turn_the_best_on(files, tmp_path: Path, name: str) -> None:
    content = _scores(name)
    tool.main([*files(content), "--turn-on-percentile", "0.25", "--rank", "8"])
    lora = [item for item in content.scored if item.element.kind == "lora"]
    count = len(lora) // 4 + round((len(content.scored) - len(lora)) / 4)  # 7 shortcuts: 1.75
    best = [item.element for item in sorted(content.scored, key=lambda item: -item.score)[:count]]
    # LoRA was scored with alpha 6 at rank 3, shortcuts with 3 at 2: rank 8 keeps these scalings.
    got = _elements(tmp_path, name)
    assert {key: _rank_and_scaling(element) for key, element in got.items()} == {
        element.key: (8, 2.0 if element.kind == "lora" else 1.5) for element in best
    }
    assert {element.settings.dropout for element in got.values()} == {0.1}


def test_proportional_configurations_spend_the_parameters(files, tmp_path: Path, capsys) -> None:
    content = _scores("opt")
    tool.main([*files(content), "--policy", "proportional", "--parameters", "3000", "--max-rank", "9"])
    got = _elements(tmp_path, "opt")
    spent = sum(element.parameters for element in got.values())
    assert 2937 <= spent <= 3000  # the cheapest rank costs 64
    assert {element.rank for element in got.values()} <= set(range(1, 10))
    for element in got.values():
        assert element.settings.scaling == pytest.approx(2.0 if element.kind == "lora" else 1.5)
    shown = capsys.readouterr().out
    assert "3,000" in shown
    assert f"{spent:,}" in shown


def test_greedy_configurations_follow_the_scores_of_ranks(files, tmp_path: Path) -> None:
    """A rank of w2 costs 96 parameters, one of q 64."""
    content = _scores("opt", shortcuts=False)
    by_rank = {"layer_0.q_proj": (0.9, 0.2, 0.0), "layer_1.w2": (0.8, 0.7, 0.6)}
    every = tuple(
        dataclasses.replace(item, by_rank=by_rank.get(item.element.key, (0.1, 0.0, 0.0))) for item in content.scored
    )
    arguments = files(dataclasses.replace(content, scored=every))
    tool.main([*arguments, "--policy", "greedy", "--parameters", str(64 + 3 * 96 + 64)])
    lora = config.load(tmp_path / "lora.toml", "lora")
    ranks = {key: element.rank for key, element in _of_lora(lora).items()}
    assert ranks == {"layer_0.q_proj": 2, "layer_1.w2": 3}
    with pytest.raises(UserError, match="have no effect on greedy"):
        tool.main([*arguments, "--policy", "greedy", "--parameters", "500", "--max-rank", "4"])
    with pytest.raises(UserError, match="do not tell its ranks apart"):
        tool.main([*files(content), "--policy", "greedy", "--parameters", "500"])


def _of_lora(lora: config.ElementConfig) -> dict[str, Element]:
    return {element.key: element for element in put_into(tiny_network("opt"), family.get("opt"), lora).elements}


def test_rank_defaults_to_the_scored_one_and_seed_to_that_of_the_scores(files, tmp_path: Path) -> None:
    content = _scores("opt", shortcuts=False)
    even = dataclasses.replace(content, scored=tuple(dataclasses.replace(item, score=1.0) for item in content.scored))

    def draw(*more: str) -> str:
        tool.main([*files(even), "--turn-on-percentile", "0.5", *more])
        return (tmp_path / "lora.toml").read_text()

    assert draw() == draw("--seed", "3") == draw()
    assert len({draw("--seed", str(seed)) for seed in range(5)}) > 1
    assert config.load(tmp_path / "lora.toml", "lora").sites
    assert {site.rank for site in config.load(tmp_path / "lora.toml", "lora").sites.values()} == {3}


def test_mode_off_keeps_shortcuts_as_they_were_scored(files, tmp_path: Path) -> None:
    content = dataclasses.replace(_scores("opt"), renormalize=True)
    tool.main([*files(content), "--total-rank", "8", "--rank", "4", "--mode", "off"])
    got = _elements(tmp_path, "opt").values()
    assert sum(element.rank for element in got if element.kind == "lora") == 8
    assert [element.rank for element in got if element.kind == "shortcut"] == [2] * 7
    assert config.load(tmp_path / "shortcut.toml", "shortcut").renormalize


@pytest.mark.parametrize(("name", "task"), [(name, task) for name in FAMILIES for task in family.get(name).tasks])
def test_peft_trains_just_the_chosen_modules(files, tmp_path: Path, name: str, task: str) -> None:
    content = dataclasses.replace(_scores(name, shortcuts=False), task=task)
    arguments = [*files(content)[:1], "--policy", "proportional", "--total-rank", "20", "--max-rank", "8"]
    output = tmp_path / "lora.json"
    tool.main([*arguments, "--output", str(output), "--format", "peft"])
    tool.main([*arguments, "--output", str(tmp_path / "lora.toml")])

    settings = peft.LoraConfig(**json.loads(output.read_text()))
    model = peft.get_peft_model(tiny_network(name, task), settings)
    theirs = {
        path.removeprefix("base_model.model."): (module.r["default"], round(module.scaling["default"], 9))
        for path, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    space = put_into(tiny_network(name, task), family.get(name), config.load(tmp_path / "lora.toml", "lora"))
    ours = {element.module: _rank_and_scaling(element) for element in space.elements}
    assert theirs == ours
    assert len({rank for rank, _ in ours.values()}) > 1
    assert settings.lora_dropout == 0.1
    assert settings.task_type == ("SEQ_CLS" if task == "classification" else "CAUSAL_LM")


def test_peft_with_rslora_scales_alike(files, tmp_path: Path) -> None:
    content = _scores("opt", shortcuts=False)
    stabilised = tuple(
        Scored(
            dataclasses.replace(item.element, settings=dataclasses.replace(item.element.settings, use_rslora=True)),
            item.score,
        )
        for item in content.scored
    )
    arguments = files(dataclasses.replace(content, scored=stabilised))
    tool.main([arguments[0], "--total-rank", "24", "--rank", "12", "--format", "peft", "--output", arguments[2]])
    model = peft.get_peft_model(tiny_network("opt"), peft.LoraConfig(**json.loads(Path(arguments[2]).read_text())))
    scalings = [m.scaling["default"] for m in model.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    assert scalings == pytest.approx([6 / 12**0.5] * 2)  # alpha is 6, as scored

    mixed = (*content.scored[:-1], stabilised[-1])
    arguments = files(dataclasses.replace(content, scored=mixed))
    tool.main([arguments[0], "--turn-on-percentile", "1", "--format", "peft", "--output", arguments[2]])
    model = peft.get_peft_model(tiny_network("opt"), peft.LoraConfig(**json.loads(Path(arguments[2]).read_text())))
    scalings = [m.scaling["default"] for m in model.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    assert sorted(scalings) == pytest.approx([6 / 3] * 11 + [6 / 3**0.5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--turn-on-percentile --total-rank --parameters/--budget-parameters --budget-time is required"),
        (("--turn-on-percentile", "0.5", "--total-rank", "8"), "not allowed with argument"),
        (("--turn-on-percentile", "0"), "0.0 is out of range; give a share in (0, 1]"),
        (("--turn-on-percentile", "1.01"), "1.01 is out of range; give a share in (0, 1]"),
        (("--turn-on-percentile", "half"), "'half' can't be read; give a number"),
        (("--turn-on-percentile", "nan"), "nan is out of range; give a finite number"),
        (("--parameters", "100"), "pays for no element; expected at least 128"),  # shortcuts: rank 2 times 32 + 32
        (("--parameters", "9999999"), "above the whole space; expected at most"),
        (("--total-rank", "1"), "pays for no element; expected at least 2"),
        (("--total-rank", "8", "--rank", "0"), "--rank: 0 is out of range; give at least 1"),
        (("--total-rank", "33", "--rank", "33"), "is 33, but its widths are 32 and 32; expected at most 32"),
        (("--total-rank", "99999999999999999999"), "give a whole number below 2^63"),
        (("--total-rank", "8", "--seed", "-1"), "--seed: -1 is out of range; give 0 to 4294967295"),
        (("--total-rank", "8", "--rank", "4", "--policy", "proportional"), "--rank has no effect on proportional"),
        (("--total-rank", "8", "--max-rank", "4"), "have no effect on topk"),
        (("--total-rank", "8", "--policy", "proportional", "--min-rank", "9"), "ranks from 9 to 3"),
        (("--total-rank", "8", "--mode", "both"), "invalid choice: 'both'"),
        (("--total-rank", "8", "--frmat", "peft"), "unrecognized arguments: --frmat"),
    ],
)
def test_wrong_arguments_write_nothing(files, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in refusal(tool.main, [*files(_scores("opt")), *arguments])
    assert [path.name for path in tmp_path.iterdir()] == ["scores.toml"]


def test_shortcuts_that_would_be_lost_are_refused(files, tmp_path: Path) -> None:
    without = files(_scores("opt"))[:3]
    with pytest.raises(UserError, match=r"shortcuts are on .* --mode off"):
        tool.main([*without, "--turn-on-percentile", "0.5"])
    with pytest.raises(UserError, match="needs shortcuts"):
        tool.main([*files(_scores("opt", shortcuts=False)), "--turn-on-percentile", "0.5", "--mode", "combined"])
    arguments = files(_scores("opt", shortcuts=False))
    with pytest.raises(UserError, match="scores no shortcuts"):
        tool.main([*arguments, "--turn-on-percentile", "0.5", "--shortcut-output", str(tmp_path / "shortcut.toml")])
    arguments = files(_scores("opt"))
    with pytest.raises(UserError, match="the same file"):
        tool.main([*arguments[:-1], arguments[2], "--turn-on-percentile", "0.5"])


def test_peft_takes_no_empty_configuration(files) -> None:
    content = _scores("opt")
    shortcuts_first = tuple(
        dataclasses.replace(item, score=float(item.element.kind == "shortcut")) for item in content.scored
    )
    arguments = files(dataclasses.replace(content, scored=shortcuts_first))
    with pytest.raises(UserError, match="no LoRA element is on"):
        tool.main([*arguments, "--total-rank", "2", "--format", "peft"])


def test_scores_of_another_model(files, tmp_path: Path) -> None:
    tiny_network("opt").config.save_pretrained(tmp_path / "opt")
    tiny_network("opt", hidden_size=16, word_embed_proj_dim=16).config.save_pretrained(tmp_path / "narrow")
    tiny_network("roberta").config.save_pretrained(tmp_path / "roberta")
    arguments = [*files(_scores("opt")), "--turn-on-percentile", "0.5"]
    tool.main([*arguments, "--load", str(tmp_path / "opt")])
    for other in ("narrow", "roberta"):
        with pytest.raises(UserError, match=r"has no model\.decoder\.layers\.0\.self_attn\.q_proj that is 32 to 32"):
            tool.main([*arguments, "--load", str(tmp_path / other)])
    with pytest.raises(UserError, match=r"the model's folder '.*nothing' is not there"):
        tool.main([*arguments, "--load", str(tmp_path / "nothing")])


@pytest.mark.parametrize("link", [None, "symlink_to", "hardlink_to"])
def test_the_output_is_the_input(files, tmp_path: Path, link: str | None) -> None:
    arguments = files(_scores("opt", shortcuts=False))
    source, output = Path(arguments[0]), Path(arguments[2])
    before = source.read_bytes()
    if link is None:
        arguments[2] = arguments[0]
    else:
        getattr(output, link)(source)
    with pytest.raises(UserError, match="is a file that this tool reads"):
        tool.main([*arguments, "--turn-on-percentile", "0.5"])
    assert source.read_bytes() == before


@pytest.mark.parametrize("form", ["toml", "peft"])
def test_an_existing_output(files, tmp_path: Path, form: str) -> None:
    """The tool replaces its own files only."""
    arguments = [*files(_scores("opt", shortcuts=False)), "--turn-on-percentile", "0.5", "--format", form]
    output = Path(arguments[2])
    output.write_text('# The result of the run; elements that were off are disabled.\ngranularity = "layer"\n')
    with pytest.raises(UserError, match="this tool did not write it"):
        tool.main(arguments)
    output.unlink()
    tool.main(arguments)
    tool.main(arguments)


def _run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "realloc_lora_rank.py"), *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_as_a_script(files, tmp_path: Path) -> None:
    done = _run(*files(_scores("opt")), "--turn-on-percentile", "0.25", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "wrote" in done.stdout
    assert (tmp_path / "lora.toml").exists()

    wrong = _run("nothing.toml", "--total-rank", "8", "--output", "lora.toml", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: cannot read the scores file 'nothing.toml'")
    assert wrong.stderr.count("\n") == 1

    taught = _run("--help", cwd=ROOT)
    assert taught.returncode == 0
    assert "proportional  ranks in proportion" in taught.stdout
