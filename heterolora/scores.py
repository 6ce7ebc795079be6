"""The scores file: what `imp-test` found, with all that is needed to make a configuration of it.

::

    task = "classification"
    dataset = "rte"
    model = "opt_lora"
    load = "facebook/opt-350m"
    importance_test_name = "grad_norm"
    batches = 32
    batch_size = 8
    seed = 0

    [layer_0.q_proj]
    score = 0.0123
    kind = "lora"
    module = "model.decoder.layers.0.self_attn.q_proj"
    in = 1024
    out = 1024
    r = 8
    alpha = 16.0
    dropout = 0.0

`use_rslora` of an element and `renormalize` at the top are written where they are true.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from heterolora.config import NAMES, SHORTCUTS
from heterolora.errors import UserError, nearest
from heterolora.files import write_text
from heterolora.ranks import Site


@dataclass(frozen=True)
class ElementScore(Site):
    """One scored element: all of a `Site`, its score finite and not negative, and how it was set up.

    Attributes:
        module: the library's own path of the linear layer (LoRA) or block (shortcut).
        alpha: scaling was alpha / rank, or alpha / sqrt(rank) with `use_rslora`.
        dropout: in [0, 1).
        use_rslora: the rank-stabilised scaling.
    """

    module: str
    alpha: float
    dropout: float
    use_rslora: bool = False


@dataclass(frozen=True)
class Scores:
    """A scores file.

    Attributes:
        task: of the scoring batches, like the next five.
        dataset: name of the data set.
        model: `--model`, e.g. `opt_lora`.
        load: hub name or folder of the base; empty where there was none.
        importance_test_name: the heuristic.
        batches: number of scoring batches, over all processes.
        batch_size: their rows.
        seed: `--seed`.
        elements: every candidate, by block and then in the order of the search space.
        renormalize: whether the blocks normalise once more after the cross-layer shortcuts.
    """

    task: str
    dataset: str
    model: str
    load: str
    importance_test_name: str
    batches: int
    batch_size: int
    seed: int
    elements: tuple[ElementScore, ...]
    renormalize: bool = False


@dataclass(frozen=True)
class _Key:
    """One key of the file: the attribute that it becomes, and what is right for it."""

    attribute: str
    valid: Callable[[Any], bool]
    expected: str
    required: bool = True


def _whole_number(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


_TRUTH = (lambda value: isinstance(value, bool), "true or false", False)

_TOP: Mapping[str, _Key] = {
    **{key: _Key(key, _text, "a text") for key in ("task", "dataset", "model", "load", "importance_test_name")},
    "batches": _Key("batches", lambda value: _whole_number(value, 0), "a whole number, 0 or more"),
    "batch_size": _Key("batch_size", lambda value: _whole_number(value, 1), "a whole number, 1 or more"),
    "seed": _Key("seed", lambda value: _whole_number(value, 0), "a whole number, 0 or more"),
    "renormalize": _Key("renormalize", *_TRUTH),
}

_ELEMENT: Mapping[str, _Key] = {
    "score": _Key("score", lambda value: _number(value) and value >= 0, "a finite number, 0 or more"),
    "kind": _Key("kind", lambda value: value in ("lora", "shortcut"), '"lora" or "shortcut"'),
    "module": _Key("module", _text, "a text"),
    "in": _Key("in_features", lambda value: _whole_number(value, 1), "a whole number, 1 or more"),
    "out": _Key("out_features", lambda value: _whole_number(value, 1), "a whole number, 1 or more"),
    "r": _Key("rank", lambda value: _whole_number(value, 1), "a whole number, 1 or more"),
    "alpha": _Key("alpha", lambda value: _number(value) and value > 0, "a number above 0"),
    "dropout": _Key("dropout", lambda value: _number(value) and 0 <= value < 1, "a number in [0, 1)"),
    "use_rslora": _Key("use_rslora", *_TRUTH),
}


def read(path: str | Path) -> Scores:
    """Read a scores file.

    Raises:
        UserError: it is not there, not TOML, lacks a key, has an unknown one or a wrong value (a NaN or negative score
            too), or scores nothing.
    """
    expected = "expected a scores file, as imp-test writes it"
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({error.strerror})", expected) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML ({error})", expected) from None

    tables = {key: value for key, value in document.items() if re.fullmatch(r"layer_(0|[1-9]\d*)", key)}
    top = {key: value for key, value in document.items() if key not in tables}
    elements = [
        _read_element(path, int(table.removeprefix("layer_")), name, values)
        for table, names in tables.items()
        for name, values in _table(f"{path}: [{table}]", names).items()
    ]
    values = _read_keys(str(path), _TOP, top, "a table [layer_<i>.<name>] for each element")
    if not elements:
        raise UserError(f"{path}: no element is scored", "expected a table [layer_<i>.<name>] for each element")
    elements.sort(key=lambda element: element.layer)  # stable: within a block the file's order
    return Scores(**values, elements=tuple(elements))


def write(path: str | Path, scores: Scores) -> None:
    """Write a scores file, whole or not at all; `read` gives back equal scores, floats bit for bit.

    Raises:
        UserError: a score is NaN or infinite, or the file can't be written there.
    """
    document = _to_document(_TOP, scores)
    for element in scores.elements:
        if not math.isfinite(element.score):
            raise UserError(f"the score of {element.key} is {element.score}", "expected a finite one")
        document.setdefault(f"layer_{element.layer}", {})[element.name] = _to_document(_ELEMENT, element)
    write_text(path, tomli_w.dumps(document))


def _to_document(keys: Mapping[str, _Key], values: Scores | ElementScore) -> dict[str, Any]:
    """The values under the file's keys; one that need not be there is left out while it is false."""
    document = {key: getattr(values, form.attribute) for key, form in keys.items()}
    return {key: value for key, value in document.items() if keys[key].required or value}


def _read_element(path: str | Path, layer: int, name: str, values: Any) -> ElementScore:
    where = f"{path}: [layer_{layer}.{name}]"
    if name not in NAMES:
        raise UserError(f"{where}: '{name}' is not known", nearest(name, NAMES))
    read_values = _read_keys(where, _ELEMENT, _table(where, values))
    kind = "shortcut" if name in SHORTCUTS else "lora"
    if read_values["kind"] != kind:
        raise UserError(f"{where}: kind is '{read_values['kind']}'", f"expected '{kind}' for {name}")
    if name == "shortcut2" and layer == 0:
        raise UserError(
            f"{where} has nothing to start from", "shortcut2 comes from the block before, and block 0 is the first"
        )
    for key in ("score", "alpha", "dropout"):
        read_values[key] = float(read_values[key])
    return ElementScore(layer=layer, name=name, **read_values)


def _table(where: str, values: Any) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise UserError(f"{where} is {values!r}", "expected a table [layer_<i>.<name>]")
    return values


def _read_keys(where: str, keys: Mapping[str, _Key], values: Mapping[str, Any], also: str = "") -> dict[str, Any]:
    """Attribute → value, each checked."""
    for key, value in values.items():
        if key not in keys:
            raise UserError(f"{where}: '{key}' is not known", nearest(key, keys) + (f", or {also}" if also else ""))
        if not keys[key].valid(value):
            raise UserError(f"{where}: {key} is {value!r}", f"expected {keys[key].expected}")
    missing = [key for key, form in keys.items() if form.required and key not in values]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} missing", "expected a scores file, as imp-test writes it")
    return {keys[key].attribute: value for key, value in values.items()}
