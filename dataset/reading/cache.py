"""Keeps tables on disk by the content that they are made from, and checks their bytes when it opens them.

An entry is the folder `heterolora/<key>` in the cache folder of `datasets`. It holds the table as an Arrow stream, and
the BLAKE2b digest of that file. The key must be a digest of everything that the table depends on. Paths and times of
files must not be part of it.

An entry that is damaged in any way is made again: a missing or shortened file, or a single changed bit. Processes that
make the same entry at the same time work in folders of their own. The first one to finish gives its folder the name of
the entry, and the others use it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from heterolora.common.errors import UserError

ROWS, DIGEST = "rows.arrow", "digest.txt"
_ABANDONED = 24 * 3600  # seconds after which an unfinished folder belongs to a process that was killed

_log = logging.getLogger(__name__)


def cached(key: str, make: Callable[[Path], object]) -> Dataset:
    """Return the table of `key`, memory-mapped. If there is no intact one, `make` writes it to the path it is given.

    Raises UserError if the cache folder cannot be written.
    """
    entry = cache_folder() / key
    try:
        table = _opened(entry)
        if table is None:
            if os.path.lexists(entry):
                _log.warning(f"the data set cache '{entry}' is damaged and is made again")
            table = _filled(entry, make)
        return table
    except OSError as error:
        raise UserError(
            f"the data set cache {entry.parent} cannot be written ({error.strerror or error})",
            "make room, set HF_HOME to another folder, or give --disable-dataset-cache",
        ) from error


def cache_folder() -> Path:
    """Return the folder of what this program keeps from one run to the next."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "heterolora"


def file_digest(path: Path) -> str:
    """Return the BLAKE2b digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=20)).hexdigest()


def _opened(entry: Path) -> Dataset | None:
    """Return the table of an entry, or None if it is missing or damaged."""
    try:
        rows, digest = entry / ROWS, entry / DIGEST
        if not (rows.is_file() and digest.is_file()):  # a device has no end
            return None
        if digest.read_bytes() != file_digest(rows).encode():
            return None
        return Dataset.from_file(str(rows))
    except Exception:  # `datasets` and Arrow raise errors of many types for a file that they cannot read
        return None


def _filled(entry: Path, make: Callable[[Path], object]) -> Dataset:
    """Make an entry in a folder of its own, rename the folder, and return the table."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    for left in entry.parent.glob(".*.tmp"):
        with suppress(FileNotFoundError):  # the other process has finished it
            if time.time() - left.stat().st_mtime > _ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
    unfinished = _beside(entry)
    unfinished.mkdir()
    try:
        make(unfinished / ROWS)
        (unfinished / DIGEST).write_text(file_digest(unfinished / ROWS))
        _publish(unfinished, entry)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    table = _opened(entry)
    if table is None:
        raise OSError(f"'{entry}' changed while it was written")
    return table


def _publish(unfinished: Path, entry: Path) -> None:
    """Rename the folder to `entry`, unless another process has made an intact entry meanwhile."""
    try:
        os.rename(unfinished, entry)
    except OSError:
        if _opened(entry) is not None:
            return
        if not os.path.lexists(entry):
            raise
        damaged = _beside(entry)
        os.rename(entry, damaged)
        os.rename(unfinished, entry)
        shutil.rmtree(damaged) if damaged.is_dir() else damaged.unlink()


def _beside(entry: Path) -> Path:
    """Return an unused hidden path. It does not use the process id, which two machines or containers can share."""
    return entry.with_name(f".{entry.name}.{uuid.uuid4().hex}.tmp")


def digest(value: Any) -> str:
    """Return a digest of a JSON value. The order of the keys of objects does not matter."""
    return blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=20).hexdigest()
