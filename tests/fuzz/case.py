"""A case: one command on files of which some are damaged. It is plain values, so that a regression file can hold it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Change = tuple[Any, ...]  # (path in the folder of the case, name of an operation, its arguments)


@dataclass(frozen=True)
class Case:
    """A command and what is changed before it runs.

    Attributes:
        kind: the kind of input that is changed, as in `tests.fuzz.kinds`.
        entry: `main`, or the name of a tool.
        arguments: of the command. `{world}` stands for the folder of sound files, `{case}` for that of the case.
        subjects: what is copied from the world to the folder of the case, and may be changed there.
        changes: operations on these files, in order.
    """

    kind: str
    entry: str
    arguments: tuple[str, ...]
    subjects: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()

    @classmethod
    def from_json(cls, text: str) -> Case:
        values = json.loads(text)
        changes = tuple(tuple(change) for change in values.pop("changes"))
        lists = {name: tuple(values.pop(name)) for name in ("arguments", "subjects")}
        return cls(**values, **lists, changes=changes)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    def command(self, world: Path, folder: Path) -> list[str]:
        return [part.replace("{world}", str(world)).replace("{case}", str(folder)) for part in self.arguments]

    def lost(self, folder: Path) -> tuple[str, ...]:
        """What the command has changed that it must not change: precious files, pipes and devices."""
        found = ((path, _KEPT[operation]) for path, operation, *_ in self.changes if operation in _KEPT)
        return tuple(path for path, is_kept in found if not is_kept(folder / path))

    def prepare(self, world: Path, folder: Path) -> None:
        """Copy the subjects into the folder and changes them."""
        for name in self.subjects:
            source = world / name
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, folder / name)
        for path, operation, *values in self.changes:
            OPERATIONS[operation](folder / path, *(_placed(value, world, folder) for value in values))


def _placed(value: Any, world: Path, folder: Path) -> Any:
    """Texts may name the folders, too."""
    if not isinstance(value, str):
        return value
    return value.replace("{world}", str(world)).replace("{case}", str(folder))


# ---- operations

HUGE, DEEP = "@huge@", "@deep@"  # in a text: a number of 5,000 digits, and 100,000 nested lists


def _text(path: Path, text: str) -> None:
    text = text.replace(f'"{HUGE}"', "1" * 5_000).replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000)
    _write(path, text.encode("utf-8", "surrogatepass"))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _on_bytes(change: Callable[..., bytes]) -> Callable[..., None]:
    """An operation on the bytes of a file. It does nothing to what an earlier change has made no file."""

    def operation(path: Path, *values: Any) -> None:
        if path.is_file():
            _write(path, change(path.read_bytes(), *values))

    return operation


def _flip(data: bytes, at: int, bit: int) -> bytes:
    if not data:
        return data
    at %= len(data)
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


def _cut(data: bytes, at: int) -> bytes:
    return data[: at % (len(data) + 1)]


def _insert(data: bytes, at: int, encoded: str) -> bytes:
    at %= len(data) + 1
    return data[:at] + base64.b64decode(encoded) + data[at:]


def _zero(data: bytes, at: int, count: int) -> bytes:
    at %= len(data) + 1
    return data[:at] + bytes(min(count, len(data) - at)) + data[at + count :]


def _instead(make: Callable[..., None]) -> Callable[..., None]:
    """An operation that puts something else in the place of a file."""

    def operation(path: Path, *values: Any) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path, *values)

    return operation


PRECIOUS = "a file of the user\n"


def _weight(path: Path, at: int, value: str) -> None:
    """Set one number of the tensors of a file."""
    import torch
    from safetensors.torch import load_file, save_file

    is_torch = path.suffix == ".ckpt"
    contents = torch.load(path, weights_only=True) if is_torch else load_file(path)
    tensors = [each for _, each in sorted((contents["state_dict"] if is_torch else contents).items())]
    flat = tensors[at % len(tensors)].view(-1)
    flat[at % len(flat)] = float(value)
    if is_torch:
        torch.save(contents, path)
    else:
        save_file(contents, path, {"format": "pt"})


def _device(path: Path) -> None:
    """A device that takes anything, as /dev/null does; a pipe for a user who may not make one."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        os.mkfifo(path)


#: Operations whose file a command must not change, and whether it is still what they made.
_KEPT: Mapping[str, Callable[[Path], bool]] = {
    "precious": lambda path: path.is_file() and path.read_text() == PRECIOUS,
    "pipe": lambda path: path.is_fifo(),
    "device": lambda path: path.is_char_device() or path.is_fifo(),
}


def _set(path: Path, key: list[Any], value: Any) -> None:
    """Set a value inside a torch file. A key of the wrong kind, after an earlier change, does nothing."""
    import torch

    contents = torch.load(path, weights_only=True)
    inner: Any = contents
    try:
        for part in key[:-1]:
            inner = inner[part]
        inner[key[-1]] = value
    except (KeyError, IndexError, TypeError):
        return
    torch.save(contents, path)


OPERATIONS: Mapping[str, Callable[..., None]] = {
    "text": _text,
    "bytes": lambda path, encoded: _write(path, base64.b64decode(encoded)),
    "flip": _on_bytes(_flip),
    "cut": _on_bytes(_cut),
    "insert": _on_bytes(_insert),
    "zero": _on_bytes(_zero),
    "set": _set,
    "copy": _instead(lambda path, source: shutil.copyfile(source, path)),
    "folder": _instead(lambda path: path.mkdir()),
    "gone": _instead(lambda path: None),
    "socket": _instead(lambda path: os.mknod(path, stat.S_IFSOCK | 0o600)),
    "precious": _instead(lambda path: path.write_text(PRECIOUS)),
    "pipe": _instead(os.mkfifo),
    "device": _instead(_device),
    "weight": _weight,
    "link": _instead(lambda path, target: path.symlink_to(target)),
}
