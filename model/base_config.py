"""The configuration of a base model: it is read and checked before anything is built from it. No code of its own runs.

A configuration can describe a network of any size. So its counts are checked before transformers reads them, and its
number of weights before memory is allocated for them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from heterolora.common.checks import Condition, whole_number
from heterolora.common.errors import UserError, shown
from heterolora.common.outside import read_json, reading
from heterolora.elements.adapt import in_head

_OF_FILES = (".json", ".jinja", ".safetensors", ".bin", ".model")
_INDEX = ".index.json"  # the end of the names of lists of weight files
_LAYERS = whole_number(0, most=2_000)
_VOCABULARY = whole_number(1, most=2**31)
_COUNT = whole_number(0, most=1_000_000)
_SHARE = Condition(lambda value: 0 <= value <= 1, "a number from 0 to 1")
# Others, such as flash_attention_2 and sonicmoe, may be kernels of the hub, which transformers would download and run.
_OWN_CODE = ("eager", "sdpa", "flex_attention", "grouped_mm", "batched_mm")
_IMPLEMENTATION = Condition(
    lambda value: value is None or value in _OWN_CODE,
    f"one of {', '.join(_OWN_CODE)}: a file never chooses kernels of the hub",
)


def where_from(source: str) -> str:
    """The advice of a message about a base model that cannot be loaded."""
    folder = "a folder that save_pretrained wrote"
    return f"give {folder}" if os.path.isdir(source) else f"give a hub name or {folder}"


def read_config(source: str, **more: Any) -> PretrainedConfig:
    """Return the configuration of a hub name or a folder, with the values of `more`.

    Raises UserError if it cannot be read, a value has the wrong type, or a count is out of proportion.
    """
    expected = where_from(source)
    if source.startswith((".", "/", "~")) and not os.path.exists(source):
        raise UserError(f"the model's folder '{source}' is not there", expected)
    if os.path.isdir(source):
        values = read_json(Path(source) / "config.json", "the model's configuration", expected)
    else:
        with reading("the configuration of the model", source, expected):
            values, _ = PretrainedConfig.get_config_dict(source)
    with reading("the configuration of the model", source, expected):
        for key, value in _numbers_and_names(values):
            field = _field_of(key, value)
            if field is not None:
                field.check(f"the configuration of '{source}'", key, value)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **more)
        _VOCABULARY.check(f"the configuration of '{source}'", "vocab_size", config.get_text_config().vocab_size)
        return config


def _numbers_and_names(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Key and value, also of inner configurations such as `text_config`."""
    for key, value in values.items():
        if key.endswith("_implementation"):
            yield key, value
        elif isinstance(value, Mapping):
            yield from _numbers_and_names(value)
        elif isinstance(value, int | float | str) and not isinstance(value, bool):
            yield key, value


def _field_of(key: str, value: Any) -> Condition | None:
    """The check of a value, by the words in its key: architectures have many keys of the same kind."""
    if key.endswith("_implementation"):
        return _IMPLEMENTATION
    if isinstance(value, str):
        return None
    if "drop" in key:
        return _SHARE
    if isinstance(value, float):
        return None
    return _LAYERS if "layer" in key else _COUNT if key.startswith("num_") else None


def check_files(folder: Path) -> None:
    """Raise UserError if a list of weight files leaves the folder, a weight is no real number, or a folder has the
    name of a file, which transformers would pass over.
    """
    expected = "give a folder that save_pretrained wrote"
    for path in sorted(folder.iterdir()):
        if path.suffix in _OF_FILES and os.path.exists(path) and not path.is_file():
            raise UserError(f"'{path}' is no file", expected)
        if path.name.endswith(_INDEX):
            _check_index(path, expected)
        elif path.suffix == ".safetensors":
            with reading("the weights", path, expected), safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no dictionary
                    dtype = file.get_slice(name).get_dtype()
                    if name.endswith((".weight", ".bias")) and not dtype.startswith(("F", "BF")):
                        raise UserError(f"the weight {name} in '{path}' has the type {dtype}", "expected real numbers")


def _check_index(path: Path, expected: str) -> None:
    files = read_json(path, "the list of weight files", expected).get("weight_map")
    if not isinstance(files, Mapping):
        raise UserError(f"'{path}' has no weight_map", expected)
    for name in {shown(file): file for file in files.values()}.values():
        inside = isinstance(name, str) and name and not Path(name).is_absolute() and ".." not in Path(name).parts
        if not inside or not os.path.isfile(path.parent / name):
            raise UserError(f"'{path}' names {shown(name)}, which is no file in its folder", expected)


def check_size(network: PreTrainedModel, source: str, from_files: bool) -> None:
    """Raise UserError if a network has more weights than its files can hold, or than fit into memory.

    Args:
        network: its tensors may be on the meta device.
        source: hub name or folder of the network.
        from_files: whether the weights are read, not drawn. The size of files on the hub is not known.
    """
    weights = sum(parameter.numel() for name, parameter in network.named_parameters() if not in_head(name))
    if not from_files:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if 4 * weights > memory:
            raise UserError(
                f"the configuration of '{source}' has {weights:,} weights, which need {4 * weights:,} bytes",
                f"this machine has {memory:,} bytes of memory: give a smaller model",
            )
    elif os.path.isdir(source):
        files = (path for path in Path(source).iterdir() if path.suffix in (".safetensors", ".bin") and path.is_file())
        stored = sum(path.stat().st_size for path in files)
        if weights > stored > 0:  # a weight takes at least a byte
            raise UserError(
                f"the configuration of '{source}' has {weights:,} weights, but its files have {stored:,} bytes",
                "give a folder whose files belong together",
            )
