"""Reading and encoding a large file of own data: peak memory above that of the start, and tokens per second.

Each kind of file is read in a process of its own, with an empty cache. Peak memory counts pages of memory-mapped files,
which the system takes back when it needs memory; the anonymous part is what the program itself allocates.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tools.cli import whole_number

import pyarrow as pa
from pyarrow import csv, parquet
from rich.table import Table

from actions.run.console import say
from benchmarks import measure
from heterolora.common.errors import UserError
from options.ranges import at_least

KINDS = ("txt", "jsonl", "csv", "parquet")
TOKENIZER = "model/toy_opt"
MEGA = 1e6
_WORDS = ("the", "a", "cat", "dog", "house", "tree", "runs", "sees", "green", "small", "old", "in", "slowly", "always")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(rounds=1)
    megabytes = whole_number(at_least(1))
    parser.add_argument("--size", type=megabytes, default=240, metavar="MB", help="of a file (default: %(default)s)")
    parser.add_argument("--kind", choices=KINDS, action="append", help="of file; repeatable (default: all)")
    parser.add_argument(
        "--reading-only",
        action="store_true",
        help="read, check and divide the rows, but do not encode them",
    )


def run(args: argparse.Namespace) -> None:
    say(measure.heading(args, f"own data in files of about {args.size} MB, language modelling"))
    table = Table("file", "size, MB", "peak, MB", "of it anonymous, MB", "tokens", "CPU seconds", "tokens per second")
    for kind in args.kind or KINDS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"rows.{kind}"
            write_rows(path, args.size * MEGA)
            for _ in range(args.rounds):
                found = _measured(path, Path(folder), args.reading_only)
                speed = found["tokens"] / found["seconds"]
                figures = (path.stat().st_size / MEGA, found["peak"] / MEGA, found["anonymous"] / MEGA)
                cells = (*(f"{figure:,.0f}" for figure in figures), f"{found['tokens']:,}", f"{found['seconds']:.1f}")
                table.add_row(kind, *cells, f"{speed:,.0f}")
    say(table)


def write_rows(path: Path, size: float) -> None:
    """Write rows of random words, until they are `size` bytes, as one text column in the format of the suffix."""
    draw, texts = random.Random(0), []
    while size > 0:
        texts.append(" ".join(draw.choices(_WORDS, k=draw.randint(5, 60))))
        size -= len(texts[-1]) + 1
    table = pa.table({"text": texts})
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    elif path.suffix == ".csv":
        csv.write_csv(table, path)
    else:
        lines = texts if path.suffix == ".txt" else (json.dumps({"text": text}) for text in texts)
        with path.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)


def _measured(path: Path, folder: Path, reading_only: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        own = {"HF_DATASETS_CACHE": cache, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-m", "benchmarks.own_data", str(path), *(["reading"] if reading_only else [])]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | own)
    if done.returncode:
        raise UserError(f"reading {path.name} failed: {done.stderr.strip()[-500:]}", "give a smaller --size")
    return json.loads(done.stdout.splitlines()[-1])


class Anonymous(threading.Thread):
    """Samples the anonymous memory of this process; `peak` is the largest, in bytes. Linux only."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_bytes = self.peak = self._now()

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, self._now())
            time.sleep(0.02)

    @staticmethod
    def _now() -> int:
        return _status("RssAnon")


def _status(name: str) -> int:
    """Bytes that the system counts for this process; 0 if it has no such count. `VmHWM` is the peak since its start:
    `ru_maxrss` would begin with the peak of the parent, which has made the file.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def read(path: str, reading_only: bool) -> dict[str, Any]:
    """Read and encode a file in this process."""
    from transformers import AutoTokenizer

    from dataset.batching.module import TextDataModule
    from dataset.reading.own import describe
    from options.data import DataOptions, OwnDataOptions

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER, trust_remote_code=False)
    tokenizer("a")
    before, anonymous, start = _status("VmHWM"), Anonymous(), time.process_time()
    anonymous.start()
    spec, _ = describe(path, OwnDataOptions(), None, cache=True)
    data = TextDataModule(spec, DataOptions())
    data.attach(tokenizer)
    encoded = [] if reading_only else [*map(data.encoded, data.splits.each)]
    seconds = time.process_time() - start
    tokens = sum(int(rows.with_format("numpy")["length"][:].sum()) for rows in encoded)
    own = anonymous.peak - anonymous.start_bytes
    return {"peak": _status("VmHWM") - before, "anonymous": own, "seconds": seconds, "tokens": tokens}


if __name__ == "__main__":
    print(f"\n{json.dumps(read(sys.argv[1], sys.argv[2:] == ['reading']))}")
