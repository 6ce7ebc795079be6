"""Reads the settings of each element from PEFT's `adapter_config.json`. Variants of LoRA are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heterolora.common.checks import ABOVE_0, PROBABILITY, TEXT, TRUTH, Condition, whole_number
from heterolora.common.errors import UserError, shown
from heterolora.common.outside import read_json
from heterolora.common.patterns import match, names_module, valid
from heterolora.elements.element import Settings
from heterolora.elements.task import TASKS

# The variant of LoRA that a key turns on.
_VARIANTS: Mapping[str, str] = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "kasa_config": "KaSA",
    "alora_invocation_tokens": "aLoRA",
    "arrow_config": "Arrow routing",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "trained token embeddings",
    "lora_bias": "a bias in B",
    "megatron_config": "Megatron layers",
}
# Prefixes of `init_lora_weights` that change the base, with the names of the methods.
_CHANGE_THE_BASE = {"pissa": "PiSSA", "olora": "OLoRA", "corda": "CorDA", "loftq": "LoftQ", "lora_ga": "LoRA-GA"}
# Values of `init_lora_weights` that only initialise A and B. The trained adapter does not depend on them.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _by_pattern(values: Condition) -> Condition:
    def fits(patterns: Any) -> bool:
        return isinstance(patterns, dict) and all(valid(key) and values.valid(value) for key, value in patterns.items())

    return Condition(fits, f"regular expressions, each with {values.expected}")


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


_TASK_TYPES = tuple(dict.fromkeys(name for task in TASKS.values() for name in task.peft_types))
_RANK = whole_number(1)
_MODULES = Condition(lambda value: _is_names(value) or valid(value), "a regular expression or a list of names")
_PATTERNS = Condition(lambda value: all(map(valid, _listed(value))), "a regular expression or a list of them")
_INDEX = whole_number(0)
_LARGEST = 4 * 2**20  # bytes of the file
_DEFAULTS = {"r": 8, "lora_alpha": 8}  # a key without a default may also be null
_FIELDS: Mapping[str, Condition] = {
    "task_type": Condition(lambda value: value in _TASK_TYPES, " or ".join(_TASK_TYPES)),
    "r": _RANK,
    "lora_alpha": ABOVE_0,
    "lora_dropout": PROBABILITY,
    "rank_pattern": _by_pattern(_RANK),
    "alpha_pattern": _by_pattern(ABOVE_0),
    "target_modules": _MODULES,
    "target_parameters": Condition(_is_names, "a list of names"),
    "exclude_modules": _MODULES,
    "layers_pattern": _PATTERNS,
    "modules_to_save": Condition(lambda value: _is_names(value) and all(map(valid, value)), "a list of names"),
    "layers_to_transform": Condition(lambda value: all(map(_INDEX.valid, _listed(value))), "block numbers"),
    "base_model_name_or_path": TEXT,
    "revision": TEXT,
    "use_rslora": TRUTH,
}
# Notes, settings of features that are off or only used before training, and keys that are checked by other means.
_OTHERS = (
    "auto_mapping", "peft_version", "inference_mode", "runtime_config", "megatron_core", "qalora_group_size",
    "eva_config", "corda_config", "loftq_config", "lora_ga_config", "ensure_weight_tying",
    "peft_type", "bias", "init_lora_weights", "fan_in_fan_out",
)  # fmt: skip


@dataclass(frozen=True)
class PeftSettings:
    """An `adapter_config.json`.

    Attributes:
        source: the file, for messages.
        values: its keys, checked, with the defaults of `r` and `lora_alpha`.
    """

    source: str
    values: Mapping[str, Any]

    @property
    def transposed(self) -> bool:
        """Whether the weights of the base are (in, out)."""
        return bool(self.values.get("fan_in_fan_out"))

    @property
    def task_type(self) -> str | None:
        return self.values.get("task_type")

    @property
    def base(self) -> str | None:
        """Hub name or folder of the base, as the author of the adapter used it."""
        return self.values.get("base_model_name_or_path") or None

    @property
    def revision(self) -> str | None:
        """The commit or branch of `base`, if it is not the default."""
        revision = self.values.get("revision")
        return None if revision in (None, "", "main") else revision

    def element(self, module: str) -> Settings:
        """Return the settings of LoRA on the linear layer at `module`."""

        def value(patterns: str, default: str) -> Any:
            """The value of the first pattern that matches the path or its ending."""
            found = (self.values.get(patterns) or {}).items()
            return next((v for key, v in found if match(rf"(.*\.)?({key})$", module)), self.values[default])

        return Settings(
            rank=value("rank_pattern", "r"),
            alpha=float(value("alpha_pattern", "lora_alpha")),
            dropout=float(self.values.get("lora_dropout") or 0.0),
            use_rslora=bool(self.values.get("use_rslora")),
        )

    def targets_parameter(self, name: str) -> bool:
        """Return whether LoRA is on a parameter, such as one with the weights of experts, by PEFT's rules."""
        return names_module(self.values.get("target_parameters") or (), name)

    def targets_parameter_of(self, module: str) -> bool:
        """Return whether LoRA is on a parameter of the module itself."""
        ends = (name.rpartition(".")[2] for name in self.values.get("target_parameters") or ())
        return any(self.targets_parameter(f"{module}.{end}") for end in ends)

    def targets(self, module: str) -> bool | None:
        """Return whether LoRA is on `module` by PEFT's rules. None: the file leaves it to the defaults of PEFT."""
        wanted = self.values.get("target_modules")
        if wanted is None or wanted == "all-linear":
            return None
        excluded = self.values.get("exclude_modules")
        if excluded and names_module(excluded, module):
            return False
        if any(match(rf"(^|.*\.){saved}($|\..*)", module) for saved in self.values.get("modules_to_save") or ()):
            return False
        whole = isinstance(wanted, str) or module in wanted
        return names_module(wanted, module) and (whole or self._in_layers(module))

    def _in_layers(self, module: str) -> bool:
        layers = self.values.get("layers_to_transform")
        if layers is None or layers == []:
            return True
        given = self.values.get("layers_pattern")
        patterns = [rf"(?:^|.*?\.){pattern}" for pattern in _listed(given)] if given else [r".*?\.[^.]*"]
        for pattern in patterns:
            if found := match(rf"{pattern}\.(?P<idx>\d+)\.", module):
                return int(found["idx"]) in _listed(layers)
        return False


def read_settings(path: Path) -> PeftSettings:
    """Read and check the file.

    Raises UserError if it is missing, is not JSON, is not of LoRA or of a variant of it, or has a wrong value.
    """
    expected = "give the folder of a PEFT LoRA adapter"
    values = read_json(path, "the PEFT configuration", expected, _LARGEST)
    if "peft_type" not in values:
        raise UserError(f"{path} has no peft_type", expected)
    if values["peft_type"] != "LORA":
        kind = shown(values["peft_type"]).strip("'")
        raise UserError(f"{path} is a PEFT adapter of type {kind}", "only LORA can be loaded")
    _refuse_variants(path, values)
    values = {**_DEFAULTS, **values}
    for key, field in _FIELDS.items():
        if key in _DEFAULTS or values.get(key) is not None:
            field.check(str(path), key, values[key])
    return PeftSettings(str(path), values)


def _refuse_variants(path: Path, values: Mapping[str, Any]) -> None:
    plain = "only plain and rank-stabilised LoRA can be loaded"
    for key, name in _VARIANTS.items():
        if values.get(key):
            raise UserError(f"{path}: {key} makes this {name}", plain)
    if values.get("bias", "none") != "none":
        raise UserError(f"{path}: bias = {shown(values['bias'])}: biases were trained too", plain)
    start = values.get("init_lora_weights")
    if start not in _STARTS:
        for prefix, name in _CHANGE_THE_BASE.items():
            if str(start).startswith(prefix):
                raise UserError(
                    f"{path}: init_lora_weights = {shown(start)}: {name} changes the base's own weights",
                    "convert it to plain LoRA first: save_pretrained(path_initial_model_for_weight_conversion=...)",
                )
        raise UserError(f"{path}: init_lora_weights = {shown(start)} is a variant of LoRA", plain)
    for key, value in values.items():
        if value and key not in (*_FIELDS, *_OTHERS, *_VARIANTS):
            raise UserError(f"{path}: {key} = {shown(value)} is not known to this program", plain)
