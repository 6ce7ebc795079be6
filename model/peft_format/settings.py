"""Reads the settings of each element from PEFT's `adapter_config.json`. Variants of LoRA are refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heterolora.element import Settings
from heterolora.errors import UserError

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
    "target_parameters": "LoRA on bare parameters",
    "trainable_token_indices": "trained token embeddings",
    "lora_bias": "a bias in B",
    "fan_in_fan_out": "transposed weights",
    "megatron_config": "Megatron layers",
}
_CHANGE_THE_BASE: Mapping[str, str] = {
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "corda": "CorDA",
    "loftq": "LoftQ",
    "lora_ga": "LoRA-GA",
}
_STARTS = (
    True,
    False,
    None,
    "gaussian",
    "eva",
    "orthogonal",
)  # initial values of A and B only, so the trained adapter does not depend on them

_USED = (
    "peft_type", "task_type", "base_model_name_or_path", "revision", "r", "lora_alpha", "lora_dropout", "use_rslora",
    "rank_pattern", "alpha_pattern", "bias", "init_lora_weights", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "modules_to_save",
)  # fmt: skip
# Notes, and settings of features that are off or only used before training.
_NEUTRAL = (
    "auto_mapping", "peft_version", "inference_mode", "runtime_config", "megatron_core", "qalora_group_size",
    "eva_config", "corda_config", "loftq_config", "lora_ga_config", "ensure_weight_tying",
)  # fmt: skip

TASK_TYPES = ("SEQ_CLS", "CAUSAL_LM")


@dataclass(frozen=True)
class PeftSettings:
    """An `adapter_config.json`.

    Attributes:
        source: the file, for messages.
        values: its keys, checked.
    """

    source: str
    values: Mapping[str, Any]

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
        """Returns the settings of LoRA on the linear layer at `module`."""
        rank, alpha = self.values.get("r", 8), self.values.get("lora_alpha", 8)
        return Settings(
            rank=_by_pattern(self.values.get("rank_pattern") or {}, module, rank),
            alpha=float(_by_pattern(self.values.get("alpha_pattern") or {}, module, alpha)),
            dropout=float(self.values.get("lora_dropout") or 0.0),
            use_rslora=bool(self.values.get("use_rslora")),
        )

    def targets(self, module: str) -> bool | None:
        """Returns whether LoRA is on `module` by PEFT's rules. None: the file leaves it to the defaults of PEFT."""
        wanted = self.values.get("target_modules")
        if wanted is None or wanted == "all-linear":
            return None
        excluded = self.values.get("exclude_modules")
        if excluded and _matches(excluded, module):
            return False
        if any(re.match(rf"(.*\.)?{saved}(\..*)?$", module) for saved in self.values.get("modules_to_save") or ()):
            return False
        return _matches(wanted, module) and (isinstance(wanted, str) or self._in_layers(module))

    def _in_layers(self, module: str) -> bool:
        layers, lists = self.values.get("layers_to_transform"), self.values.get("layers_pattern")
        if layers is None or layers == []:
            return True
        patterns = [lists] if isinstance(lists, str) else lists or [r"[^.]*"]
        for pattern in patterns:
            if found := re.match(rf"(?:.*?\.)?{pattern}\.(\d+)\.", module):
                return int(found[1]) in ([layers] if isinstance(layers, int) else layers)
        return False


def _matches(wanted: str | Sequence[str], module: str) -> bool:
    """Matches a path against a pattern for the whole path, or a list of paths or path endings."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in wanted)


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Returns the value of the first pattern that matches the path or its ending."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def read_settings(path: Path) -> PeftSettings:
    """Reads and checks the file.

    Raises UserError if it is missing, is not JSON, is not of LoRA or of a variant of it, or has a wrong value.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({error.strerror})", "give the folder of a PEFT LoRA adapter") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error})", "give the folder of a PEFT LoRA adapter") from None
    if not isinstance(values, dict) or "peft_type" not in values:
        raise UserError(f"{path} has no peft_type", "give the folder of a PEFT LoRA adapter")
    if values["peft_type"] != "LORA":
        raise UserError(f"{path} is a PEFT adapter of type {values['peft_type']}", "only LORA can be loaded")
    _refuse_variants(str(path), values)
    _check_values(str(path), values)
    return PeftSettings(str(path), values)


def _refuse_variants(path: str, values: Mapping[str, Any]) -> None:
    plain = "only plain and rank-stabilised LoRA can be loaded"
    for key, name in _VARIANTS.items():
        if values.get(key):
            raise UserError(f"{path}: {key} makes this {name}", plain)
    if values.get("bias", "none") != "none":
        raise UserError(f"{path}: bias = {values['bias']!r}: biases were trained too", plain)
    start = values.get("init_lora_weights")
    if start not in _STARTS:
        for prefix, name in _CHANGE_THE_BASE.items():
            if str(start).startswith(prefix):
                raise UserError(
                    f"{path}: init_lora_weights = {start!r}: {name} changes the base's own weights",
                    "convert it to plain LoRA first: save_pretrained(path_initial_model_for_weight_conversion=...)",
                )
        raise UserError(f"{path}: init_lora_weights = {start!r} is a variant of LoRA", plain)
    for key, value in values.items():
        if value and key not in (*_USED, *_NEUTRAL, *_VARIANTS):
            raise UserError(f"{path}: {key} = {value!r} is not known to this program", plain)
    if values.get("task_type") not in (None, *TASK_TYPES):
        raise UserError(f"{path}: task_type is {values['task_type']!r}", f"expected {' or '.join(TASK_TYPES)}")


def _check_values(path: str, values: Mapping[str, Any]) -> None:
    def check(key: str, value: Any, right: bool, expected: str) -> None:
        if not right:
            raise UserError(f"{path}: {key} is {value!r}", f"expected {expected}")

    def number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    def rank(value: Any) -> bool:
        return isinstance(value, int) and number(value) and value > 0

    def texts(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)

    check("r", values.get("r", 8), rank(values.get("r", 8)), "a whole number above 0")
    alpha, dropout = values.get("lora_alpha", 8), values.get("lora_dropout") or 0.0
    check("lora_alpha", alpha, number(alpha) and alpha > 0, "a number above 0")
    check("lora_dropout", dropout, number(dropout) and 0 <= dropout < 1, "a number in [0, 1)")
    for key, valid in (("rank_pattern", rank), ("alpha_pattern", lambda value: number(value) and value > 0)):
        patterns = values.get(key) or {}
        check(key, patterns, isinstance(patterns, dict) and all(map(valid, patterns.values())), "patterns and numbers")
        for pattern in patterns:
            check(key, pattern, _is_pattern(pattern), "regular expressions")
    for key in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save"):
        value = values.get(key)
        check(key, value, value is None or texts(value) or isinstance(value, str), "a text or a list of texts")
        for pattern in [value] if isinstance(value, str) else value or ():
            check(key, pattern, _is_pattern(pattern), "regular expressions")
    layers = values.get("layers_to_transform")
    listed = layers if isinstance(layers, list) else [layers]
    check("layers_to_transform", layers, layers is None or all(isinstance(i, int) for i in listed), "block numbers")
    base = values.get("base_model_name_or_path")
    check("base_model_name_or_path", base, base is None or isinstance(base, str), "a text")


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True
