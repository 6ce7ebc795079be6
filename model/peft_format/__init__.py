"""LoRA adapters in the files of PEFT, with further files for the parts that PEFT does not support.

::

    adapter_config.json         PEFT's configuration
    adapter_model.safetensors   A and B of each linear layer, and the trained classification head, with PEFT's names
    shortcuts.safetensors       A and B of the shortcuts that are on, as layer_<i>.<name>.A
    shortcut.toml               their configuration
    README.md                   the model card
"""

from __future__ import annotations

import os
from pathlib import Path

CONFIG, WEIGHTS, OLD_WEIGHTS = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
SHORTCUTS, SHORTCUT_CONFIG = "shortcuts.safetensors", "shortcut.toml"
CARD = "README.md"
FILES = (CONFIG, WEIGHTS, OLD_WEIGHTS, SHORTCUTS, SHORTCUT_CONFIG)  # the files that are read
PREFIX = "base_model.model."  # PEFT adds it to every name of the base


def is_adapter(folder: str | Path) -> bool:
    """Return whether a folder holds an adapter."""
    return os.path.isfile(Path(folder) / CONFIG)  # False for a name that is too long, too
