"""The campaign as a program; see `tests.fuzz.campaign`."""

from __future__ import annotations

import argparse
import os
import platform
import secrets
import sys
import tempfile
import time
from pathlib import Path

# Before the libraries are imported: a child of a process with threads may stop in a lock that no thread will release.
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "agg"}

from tests.forked import import_everything
from tests.fuzz import campaign
from tests.fuzz.campaign import Campaign, Tally

HEAD = ("kind", "cases", "code 0", "code 2", "tracebacks", "other faults", "hangs", "peak MiB", "seconds")


def main() -> int:
    parser = argparse.ArgumentParser(description=campaign.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5_000)
    parser.add_argument("--kind", help="run this kind only")
    parser.add_argument("--seed", type=int, help="of all cases (default: a new one)")
    parser.add_argument("--stable", action="store_true", help="seed 0, and failures are printed as they are")
    parser.add_argument("--regressions", action="store_true", help="run the kept cases only")
    parser.add_argument("--sound", action="store_true", help="run the commands on files that are not damaged")
    args = parser.parse_args()
    import_everything()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        runs = Campaign(Path(folder))
        if args.sound:
            return _sound(runs)
        failures = _regressions(runs)
        if not args.regressions:
            start = 0 if args.stable else secrets.randbelow(2**32) if args.seed is None else args.seed
            failures += _cases(runs, args, start)
    return int(bool(failures))


def _sound(runs: Campaign) -> int:
    failed = runs.unsound()
    for case, outcome in failed:
        print(f"{case.kind}: code {outcome.code} of {case.entry} {' '.join(case.arguments)}\n{outcome.err}")
    return int(bool(failed))


def _regressions(runs: Campaign) -> int:
    failures = count = 0
    for name, case in campaign.kept():
        count += 1
        if (problem := runs.run(case).problem) is not None:
            failures += 1
            print(f"regression {name}: {problem}")
    print(f"{count} kept cases, {failures} failed")
    return failures


def _cases(runs: Campaign, args: argparse.Namespace, start: int) -> int:
    print(f"seed {start}, Python {platform.python_version()}")
    shares, whole, failures = campaign.shares(args.cases), Tally(), 0
    _print_row(HEAD)
    began = time.monotonic()
    for name, count in shares.items():
        if args.kind in (None, name):
            tally, found = runs.run_kind(name, count, start, shrink=not args.stable)
            _print_row((name, *tally.row()))
            whole.merge(tally)
            failures += len(found)
            for problem, (case, outcome) in found.items():
                where = case.to_json() if args.stable else campaign.keep(case)
                said = (outcome.err or outcome.out).strip().splitlines()[-1:] or [""]
                print(f"  {problem} ({tally.problems[problem]} cases)\n    {said[0][:200]}\n    {where}", flush=True)
    _print_row(("all", *whole.row()))
    print(f"{time.monotonic() - began:.0f} s")
    return failures


def _print_row(cells: tuple[object, ...]) -> None:
    print(f"| {cells[0]:<22} | " + " | ".join(f"{cell:>12}" for cell in cells[1:]) + " |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
