"""The formats of `tools/export.py`: a row for each, with its file in this folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from actions.result.formats import merged, peft, vllm
from actions.result.formats.export import Export


@dataclass(frozen=True)
class Format:
    """A row of the table.

    Attributes:
        check: raises UserError if the format cannot hold the result. It needs no model.
        write: writes the folder, completely or not at all.
        whole: whether the files hold the base too, so that it is loaded, and nobody needs it.
    """

    check: Callable[[Export], None]
    write: Callable[[Export], None]
    whole: bool = False


FORMATS: Mapping[str, Format] = {
    "peft": Format(peft.check, peft.write),
    "vllm": Format(vllm.check, vllm.write),
    "merged": Format(merged.check, merged.write, whole=True),
}
