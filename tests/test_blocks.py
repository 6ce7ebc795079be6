"""The formats `axolotl`, `llamafactory` and `trl`: each block is passed to PEFT as that trainer does it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import yaml

from heterolora.choosing import scores
from heterolora.choosing.allocation import Scored
from heterolora.choosing.scores import Scores
from heterolora.elements.element import Element
from tests.mistakes import refusal
from tests.test_realloc_tool import _scores
from tests.tiny import tiny_network
from tests.world import World, run, write_lora
from tools import realloc_lora_rank as tool
from tools.reporting.run import read_runs


def in_axolotl(block: Mapping[str, Any]) -> peft.LoraConfig:
    """As `_build_peft_lora_config` in axolotl/loaders/adapter.py."""
    assert block["adapter"] == "lora"
    return peft.LoraConfig(
        r=block["lora_r"],
        lora_alpha=block["lora_alpha"],
        target_modules=block["lora_target_modules"],
        lora_dropout=block.get("lora_dropout", 0.0),
        rank_pattern=block.get("lora_rank_pattern", {}),
        alpha_pattern=block.get("lora_alpha_pattern", {}),
        use_rslora=block.get("peft_use_rslora", False),
        task_type="CAUSAL_LM",
    )


def in_llamafactory(block: Mapping[str, Any]) -> peft.LoraConfig:
    """As `_setup_lora_tuning` in llamafactory/model/adapter.py."""
    assert block["finetuning_type"] == "lora"
    return peft.LoraConfig(
        r=block["lora_rank"],
        lora_alpha=block["lora_alpha"],
        target_modules=[name.strip() for name in block["lora_target"].split(",")],
        lora_dropout=block.get("lora_dropout", 0.0),
        use_rslora=block.get("use_rslora", False),
        task_type="CAUSAL_LM",
    )


def in_trl(block: Mapping[str, Any]) -> peft.LoraConfig:
    """As `get_peft_config` in trl/trainer/utils.py."""
    assert block["use_peft"] is True
    return peft.LoraConfig(
        task_type=block["lora_task_type"],
        r=block["lora_r"],
        target_modules=block["lora_target_modules"],
        lora_alpha=block["lora_alpha"],
        lora_dropout=block.get("lora_dropout", 0.05),
        use_rslora=block.get("use_rslora", False),
    )


READERS = {"axolotl": in_axolotl, "llamafactory": in_llamafactory, "trl": in_trl}


def language_model_scores(path: Path) -> Scores:
    content = dataclasses.replace(_scores("gemma", shortcuts=False), task="causal_language_modeling", load="some/gemma")
    scores.write(path, content)
    return content


def in_peft(settings: peft.LoraConfig) -> dict[str, tuple[int, float]]:
    """Path of each adapted module -> its rank and scaling."""
    model = peft.get_peft_model(tiny_network("gemma", "causal_language_modeling"), settings)
    return {
        path.removeprefix("base_model.model."): (module.r["default"], round(module.scaling["default"], 9))
        for path, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }


@pytest.mark.parametrize("form", READERS)
def test_one_rank_for_all(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is lost: the modules, ranks and scalings are those of `--format peft`."""
    language_model_scores(tmp_path / "scores.toml")
    budget = [str(tmp_path), "--turn-on-percentile", "0.25", "--rank", "6"]
    tool.main([*budget, "--format", "peft", "--output", str(tmp_path / "lora.json")])
    tool.main([*budget, "--format", form, "--output", str(tmp_path / "lora.yaml")])
    assert "note:" not in capsys.readouterr().out
    block = yaml.safe_load((tmp_path / "lora.yaml").read_text())
    assert "some/gemma" in (block.get("base_model"), block.get("model_name_or_path"))
    expected = in_peft(peft.LoraConfig(**json.loads((tmp_path / "lora.json").read_text())))
    assert set(expected.values()) == {(6, 2.0)}
    assert in_peft(READERS[form](block)) == expected


@pytest.mark.parametrize("share", ["0.25", "1.0"])
@pytest.mark.parametrize("form", [*READERS, "peft"])
def test_short_names_mean_the_same_modules(tmp_path: Path, form: str, share: str) -> None:
    """`q_proj` stands for its paths if all modules of the network that are called so are chosen."""
    content = language_model_scores(tmp_path / "scores.toml")
    network = tiny_network("gemma", "causal_language_modeling")
    network.config.save_pretrained(tmp_path / "base")
    found = []
    for load in ("some/gemma", str(tmp_path / "base")):  # the configuration of the first is not there
        scores.write(tmp_path / "scores.toml", dataclasses.replace(content, load=load))
        output = tmp_path / f"{len(found)}.yaml"
        tool.main([str(tmp_path), "--turn-on-percentile", share, "--format", form, "--output", str(output)])
        block = yaml.safe_load(output.read_text())  # also JSON
        found.append(peft.LoraConfig(**block) if form == "peft" else READERS[form](block))
    whole, short = found
    assert in_peft(whole) == in_peft(short)
    names = short.target_modules.split(",") if isinstance(short.target_modules, str) else short.target_modules
    if share == "1.0":
        assert {*names} == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(names) <= len(in_peft(whole))


@pytest.mark.parametrize("form", READERS)
def test_no_dropout_is_written(tmp_path: Path, form: str) -> None:
    """The default of TRL is 0.05."""
    content = language_model_scores(tmp_path / "scores.toml")
    scored = (dataclasses.replace(item, element=at(item.element, dropout=0.0)) for item in content.scored)
    scores.write(tmp_path / "scores.toml", dataclasses.replace(content, scored=tuple(scored)))
    budget = ("--turn-on-percentile", "0.25", "--format", form)
    tool.main([str(tmp_path), *budget, "--output", str(tmp_path / "lora.yaml")])
    assert READERS[form](yaml.safe_load((tmp_path / "lora.yaml").read_text())).lora_dropout == 0


def test_axolotl_reads_whole_alphas_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = language_model_scores(tmp_path / "scores.toml")
    scored = (dataclasses.replace(item, element=at(item.element, alpha=1.5)) for item in content.scored)  # at rank 3
    scores.write(tmp_path / "scores.toml", dataclasses.replace(content, scored=tuple(scored)))
    budget = ("--policy", "proportional", "--parameters", "2000", "--max-rank", "8")
    tool.main([str(tmp_path), *budget, "--format", "axolotl", "--output", str(tmp_path / "lora.yaml")])
    block = yaml.safe_load((tmp_path / "lora.yaml").read_text())
    assert {type(alpha) for alpha in (block["lora_alpha"], *block["lora_alpha_pattern"].values())} == {int}
    assert "must be a whole number: 1.5 becomes 2" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "budget",
    [
        ("--turn-on-percentile", "1.0", "--rank", "6"),
        ("--policy", "proportional", "--parameters", "2000", "--max-rank", "8"),
    ],
    ids=["one rank", "ranks that differ"],
)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_schema_of_axolotl_accepts_its_block(tmp_path: Path, budget: tuple[str, ...], use_rslora: bool) -> None:
    """docs/peft.md says with which version this was checked, and how its files are found without its packages."""
    why = "the package axolotl is not here: its schema cannot check the file"
    schema = pytest.importorskip("axolotl.utils.schemas.config", reason=why, exc_type=ImportError).AxolotlInputConfig
    content = language_model_scores(tmp_path / "scores.toml")
    scored = (dataclasses.replace(item, element=at(item.element, use_rslora=use_rslora)) for item in content.scored)
    scores.write(tmp_path / "scores.toml", dataclasses.replace(content, scored=tuple(scored)))
    tool.main([str(tmp_path), *budget, "--format", "axolotl", "--output", str(tmp_path / "lora.yaml")])
    block = yaml.safe_load((tmp_path / "lora.yaml").read_text())
    assert block.get("peft_use_rslora", False) == use_rslora
    training = {"learning_rate": 1e-4, "micro_batch_size": 1, "gradient_accumulation_steps": 1, "num_epochs": 1}
    data = {"datasets": [{"path": "chat.jsonl", "type": "chat_template"}]}
    read = schema(**data, **training, **block).model_dump()
    assert {key: read.get(key) for key in block} == block  # a key that it does not know is left out


@pytest.mark.parametrize(("form", "how"), [("axolotl", "reward_model: true"), ("trl", "trl reward")])
def test_of_a_classifier(tmp_path: Path, form: str, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    scores.write(tmp_path / "scores.toml", _scores("opt", shortcuts=False))
    budget = ("--turn-on-percentile", "0.25", "--format", form)
    tool.main([str(tmp_path), *budget, "--output", str(tmp_path / "lora.yaml")])
    assert f"as reward models only ({how})" in " ".join(capsys.readouterr().out.split())


def at(element: Element, **settings: float) -> Element:
    return dataclasses.replace(element, settings=dataclasses.replace(element.settings, **settings))


@pytest.mark.parametrize("form", ["llamafactory", "trl"])
@pytest.mark.parametrize("alphas", [(16, 16), (16, 12)], ids=["equal", "other"])
def test_one_alpha_for_rslora(
    tmp_path: Path, form: str, alphas: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Alpha is the same at all ranks, and the scaling is not. Rank 4 has the larger scaling, and the smaller alpha."""
    content = language_model_scores(tmp_path / "scores.toml")
    large, small = content.scored[:2]
    pair = (
        at(large.element, rank=16, alpha=alphas[0], use_rslora=True),
        at(small.element, rank=4, alpha=alphas[1], use_rslora=True),
    )
    pair = (Scored(pair[0], 2.0), Scored(pair[1], 1.0))
    scores.write(tmp_path / "scores.toml", dataclasses.replace(content, scored=pair))
    tool.main([str(tmp_path), "--turn-on-percentile", "1.0", "--format", form, "--output", str(tmp_path / "lora.yaml")])
    block = yaml.safe_load((tmp_path / "lora.yaml").read_text())
    assert (block["lora_alpha"], block["use_rslora"]) == (16, True)
    shown = " ".join(capsys.readouterr().out.split())
    assert ("the largest alpha is written, 16" in shown) == (alphas[1] != 16)
    assert "scaling" not in shown


@pytest.mark.parametrize("form", READERS)
def test_ranks_that_differ(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    language_model_scores(tmp_path / "scores.toml")
    budget = [str(tmp_path), "--policy", "proportional", "--parameters", "2000", "--max-rank", "8"]
    tool.main([*budget, "--format", "peft", "--output", str(tmp_path / "lora.json")])
    capsys.readouterr()
    tool.main([*budget, "--format", form, "--output", str(tmp_path / "lora.yaml")])
    notes = " ".join(capsys.readouterr().out.split())
    expected = in_peft(peft.LoraConfig(**json.loads((tmp_path / "lora.json").read_text())))
    got = in_peft(READERS[form](yaml.safe_load((tmp_path / "lora.yaml").read_text())))
    assert len(set(expected.values())) > 1
    if form == "axolotl":
        assert got == expected
        assert "without lora_rank_pattern ignores it" in notes
    else:
        assert got.keys() == expected.keys()
        assert len(set(got.values())) == 1
        assert {scaling for _, scaling in got.values()} == {2.0}
        assert "one rank for all modules" in notes
        widths = {
            m: sum(tiny_network("gemma", "causal_language_modeling").get_parameter(f"{m}.weight").shape) for m in got
        }
        spent = sum(widths[module] * rank for module, (rank, _) in got.items())
        assert spent <= 2000 < spent + sum(widths.values())
        assert f"({spent:,} parameters instead of" in notes


def test_a_run_as_a_block(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora = write_lora(tmp_path / "given.toml", "q_proj", "w1", r=3)
    assert (
        run(*world.training("--lora-config", lora, "--max-steps", 1, "--project-dir", tmp_path, "--project", "run"))
        == 0
    )
    folder = tmp_path / "run"
    tool.main([str(folder), "--format", "trl", "--output", str(tmp_path / "lora.yaml")])
    capsys.readouterr()
    tool.main([str(folder), "--format", "peft", "--output", str(tmp_path / "lora.json")])
    assert "4 of 12 places on, in every block; 0.36 of the parameters" in capsys.readouterr().out
    assert read_runs([folder])[0].choice == "4 of 12 places on, in every block"
    block = yaml.safe_load((tmp_path / "lora.yaml").read_text())
    adapter = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert (block["model_name_or_path"], block["lora_r"], block["lora_task_type"]) == (str(world.opt), 3, "SEQ_CLS")
    names = {path.rpartition(".")[2] for path in adapter["target_modules"]}
    written = json.loads((tmp_path / "lora.json").read_text())
    assert {*block["lora_target_modules"]} == {*written["target_modules"]} == names == {"q_proj", "fc1"}
    assert [written[key] for key in ("r", "lora_alpha")] == [adapter[key] for key in ("r", "lora_alpha")]

    def refused(*arguments: str) -> str:
        line = refusal(tool.main, [*arguments, "--output", str(tmp_path / "other")])
        assert not (tmp_path / "other").exists()
        return line

    assert "lora.toml, or give another --format" in refused(str(folder))
    assert "--rank has no effect on a run" in refused(str(folder), "--format", "trl", "--rank", "4")
    assert "has no scores.toml and no adapter/" in refused(str(tmp_path), "--format", "trl")
    assert "trains language models only" in refused(str(folder), "--format", "llamafactory")
