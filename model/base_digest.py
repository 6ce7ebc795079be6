"""The SHA-256 of a base model, kept from one run to the next as long as its files are the same.

Files are the same if path, size, times, inode and device of each are. The time of the last change of an inode cannot be
set, so a file that was written in place, and given its old time, differs. If anything differs, all bytes are read.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import try_to_load_from_cache

from dataset.reading.cache import cache_folder, digest
from heterolora.common.errors import UserError
from heterolora.common.files import write_text
from heterolora.common.outside import read_text

RECENT = 2.0  # seconds: a file may be written twice within one tick of a coarse clock

_HEX = re.compile(r"[0-9a-f]{64}")


class KeptDigest:
    """Made before the files are read, so that it notices a change while they are."""

    def __init__(self, source: str) -> None:
        """`source` is a hub name or a folder."""
        self._folder = _folder_of(source)
        self._files = _state_of(self._folder)

    def of(self, about: Any, compute: Callable[[], str]) -> str:
        """Return the kept digest, or compute and keep it. `about` is what it depends on besides the files."""
        if self._folder is None or not self._files:
            return compute()
        key = digest([self._files, about, torch.__version__, transformers.__version__])
        path = cache_folder() / "bases" / f"{key}.sha256"
        with suppress(UserError):  # none is kept yet, or it is damaged
            if _HEX.fullmatch(kept := read_text(path, "the kept digest", "delete it")):
                return kept
        found = compute()
        newest = max(max(modified, changed) for _, _, modified, changed, *_ in self._files) / 1e9
        if _state_of(self._folder) == self._files and newest + RECENT < time.time():
            with suppress(OSError, UserError):  # it is only slower without
                if path.is_file() or not path.exists():  # a pipe could wait for a reader without end
                    write_text(path, found)
        return found


def _folder_of(source: str) -> Path | None:
    """The folder of a base's files. None if it was not downloaded yet."""
    if os.path.isdir(source):
        return Path(source)
    with suppress(ValueError):  # no name of a repository
        if isinstance(found := try_to_load_from_cache(source, "config.json"), str):
            return Path(found).parent
    return None


def _state_of(folder: Path | None) -> list[list[Any]]:
    """Path, size, times, inode and device of each file. A link is followed."""
    files = sorted(each.resolve() for each in folder.iterdir() if each.is_file()) if folder is not None else []
    stats = [(path, path.stat()) for path in files]
    return [[str(path), one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_ino, one.st_dev] for path, one in stats]
