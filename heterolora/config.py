"""LoRA and shortcut configurations: TOML files -> settings of every element. Imports nothing heavy.

Both kinds of file have one shape (the keys differ in name only)::

    granularity = "network"            # or "layer"
    [default]                          # every place that has no table of its own is this
    r = 8
    lora_alpha = 16
    [all_layers.q_proj]                # granularity "network": q_proj in every block
    disable_adapter = true
    [model_layer_0.q_proj]             # granularity "layer": q_proj in block 0 alone
    r = 4

A table is merged over `[default]` key by key. `r = 0` or `disable_… = true`: there is no element in that place.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import toml

from heterolora.errors import UserError, nearest
from heterolora.family import PROJECTIONS

Kind = Literal["lora", "shortcut"]
Granularity = Literal["network", "layer"]

#: The shortcuts, in the order of every table (design: residual1 x -> h, residual2 h -> y, shortcut1 x -> y,
#: shortcut2 h of the block before -> h).
SHORTCUTS: tuple[str, ...] = ("residual1", "residual2", "shortcut1", "shortcut2")
NAMES: tuple[str, ...] = (*PROJECTIONS, *SHORTCUTS)  # all canonical names, in the order of tables and pictures


@dataclass(frozen=True)
class ElementSettings:
    """What one place of the search space holds.

    Attributes:
        r: rank; 0: no element here.
        alpha: scaling is alpha / r.
        dropout: probability in [0, 1) with which entries of the element's input are dropped in training.
        use_rslora: scaling is alpha / sqrt(r) instead.
        disabled: there is no element here, whatever r says.
        adapter: a label; it changes nothing, so it does not count when settings are compared.
    """

    r: int = 0
    alpha: float = 0.0
    dropout: float = 0.0
    use_rslora: bool = False
    disabled: bool = False
    adapter: str = field(default="default", compare=False)

    @property
    def candidate(self) -> bool:
        """Whether there is an element in this place."""
        return self.r > 0 and not self.disabled

    @property
    def scaling(self) -> float:
        """What an element multiplies B(A(x)) by: alpha / r, or alpha / sqrt(r) with `use_rslora`."""
        return self.alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


@dataclass(frozen=True)
class _Format:
    """How one kind of file names things."""

    title: str
    names: Mapping[str, tuple[str, ...]]
    keys: Mapping[str, str]  # key of the file -> attribute of ElementSettings
    ignored: tuple[str, ...] = ()  # old keys that may only have the value that changes nothing
    top: tuple[str, ...] = ()


_FORMATS: Mapping[Kind, _Format] = {
    "lora": _Format(
        title="LoRA configuration",
        names=PROJECTIONS,
        keys={
            "r": "r",
            "lora_alpha": "alpha",
            "lora_dropout": "dropout",
            "use_rslora": "use_rslora",
            "disable_adapter": "disabled",
            "adapter_name": "adapter",
        },
        ignored=("init_lora_weights", "init_lora_weghts", "fan_in_fan_out"),
    ),
    "shortcut": _Format(
        title="shortcut configuration",
        names=dict.fromkeys(SHORTCUTS, ()),
        keys={
            "r": "r",
            "shortcut_alpha": "alpha",
            "proj_dropout": "dropout",
            "disable_projector": "disabled",
            "projector_name": "adapter",
        },
        top=("renormalize",),
    ),
}


@dataclass(frozen=True)
class ElementConfig:
    """A LoRA or a shortcut configuration.

    Attributes:
        kind: which of the two.
        granularity: `network`: `sites` are keyed by name; `layer`: by (block, name).
        default: the settings of every place that `sites` does not list.
        sites: settings of the places that have a table of their own, already merged over `default`.
        renormalize: shortcuts only: normalise once more after the cross-layer shortcuts.
        notes: what a user should hear about the file.
    """

    kind: Kind
    granularity: Granularity
    default: ElementSettings
    sites: Mapping[str | tuple[int, str], ElementSettings]
    renormalize: bool = False
    notes: tuple[str, ...] = field(default=(), compare=False)

    def lookup(self, layer: int, name: str) -> ElementSettings | None:
        """The settings of the element `name` (canonical) of block `layer`, or None if there is no element.

        A network-wise `shortcut2` is absent from block 0, which has no block before it.
        """
        if name == "shortcut2" and layer == 0:
            return None
        settings = self.sites.get(name if self.granularity == "network" else (layer, name), self.default)
        return settings if settings.candidate else None

    def named_sites(self) -> Iterator[tuple[int | None, str]]:
        """(block, or None for all; canonical name) of every table besides `[default]`."""
        return ((None, site) if isinstance(site, str) else site for site in self.sites)

    def to_document(self) -> dict[str, Any]:
        """The configuration as plain values in the shape of its file: `parse(document, kind)` gives it back."""
        form = _FORMATS[self.kind]
        document: dict[str, Any] = {"granularity": self.granularity}
        document.update({key: getattr(self, key) for key in form.top})
        document["default"] = _write(form, self.default)
        for site, settings in self.sites.items():
            table, name = ("all_layers", site) if isinstance(site, str) else (f"model_layer_{site[0]}", site[1])
            document.setdefault(table, {})[name] = _write(form, settings)
        return document

    def to_toml(self) -> str:
        """The text of its file."""
        return toml.dumps(self.to_document())


def load(path: str | Path, kind: Kind) -> ElementConfig:
    """Read a configuration file. Every mistake in it is a `UserError` that names the file."""
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({error.strerror})", f"expected a {_FORMATS[kind].title} file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML ({error})", f"expected a {_FORMATS[kind].title} file") from None
    return parse(document, kind, source=str(path))


def parse(document: Mapping[str, Any], kind: Kind, source: str = "configuration") -> ElementConfig:
    """Read the plain values of a file, or of a checkpoint that holds one.

    Args:
        document: the tables of the file.
        kind: whose keys and names are valid.
        source: what messages call it.
    """
    form = _FORMATS[kind]
    granularity = document.get("granularity")
    if granularity not in ("network", "layer"):
        found = "is missing" if granularity is None else f"is {granularity!r}"
        raise UserError(f"{source}: granularity {found}", 'expected "network" or "layer"')
    renormalize = document.get("renormalize", False)
    if "renormalize" in form.top and not isinstance(renormalize, bool):
        raise UserError(f"{source}: renormalize is {renormalize!r}", "expected true or false")

    notes: list[str] = []
    default = _read(form, document.get("default", {}), ElementSettings(), f"{source}: [default]", notes)
    sites: dict[str | tuple[int, str], ElementSettings] = {}
    for table, entries in document.items():
        if table in ("granularity", "default", *form.top):
            continue
        layer = _layer_of(table, granularity, form, source)
        if not isinstance(entries, Mapping):
            raise UserError(f"{source}: {table} is {entries!r}", f"expected tables such as [{table}.{_first(form)}]")
        for given, values in entries.items():
            where = f"{source}: [{table}.{given}]"
            name = _canonical(form, given, where)
            if name == "shortcut2" and layer == 0:
                raise UserError(
                    f"{where} has nothing to start from",
                    "shortcut2 comes from the block before, and block 0 is the first: leave it out",
                )
            site = name if layer is None else (layer, name)
            if site in sites:
                raise UserError(f"{where} names {name} a second time", f"expected one table for {name}")
            sites[site] = _read(form, values, default, where, notes)
    return ElementConfig(kind, granularity, default, sites, renormalize, tuple(dict.fromkeys(notes)))


def _first(form: _Format) -> str:
    return next(iter(form.names))


def _layer_of(table: str, granularity: Granularity, form: _Format, source: str) -> int | None:
    """`all_layers` -> None, `model_layer_3` -> 3; `UserError` for any other table."""
    if granularity == "network" and table == "all_layers":
        return None
    match = re.fullmatch(r"model_layer_(\d+)", table)
    if granularity == "layer" and match:
        return int(match[1])
    tables = {"network": "all_layers", "layer": "model_layer_<i>"}
    if table == "all_layers" or match:
        raise UserError(
            f'{source}: [{table}] does not go with granularity = "{granularity}"',
            f"expected [{tables[granularity]}.{_first(form)}]",
        )
    valid = ("granularity", "default", *form.top, tables[granularity])
    raise UserError(f"{source}: '{table}' is not known", nearest(table, valid))


def _canonical(form: _Format, given: str, where: str) -> str:
    """The canonical name of `given`, which may be one of the other accepted names."""
    for name, others in form.names.items():
        if given == name or given in others:
            return name
    valid = [name for canonical, others in form.names.items() for name in (canonical, *others)]
    raise UserError(f"{where}: '{given}' is not known", nearest(given, valid))


def _read(form: _Format, values: Any, default: ElementSettings, where: str, notes: list[str]) -> ElementSettings:
    """One table, merged over `default` key by key."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where} is {values!r}", "expected a table of keys")
    merged = dict(vars(default))
    for key, value in values.items():
        if key in form.ignored:
            _check_ignored(key, value, where, notes)
        elif key not in form.keys:
            raise UserError(f"{where}: '{key}' is not known", nearest(key, (*form.keys, *form.ignored)))
        else:
            merged[form.keys[key]] = _check(key, form.keys[key], value, where)
    settings = ElementSettings(**merged)
    if settings.candidate and settings.alpha <= 0:
        alpha = next(key for key, attribute in form.keys.items() if attribute == "alpha")
        raise UserError(f"{where}: r is {settings.r} but {alpha} is {settings.alpha:g}", f"expected {alpha} > 0")
    return settings


def _check_ignored(key: str, value: Any, where: str, notes: list[str]) -> None:
    if not isinstance(value, bool):
        raise UserError(f"{where}: {key} is {value!r}", "expected true or false")
    if key == "fan_in_fan_out" and value:
        raise UserError(f"{where}: fan_in_fan_out is true", "expected false: weights are (out, in) in every family")
    if key != "fan_in_fan_out" and not value:
        notes.append(f"{where}: {key} = false has no effect: B always starts at zero")


def _check(key: str, attribute: str, value: Any, where: str) -> Any:
    """`value` in the type of the attribute, or `UserError`."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    valid, expected = {
        "r": (number and isinstance(value, int) and value >= 0, "a whole number, 0 or more"),
        "alpha": (number and value >= 0, "a number, 0 or more"),
        "dropout": (number and 0 <= value < 1, "a number in [0, 1)"),
        "use_rslora": (isinstance(value, bool), "true or false"),
        "disabled": (isinstance(value, bool), "true or false"),
        "adapter": (isinstance(value, str), "a text"),
    }[attribute]
    if not valid:
        raise UserError(f"{where}: {key} is {value!r}", f"expected {expected}")
    return float(value) if attribute in ("alpha", "dropout") else value


def _write(form: _Format, settings: ElementSettings) -> dict[str, Any]:
    return {key: getattr(settings, attribute) for key, attribute in form.keys.items()}
