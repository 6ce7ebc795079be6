"""Files that are written completely or not at all, and TOML documents as text.

A file is written beside its place, flushed to the disk and renamed. So its place holds the old or the new file at every
moment, also after a kill or a loss of power.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import tempfile
import tomllib
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

from heterolora.common.errors import UserError

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # and what UTF-8 cannot hold

# A temporary file or folder: `.<stem>.<host>-<process id>.tmp<suffix>`. Version 0.1 named no host.
_TEMPORARY = re.compile(r"\.(.+)\.(?:([0-9a-f]{8})-)?(\d+)\.(tmp|old)(\..*)?")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
DISK_FAILURES = {*_NO_ROOM, errno.EFBIG, errno.EROFS, errno.EIO}  # whichever file is written
_IN_RUST = re.compile(r"\(os error (\d+)\)")  # how safetensors reports the number of a system error


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Write a file: a temporary path beside `path`, with the same suffix, is renamed to `path` when the block ends.

    If the block raises (also on Ctrl-C), the temporary file is deleted and the file at `path` stays. A link stays, and
    the file that it points to is replaced. A device or a pipe stays, and gets the bytes of the file. Missing folders
    are created. Raises UserError if the system cannot write the file.
    """
    path = Path(path)
    suffix = path.suffix  # writers of pictures take the format from it
    with _writing(path):
        path = Path(os.path.realpath(path))
        if path.is_symlink():  # to itself
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists() and not path.is_file():
            with tempfile.TemporaryDirectory() as folder:
                yield (unfinished := Path(folder) / f"unfinished{suffix}")
                _send(unfinished, path)
            return
        _make_folder(path.parent)
        remove_leftovers(path.parent, path.name)
        unfinished = _beside(path.with_suffix(""), "tmp", suffix)
        try:
            yield unfinished
            _flush(unfinished)
            os.replace(unfinished, path)
            _flush(path.parent)
        finally:
            unfinished.unlink(missing_ok=True)


def _send(file: Path, target: Path) -> None:
    """Write the bytes of a file into a device or a pipe. If no program reads a pipe, it is an error."""
    descriptor = os.open(target, os.O_WRONLY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    with file.open("rb") as source, open(descriptor, "wb") as sink:
        shutil.copyfileobj(source, sink)


@contextmanager
def whole_folder(path: str | Path, replaces: Collection[str] | None = None) -> Iterator[Path]:
    """Write a folder: a new one beside `path` is renamed to `path` when the block ends, and replaces a folder there.

    With `replaces`, entries of the old folder stay if the new one has none of their name. `replaces` are the names of
    entries that do not stay.

    If the block raises, the new folder is deleted and the folder at `path` stays. The files get the permissions of new
    files, which some writers do not give them. Raises UserError if the system cannot write the folder.
    """
    path = Path(os.path.realpath(path))  # a link to the folder stays
    with _writing(path):
        _make_folder(path.parent)
        remove_leftovers(path.parent, path.name)
        unfinished, replaced = _beside(path, "tmp"), _beside(path, "old")
        unfinished.mkdir()
        try:
            yield unfinished
            permissions = unfinished.stat().st_mode & 0o666  # the umask is applied to it
            for entry in unfinished.rglob("*"):
                if entry.is_file():
                    entry.chmod(permissions)
                _flush(entry)
            _flush(unfinished)
            if path.is_dir():
                if replaces is not None:
                    _take_over(path, unfinished, replaces)
                os.replace(path, replaced)
            os.replace(unfinished, path)
            _flush(path.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            _discard_replaced(replaced, path)


def _take_over(old: Path, new: Path, without: Collection[str]) -> None:
    """Put the other entries of the old folder into the new one, too. Both have the same file, so that none is lost."""
    for entry in old.iterdir():
        place = new / entry.name
        if entry.name in without or place.exists():
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, place, symlinks=True, copy_function=_link)
        else:
            _link(entry, place)


def _link(source: str | Path, target: str | Path) -> None:
    """A second name for a file, or a copy where the file system has no second names. A link stays a link."""
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(source, target, follow_symlinks=False)


def remove_leftovers(folder: Path, name: str | None = None, exclusive: bool = False) -> None:
    """Remove the temporary files and folders that killed processes left in a folder.

    A process counts as killed if no process with its id runs on this host.

    Args:
        folder: where to look. Folders below it are not searched.
        name: only those of the file or folder with this name.
        exclusive: no other process writes into the folder, so that those of other hosts are removed, too.
    """
    for entry in list(folder.iterdir()) if folder.is_dir() else ():
        if (found := _TEMPORARY.fullmatch(entry.name)) is None:
            continue
        stem, host, process, kind, suffix = found.groups(default="")
        if name not in (None, stem + suffix):
            continue
        if not (_has_ended(int(process)) if host in ("", _host()) else exclusive):
            continue
        if kind == "old":
            _discard_replaced(entry, folder / stem)
        elif entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file, completely or not at all. Raises UserError if it cannot be written."""
    with whole(path) as unfinished:
        # The name of a file may hold bytes that are not UTF-8.
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")


def cannot_write(path: str | Path, error: OSError) -> UserError:
    """The mistake to raise for a failure of the system to write a file or folder."""
    found = f"cannot write '{path}' ({error.strerror})" if path else f"cannot write ({error.strerror})"
    if error.errno in _NO_ROOM:
        return UserError(found, "free space, or give a folder on another disk")
    if error.errno == errno.EFBIG:
        return UserError(found, "raise the limit on the size of a file, ulimit -f")
    if error.errno == errno.ENXIO:
        return UserError(found, "start the program that reads the pipe first")
    if error.errno == errno.ENAMETOOLONG:
        return UserError(found, "give a shorter name")
    return UserError(found, "expected a file that can be made there")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Convert a failure of the system to a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as failure:
        if (error := _system_error(failure)) is None:
            raise
        raise cannot_write(path, error) from failure


def _system_error(failure: BaseException) -> OSError | None:
    """The error of the system, also if a library has hidden a full disk in an exception of its own."""
    if isinstance(failure, OSError):
        return failure if failure.errno is not None else None
    number = int(found[1]) if (found := _IN_RUST.search(str(failure))) else None
    error = failure.__context__ if number is None else OSError(number, os.strerror(number))
    return error if isinstance(error, OSError) and error.errno in DISK_FAILURES else None


def _beside(path: Path, kind: str, suffix: str = "") -> Path:
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}.{kind}{suffix}")


@cache
def _host() -> str:
    """Eight digits for the system within which process ids are unique: the host, or the container."""
    with suppress(OSError):
        return f"{zlib.crc32((socket.gethostname() + os.readlink('/proc/self/ns/pid')).encode()):08x}"
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _has_ended(process: int) -> bool:
    """Whether a process of this host has ended. One with the id of this process has: ids are used again."""
    if process == os.getpid():
        return True
    if os.name == "nt":  # a signal of any number would end the process
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False


def _discard_replaced(replaced: Path, path: Path) -> None:
    """Remove the folder that was at `path` before, or put it back if there is no other."""
    with suppress(FileNotFoundError):
        if replaced.is_dir() and not path.exists():
            os.replace(replaced, path)
    shutil.rmtree(replaced, ignore_errors=True)


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _flush(folder.parent)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir():
        with suppress(OSError):  # Windows and some network file systems cannot flush a folder
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    else:
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def to_toml(document: Mapping[str, Any]) -> str:
    """The document as TOML text. The text is read back and compared, because the writer does not check its output.

    Raises:
        UserError: a name or text holds a control character, which the writer does not escape.
    """
    import toml

    _refuse_control_characters(document)
    encoder = toml.TomlEncoder()
    encoder.dump_funcs[str] = partial(json.dumps, ensure_ascii=False)  # the library's own escapes fail on \\x
    text: str = toml.dumps(document, encoder)
    if tomllib.loads(text) != document:
        raise ValueError("the TOML text does not hold the values of the document")
    return text


def write_toml(path: str | Path, document: Mapping[str, Any], head: str = "") -> None:
    """Write a TOML file, completely or not at all. `head` is comment lines at its top."""
    write_text(path, head + to_toml(document))


def _refuse_control_characters(value: Any) -> None:
    if isinstance(value, Mapping):
        _refuse_control_characters([*value.keys(), *value.values()])
    elif isinstance(value, list):
        for inner in value:
            _refuse_control_characters(inner)
    elif isinstance(value, str) and _CONTROL.search(value):
        raise UserError(f"{value!r} holds a control character", "expected a name without one")


_PROBE = 2**16  # bytes that a run folder must have room for


def check_writable(folder: Path, remedy: str = "free space, or give --project-dir on another disk") -> None:
    """Raise UserError if the folder cannot be made, or has no room for a small file. Leaves nothing there.

    Also raise it for a name that is not UTF-8, which libraries cannot write into.
    """
    if "\\udc" in ascii(str(folder)):  # how Python keeps such bytes
        raise UserError(f"the name of the folder {str(folder)!a} is not UTF-8", "give another name")
    made: list[Path] = []
    try:
        made = [missing for missing in (folder, *folder.parents) if not missing.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_PROBE))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise UserError(f"cannot write into '{folder}' ({error.strerror})", remedy) from None
    finally:
        for path in made:
            with suppress(OSError):  # another run has made a folder in it
                path.rmdir()
