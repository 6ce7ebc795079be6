"""What is exported, where to and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from actions.command.request import Request


@dataclass(frozen=True)
class Export:
    """Attributes:
    result: folder of a run or an adapter, or a checkpoint, as the user names it.
    request: the result, as a request of `test`.
    output: the folder to write.
    run_folder: whose metrics and pictures are those of the exported weights, for a card.
    dequantize: whether a quantised base may be written in full precision.
    max_shard_size: bytes of the largest file of weights.
    """

    result: Path
    request: Request
    output: Path
    run_folder: Path | None
    dequantize: bool
    max_shard_size: int
