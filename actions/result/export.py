"""The result of a run, in files that other tools and later runs read."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from actions.result.metrics_file import read_metrics
from actions.run.console import is_first_process, note, say
from actions.run.run_folder import ADAPTER, LORA, SHORTCUT
from actions.training.experiment import Experiment
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError
from heterolora.common.files import whole_folder, write_text
from heterolora.common.outside import read_text
from heterolora.elements.peft_config import peft_notes
from heterolora.elements.search_space import SearchSpace
from heterolora.pictures.of_run import CONFUSION_PICTURE, draw, of_ranks
from model.checkpoint import ModelRecord
from model.load import load_tokenizer
from model.peft_format import CARD, SHORTCUT_CONFIG, SHORTCUTS
from model.peft_format.card import Described, card
from model.peft_format.vllm import how_to_load, uniform
from model.peft_format.writing import result_config, write_adapter
from options.every import declared


def export_run(experiment: Experiment, folder: Path) -> None:
    """Write `adapter/`, `lora.toml` and, for a model with shortcuts, `shortcut.toml` into the run folder.

    Call it last: the card shows the metrics and pictures in the folder. Nothing is written for a plain model.
    """
    task = experiment.task
    if task.space is None or not is_first_process():
        return
    record = task.current_record()
    head = "# The result of the run; elements that were off are disabled.\n"
    write_text(folder / LORA, head + result_config(task.space, "lora").to_toml())
    if "shortcut" in record.configs:
        write_text(folder / SHORTCUT, head + result_config(task.space, "shortcut", record.renormalizes).to_toml())
    tokenizer = load_tokenizer(record.base.name, task.network.config)
    write_adapter_folder(folder / ADAPTER, task.network, task.space, task.spec, tokenizer, record, folder)
    for text in peft_notes([low_rank.element for low_rank in task.space.on("lora")]):
        note(text)
    if record.renormalizes or task.space.on("shortcut"):
        note("PEFT has no shortcuts: it loads the model without what adapter/shortcut.toml describes")
    say(f"adapter, for PEFT too: {folder / ADAPTER}")


def write_adapter_folder(
    target: Path,
    network: PreTrainedModel,
    space: SearchSpace,
    spec: DatasetSpec,
    tokenizer: PreTrainedTokenizerBase,
    record: ModelRecord,
    run_folder: Path | None,
    for_vllm: bool = False,
) -> None:
    """Write an adapter folder with its tokenizer and card, completely or not at all. Other files of the folder stay.

    The trained weights of the network must be in memory; its base may be on the meta device. The card shows the metrics
    and the pictures in `run_folder`. With `for_vllm`, LoRA is written as vLLM reads it.
    """
    metrics = {} if run_folder is None else read_metrics(run_folder)[0]
    on = space.on("lora")
    result = Described(
        network,
        space,
        spec,
        record,
        metrics or None,
        _configurations(record),
        also=how_to_load(on, record.base.name) if for_vllm else "",
    )
    shortcut = result_config(space, "shortcut", record.renormalizes) if result.beyond_peft else None
    remembered = _to_remember(record, shortcut is not None)
    with whole_folder(target, replaces=(SHORTCUTS, SHORTCUT_CONFIG)) as unfinished:
        write_adapter(unfinished, network, space, spec.task, remembered, shortcut, uniform(on) if for_vllm else on)
        tokenizer.save_pretrained(unfinished)
        on_ranks = {low_rank.element.key: float(low_rank.element.rank) for low_rank in space.on()}
        ranks = {place: on_ranks.get(place.key, 0.0) for place in space.places()}
        pictures = [file.name for file in draw(of_ranks(ranks, len(space.blocks)), unfinished)]
        drawn = set() if run_folder is None else {*run_folder.glob("*.png")} - {run_folder / CONFUSION_PICTURE}
        for picture in sorted(drawn):  # those of the elements
            shutil.copyfile(picture, unfinished / picture.name)
            pictures.append(picture.name)
        write_text(unfinished / CARD, card(replace(result, pictures=pictures)))


def _to_remember(record: ModelRecord, shortcuts: bool) -> ModelRecord:
    """The record for an adapter: model and data. Its configurations are in its own files."""
    known = {name for name, info in declared().items() if info.from_checkpoint}
    options = {name: value for name, value in record.options.items() if name in known}
    if not shortcuts and "model" in options:
        options["model"] = options["model"].removesuffix("_ags")
    return replace(record, options=options, configs={}, on=())


def _configurations(record: ModelRecord) -> list[str]:
    """The name of each configuration file, with its first comment if the file still exists."""
    paths = [Path(path) for key in ("lora_config", "shortcut_config") if (path := record.options.get(key))]
    return [f"`{path.name}`" + (f": {comment}" if (comment := _first_comment(path)) else "") for path in paths]


def _first_comment(path: Path) -> str:
    try:
        lines = read_text(path, "the configuration", "").splitlines()
    except UserError:
        return ""
    return " ".join(line[2:] for line in itertools.takewhile(lambda line: line.startswith("# "), lines))
