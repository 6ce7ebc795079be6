"""The SHA-256 of a base model is kept while its files are the same, and computed again when anything differs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dataset.registry import get
from model import base_digest, load
from model.checkpoint import BaseSource
from model.load import load_base, load_config, load_tokenizer
from tests.world import model_folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(base_digest, "RECENT", 0.0)  # the files are new
    return model_folder(tmp_path / "base")


def sha256(folder: Path) -> str:
    spec = get("sst2")
    config = load_config(str(folder), spec)
    return load_base(BaseSource(str(folder)), config, load_tokenizer(str(folder), config), spec.task, "32").sha256


def flip_a_bit(path: Path) -> None:
    """In the last byte of a tensor, in place, with the old time of the file."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_the_bytes_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, own = [], load.digest_of
    monkeypatch.setattr(load, "digest_of", lambda tensors: reads.append(1) or own(tensors))
    first = sha256(folder)
    assert (sha256(folder), len(reads)) == (first, 1)
    flip_a_bit(folder / "model.safetensors")
    changed = sha256(folder)
    assert (changed != first, len(reads)) == (True, 2)
    flip_a_bit(folder / "model.safetensors")
    assert (sha256(folder), len(reads)) == (first, 3), "the same bytes, but written again"


def test_a_new_file_is_not_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two writes within one tick of the clock cannot be told apart."""
    monkeypatch.setattr(base_digest, "RECENT", 3600.0)
    reads, own = [], load.digest_of
    monkeypatch.setattr(load, "digest_of", lambda tensors: reads.append(1) or own(tensors))
    assert sha256(folder) == sha256(folder)
    assert len(reads) == 2


def test_a_damaged_entry_is_ignored(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(base_digest, "cache_folder", lambda: tmp_path / "cache")
    first = sha256(folder)
    (entry,) = (tmp_path / "cache" / "bases").iterdir()
    entry.write_bytes(b"\xff")
    assert sha256(folder) == first
    assert entry.read_text() == first
    entry.unlink()
    os.mkfifo(entry)  # to open it would wait for a writer
    assert sha256(folder) == first
    assert entry.is_fifo()
