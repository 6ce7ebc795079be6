"""LoRA adapters in PEFT's own files, with ours beside them where the format has no words for a result.

::

    adapter_config.json         PEFT's configuration
    adapter_model.safetensors   A and B of each linear layer, and the trained classification head, under PEFT's names
    shortcuts.safetensors       A and B of the shortcuts that are on, as layer_<i>.<name>.A
    shortcut.toml               their configuration
    README.md                   the model card
"""

from __future__ import annotations

from pathlib import Path

CONFIG, WEIGHTS, OLD_WEIGHTS = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
SHORTCUTS, SHORTCUT_CONFIG = "shortcuts.safetensors", "shortcut.toml"
CARD = "README.md"
FILES = (CONFIG, WEIGHTS, OLD_WEIGHTS, SHORTCUTS, SHORTCUT_CONFIG)  # what is read
PREFIX = "base_model.model."  # what PEFT puts before every name of the base's


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter."""
    return (Path(folder) / CONFIG).is_file()
