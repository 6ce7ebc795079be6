"""The sound files that cases damage: a model, data in every form, and the folder of a run of each action."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file

from main import main
from tests.run_folders import dynamic_run, scored_run
from tests.studies import DRAWN, GRAD_NORM, ON_SST2, ON_TOY_DATA, UNIFORM, InThisProcess, study_text
from tests.world import model_folder, sentences, sst2_folder, write_jsonl, write_lora, write_shortcuts
from tools.studies.execution import Execution
from tools.studies.spec import read_study

SKELETON = "checkpoint.json"  # the structure of the checkpoint, without tensors

STUDY = study_text(ON_TOY_DATA, UNIFORM, GRAD_NORM, options="max_epochs = 1", seeds="0, 1", rates="1e-3, 1e-2")
STUDIED = study_text(
    ON_SST2,
    UNIFORM,
    DRAWN + "rank = 4\n",
    options='''max_steps = 1
batch_size = 4
pretrained = true
accelerator = "cpu"
logger = "none"''',
)

#: Measures an adapted model on one batch; see `measuring` for other options.
TEST = ("test", "--model", "opt_lora", "--dataset", "sst2", "--load", "{world}/model", "--pretrained")
TEST += ("--lora-config", "{world}/lora.toml", "--dataset-saved-path", "{world}/data", "--batch-size", "4")
TEST += ("--limit-test-batches", "1")
TEST += ("--accelerator", "cpu", "--logger", "none", "--project-dir", "{case}/runs")


def measuring(*more: str, action: str = "test") -> tuple[str, ...]:
    """`TEST` with other values of options, and more options. An option is not given twice."""
    words, kept = iter(TEST[1:]), [action]
    for word in words:
        pair = (word,) if word == "--pretrained" else (word, next(words))
        kept += () if word in more else pair
    return (*kept, *more)


def make_sound_world(folder: Path) -> int:
    """Make everything; returns an exit code."""
    torch.set_num_threads(1)
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    model_folder(folder / "model")
    template = "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' ' }}{% endfor %}"
    (folder / "model" / "chat_template.jinja").write_text(template)
    sst2_folder(folder / "data", train=12, validation=6)
    with write_lora(folder / "lora.toml").open("a") as lora:
        lora.write("[outside.embed_tokens]\nr = 2\nlora_alpha = 4\n")
    write_shortcuts(folder / "shortcut.toml")
    (folder / "study.toml").write_text(STUDY)
    _write_data(folder)
    more = ("--model", "opt_lora_ags", "--max-steps", "2", "--limit-val-batches", "1", "--logger", "csv")
    words = measuring(*more, "--project", "trained", action="train")
    code = main([part.replace("{world}", str(folder)).replace("{case}/runs", str(folder)) for part in words])
    contents = torch.load(folder / "trained" / "checkpoints" / "last.ckpt", weights_only=True)
    (folder / SKELETON).write_text(json.dumps(_plain(contents)))
    torch.save(load_file(folder / "model" / "model.safetensors"), folder / "state.pt")
    dynamic_run(folder / "dynamic", layers=2, epochs=(0, 1), logger="csv")
    scored_run(folder / "scored", layers=2)
    _finished_study(folder)
    return code


def _finished_study(folder: Path) -> None:
    """A study of two arms that has ended, in `studied`."""
    text = STUDIED.replace("{load}", f"{folder}/model").replace("{data}", f"{folder}/data")
    (folder / "studied.toml").write_text(text)
    execution = Execution(read_study(folder / "studied.toml"), folder / "studied", start=InThisProcess())
    execution.jobs_folder.mkdir(parents=True)
    execution.comparisons(run_jobs=True, track=lambda items, *_: items)


def _write_data(folder: Path) -> None:
    rows = {split: sentences(count, seed) for split, count, seed in (("train", 12, 1), ("validation", 6, 2))}
    DatasetDict({split: Dataset.from_list(found) for split, found in rows.items()}).save_to_disk(folder / "saved")
    turns = [("user", "a film"), ("assistant", "good")]
    talk = [{"role": role, "content": text} for role, text in turns]
    write_jsonl(folder / "talks" / "train.jsonl", [{"messages": talk}] * 6)
    choices = {"text": ["good", "bad film"], "label": ["A", "B"]}
    question = {"question": "a film", "choices": choices, "answerKey": "B", "endings": choices["text"], "answer": 1}
    for split in ("train", "validation", "test"):
        write_jsonl(folder / "quiz" / f"{split}.jsonl", [question] * 4)
    for name in ("csv", "json", "parquet"):
        (folder / name).mkdir()
        for split, found in rows.items():
            data, file = Dataset.from_list(found), folder / name / f"{split}.{name}"
            if name == "json":
                file.write_text(json.dumps(found))
            else:
                (data.to_csv if name == "csv" else data.to_parquet)(file)


def _plain(value: Any) -> Any:
    """The structure of a value of a checkpoint."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool) else None
