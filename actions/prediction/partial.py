"""The predictions of an unfinished command, in a hidden folder beside its output, so that it can continue.

The folder holds `about.json` with the identity of the command, and a file of JSON lines for each process. Each process
appends its answers after every batch. A line that a killed process left incomplete is not read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from actions.run.console import is_first_process
from actions.run.in_use import in_use
from heterolora.common.files import cannot_write, write_text
from model.task.answers import Answer

_ABOUT, _ROWS = "about.json", "rows-*.jsonl"


@dataclass(frozen=True)
class Partial:
    """The folder of the answers so far. `folder` is None if they are not kept."""

    folder: Path | None

    @classmethod
    def beside(cls, output: Path | None) -> Partial:
        return cls(None if output is None else output.with_name(f".{output.name}.partial"))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Make the folder, and lock it until the block ends, in the first process. An empty one is removed again.

        Raises UserError if another command writes the same output.
        """
        if self.folder is None or not is_first_process():
            yield
            return
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        try:
            with in_use(self.folder):
                yield
        finally:
            if not any(self.folder.glob(_ROWS)):
                self.remove()

    def open(self, identity: str) -> dict[int, Answer]:
        """The answers of an earlier command with the same identity. Those of another one are deleted."""
        if self.folder is None:
            return {}
        about = self.folder / _ABOUT
        same = False
        with suppress(OSError, ValueError):
            same = json.loads(about.read_text(encoding="utf-8")) == {"identity": identity}
        found = {answer.row: answer for answer in self._read()} if same else {}
        earlier = [*self.folder.glob(_ROWS)]
        if found:  # in one file of whole lines
            write_text(self.folder / _ROWS.replace("*", "before"), "".join(map(_line, found.values())))
        for path in earlier:
            if not (found and path.stem.endswith("before")):
                path.unlink()
        write_text(about, json.dumps({"identity": identity}))
        return found

    def append(self, process: int, answers: Iterable[Answer]) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(exist_ok=True)  # of another machine
        with (self.folder / _ROWS.replace("*", str(process))).open("a", encoding="utf-8") as file:
            file.writelines(map(_line, answers))

    def count(self) -> int:
        return len({answer.row for answer in self._read()})

    def remove(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self) -> Iterator[Answer]:
        for path in sorted(self.folder.glob(_ROWS)) if self.folder is not None else ():
            for line in path.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError, KeyError, TypeError):
                    found = json.loads(line)
                    yield Answer(int(found["row"]), tuple(map(float, found["scores"])), found["text"])


def _line(answer: Answer) -> str:
    return json.dumps(asdict(answer)) + "\n"
