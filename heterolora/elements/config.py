"""LoRA and shortcut configurations: TOML files -> the settings of every element. Imports nothing heavy.

Both kinds of file have the same structure; only the names of some keys differ::

    granularity = "network"            # or "layer"
    [default]                          # applies to every place without a table of its own
    r = 8
    lora_alpha = 16
    [all_layers.q_proj]                # granularity "network": q_proj in every block
    disable_adapter = true
    [model_layer_0.q_proj]             # granularity "layer": q_proj in block 0 only
    r = 4

LoRA outside of the blocks has a table of its own in both kinds of granularity, such as `[outside.lm_head]`.
A table is merged over `[default]` key by key. With `r = 0` or `disable_… = true` there is no element in that place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from heterolora.common.checks import PROBABILITY, TEXT, TRUTH, Condition, check_known, number, whole_number
from heterolora.common.errors import UserError, nearest, shown
from heterolora.common.files import to_toml
from heterolora.common.outside import read_toml
from heterolora.elements.element import OUTSIDE, PROJECTIONS, SHORTCUTS, Element, Kind, Place, Settings

Granularity = Literal["network", "layer"]
Site = str | tuple[int, str]  # a canonical name, in every block, in one, or outside with the number in `OUTSIDE`


@dataclass(frozen=True)
class _Format:
    """The names that one kind of file uses."""

    title: str
    names: Mapping[str, str]  # accepted name -> canonical name
    keys: Mapping[str, str]  # key of the file -> attribute of Settings
    ignored: tuple[str, ...] = ()  # old keys, accepted only with the value that changes nothing
    top: tuple[str, ...] = ()

    @property
    def example(self) -> str:
        return next(iter(self.names))


_FORMATS: Mapping[Kind, _Format] = {
    "lora": _Format(
        title="LoRA configuration",
        names={given: name for name, others in PROJECTIONS.items() for given in (name, *others)},
        keys={
            "r": "rank",
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
        names={name: name for name in SHORTCUTS},
        keys={
            "r": "rank",
            "shortcut_alpha": "alpha",
            "proj_dropout": "dropout",
            "disable_projector": "disabled",
            "projector_name": "adapter",
        },
        top=("renormalize",),
    ),
}
_FIELDS: Mapping[str, Condition] = {  # by attribute of Settings
    "rank": whole_number(0),
    "alpha": number(lambda value: value >= 0, "a number, 0 or more"),
    "dropout": PROBABILITY,
    "use_rslora": TRUTH,
    "disabled": TRUTH,
    "adapter": TEXT,
}


@dataclass(frozen=True)
class ElementConfig:
    """A LoRA or a shortcut configuration.

    Attributes:
        granularity: `network`: the keys of `sites` are names; `layer`: (block, name).
        default: the settings of every place that is not in `sites`.
        sites: the settings of the places with a table of their own, already merged over `default`.
        renormalize: shortcuts only: normalise once more after the cross-layer shortcuts.
        notes: remarks about the file for the user.
    """

    kind: Kind
    granularity: Granularity
    default: Settings
    sites: Mapping[Site, Settings]
    renormalize: bool = False
    notes: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, elements: Iterable[Element], kind: Kind, renormalize: bool = False) -> ElementConfig:
        """The layer-wise configuration with exactly the elements of one kind."""
        sites: dict[Site, Settings] = {
            (element.layer, element.name): element.settings for element in elements if element.kind == kind
        }
        return cls(kind, "layer", Settings(), sites, renormalize)

    def named(
        self, accepted: Mapping[str, str], source: str = "", outside: Callable[[], Mapping[str, str]] = dict
    ) -> ElementConfig:
        """The same configuration with the names of the places of a model, `accepted` of `Family`.

        Canonical names that the model lacks stay; they have no effect. `source` is its name in messages, and `outside`
        returns such names of places outside of the blocks. Raises UserError for any other name, and if two tables are
        about one place.
        """
        form, sites = _FORMATS[self.kind], {}
        for site, settings in self.sites.items():
            layer, given = (None, site) if isinstance(site, str) else site
            table = "all_layers" if layer is None else _table_of(Place(layer, given))
            where = f"{source or form.title}: [{table}.{given}]"
            own: Site
            if layer is not None and Place(layer, given).is_outside:
                name = _place(where, given, {} if given in OUTSIDE else outside(), OUTSIDE)
                own = (OUTSIDE[name], name)
            else:
                name = _place(where, given, accepted, {**dict.fromkeys(accepted.values()), **form.names})
                own = name if layer is None else (layer, name)
            if own in sites:
                raise UserError(f"{where} names {name} a second time", f"expected one table for {name}")
            sites[own] = settings
        return replace(self, sites=sites)

    def lookup(self, layer: int, name: str, by_default: bool = True) -> Settings | None:
        """The settings of the element `name` (canonical) of block `layer`, or None if there is no element.

        Without `by_default`, and outside of the blocks, there is one only if the place has a table of its own.
        `shortcut2` of a network-wise configuration does not exist in block 0, which has no previous block.
        """
        if name == "shortcut2" and layer == 0:
            return None
        outside = Place(layer, name).is_outside
        site = name if self.granularity == "network" and not outside else (layer, name)
        settings = self.sites.get(site, self.default if by_default and not outside else None)
        return settings if settings is not None and settings.candidate else None

    def to_document(self) -> dict[str, Any]:
        """The plain values of the file: `parse_config(document, kind)` returns an equal configuration."""
        form = _FORMATS[self.kind]
        document: dict[str, Any] = {"granularity": self.granularity}
        document.update({key: getattr(self, key) for key in form.top})
        document["default"] = _write(form, self.default)
        for site, settings in self.sites.items():
            table, name = ("all_layers", site) if isinstance(site, str) else (_table_of(Place(*site)), site[1])
            document.setdefault(table, {})[name] = _write(form, settings)
        return document

    def to_toml(self) -> str:
        return to_toml(self.to_document())


def load(path: str | Path, kind: Kind, any_name: bool = False) -> ElementConfig:
    """Read a configuration file. `any_name` is as for `parse_config`.

    Raises UserError if it cannot be read, or holds an unknown name or a wrong value.
    """
    title = _FORMATS[kind].title
    return parse_config(read_toml(path, f"the {title}", f"expected a {title} file"), kind, str(path), any_name)


def parse_config(
    document: Mapping[str, Any], kind: Kind, source: str = "configuration", any_name: bool = False
) -> ElementConfig:
    """Read the plain values of a file, or of a checkpoint that holds a configuration; `source` is its name in messages.

    With `any_name`, the places of a LoRA configuration may have other names than the canonical ones. Its model decides
    which: see `named`. Raises UserError if the document holds an unknown name or a wrong value.
    """
    form = _FORMATS[kind]
    if not isinstance(document, Mapping):
        raise UserError(f"{source} is {shown(document)}", "expected a table of keys")
    granularity = document.get("granularity")
    if granularity not in ("network", "layer"):
        found = "is missing" if granularity is None else f"is {shown(granularity)}"
        raise UserError(f"{source}: granularity {found}", 'expected "network" or "layer"')
    renormalize = document.get("renormalize", False)
    if "renormalize" in form.top:
        TRUTH.check(source, "renormalize", renormalize)

    notes: list[str] = []
    default = _read(form, document.get("default", {}), Settings(), f"{source}: [default]", notes)
    sites: dict[Site, Settings] = {}
    for table, entries in document.items():
        if table in ("granularity", "default", *form.top):
            continue
        outside = table == "outside" and kind == "lora"
        layer = None if outside else _layer_of(str(table), granularity, form, source)
        if not isinstance(entries, Mapping):
            expected = f"expected tables such as [{table}.{form.example}]"
            raise UserError(f"{source}: {table} is {shown(entries)}", expected)
        for given, values in entries.items():
            where = f"{source}: [{table}.{given}]"
            if kind == "lora" and given in OUTSIDE and not outside:
                raise UserError(f"{where} is no place of a block", f"expected [outside.{given}]")
            if kind == "shortcut" or not any_name:
                check_known(where, given, OUTSIDE if outside else form.names)
            name = form.names.get(given, given)
            if name == "shortcut2" and layer == 0:
                advice = "shortcut2 starts in the previous block; leave it out of block 0"
                raise UserError(f"{where} has no previous block", advice)
            number = OUTSIDE.get(name, max(OUTSIDE.values())) if outside else layer  # `named` knows other names
            site = name if number is None else (number, name)
            if site in sites:
                raise UserError(f"{where} names {name} a second time", f"expected one table for {name}")
            sites[site] = _read(form, values, default, where, notes)
    return ElementConfig(kind, granularity, default, sites, renormalize, tuple(dict.fromkeys(notes)))


def _place(where: str, given: str, names: Mapping[str, str], also: Collection[str]) -> str:
    """The place that a name stands for. Raises UserError if it is neither in `names` nor in `also`."""
    if given not in names:
        check_known(where, given, also)
    return names.get(given, given)


def _table_of(place: Place) -> str:
    return place.table if place.is_outside else f"model_{place.table}"


def _layer_of(table: str, granularity: Granularity, form: _Format, source: str) -> int | None:
    """`all_layers` -> None, `model_layer_3` -> 3. Raises UserError unless the table fits the granularity."""
    match = re.fullmatch(r"all_layers|model_layer_(0|[1-9][0-9]{0,8})", table)
    expected = {"network": "all_layers", "layer": "model_layer_<i>"}[granularity]
    if match is None:
        valid = ("granularity", "default", *form.top, expected)
        raise UserError(f"{source}: '{table}' is not known", nearest(table, valid))
    if (table == "all_layers") != (granularity == "network"):
        raise UserError(
            f'{source}: [{table}] does not match granularity = "{granularity}"', f"expected [{expected}.{form.example}]"
        )
    return int(match[1]) if match[1] else None


def _read(form: _Format, values: Any, default: Settings, where: str, notes: list[str]) -> Settings:
    """One table, merged over `default` key by key."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where} is {shown(values)}", "expected a table of keys")
    given: dict[str, Any] = {}
    for key, value in values.items():
        if key in form.ignored:
            _check_ignored(key, value, where, notes)
            continue
        check_known(where, key, (*form.keys, *form.ignored))
        attribute = form.keys[key]
        value = _FIELDS[attribute].check(where, key, value)
        given[attribute] = float(value) if attribute in ("alpha", "dropout") else value
    settings = replace(default, **given)
    if settings.candidate and settings.alpha <= 0:
        alpha = next(key for key, attribute in form.keys.items() if attribute == "alpha")
        raise UserError(f"{where}: r is {settings.rank} but {alpha} is {settings.alpha:g}", f"expected {alpha} > 0")
    return settings


def _check_ignored(key: str, value: Any, where: str, notes: list[str]) -> None:
    TRUTH.check(where, key, value)
    if key == "fan_in_fan_out" and value:
        raise UserError(f"{where}: fan_in_fan_out is true", "expected false: transposed weights are found")
    if key != "fan_in_fan_out" and not value:
        notes.append(f"{where}: {key} = false has no effect: B always starts at zero")


def _write(form: _Format, settings: Settings) -> dict[str, Any]:
    return {key: getattr(settings, attribute) for key, attribute in form.keys.items()}
