"""Changes the product one operator or constant at a time, and says which changes the tests do not notice.

    python -m tests.mutants [FILE …] [--sample 40] [--seed 0]

`mutants.toml` names the files, the tests of each file, and the survivors that are accepted with a reason. It works in
a copy of the tree. Each mutant is a fork of this process, which has imported the libraries that the tests need.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.forked import ROOT, Forked

GOAL = 0.95
TABLE = Path(__file__).with_suffix(".toml")
_OURS = ("actions", "benchmarks", "dataset", "heterolora", "main", "model", "options", "tests", "tools")

_OPERATORS: dict[type, tuple[type, ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor"}


@dataclass(frozen=True)
class Mutant:
    """One change of a file.

    Attributes:
        where: the line in the file.
        change: the function, and its changed lines; the key of an accepted survivor.
        source: the whole file with the change.
    """

    where: str
    change: str
    source: str


def mutants_of(file: str, source: str) -> list[Mutant]:
    """All changes of a file, in its order."""
    lines = source.encode().splitlines(keepends=True)
    starts = [sum(map(len, lines[:index])) for index in range(len(lines))]
    whole, made = source.encode(), []
    for function, node, new in _changes(ast.parse(source)):
        first = starts[node.lineno - 1] + node.col_offset
        last = starts[node.end_lineno - 1] + node.end_col_offset
        text = f"({ast.unparse(new)})" if isinstance(new, ast.expr) else ast.unparse(new)
        before, after = whole[:first].decode(), whole[last:].decode()
        line = " ".join(f"{before.splitlines()[-1] if node.col_offset else ''}{text}{after.splitlines()[0]}".split())
        made.append(Mutant(f"{file}:{node.lineno}", f"{function}: {line}".lstrip(": "), f"{before}{text}{after}"))
    return made


def _changes(node: ast.AST, function: str = "") -> Iterator[tuple[str, ast.stmt | ast.expr, ast.AST]]:
    """(the enclosing function, a node, what replaces it); annotations, texts and decorators of dataclasses stay."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        function = f"{function}.{node.name}".lstrip(".")
    yield from ((function, node, new) for new in _replacements(node))
    for field, value in ast.iter_fields(node):
        children = [child for child in (value if isinstance(value, list) else [value]) if isinstance(child, ast.AST)]
        if field in ("annotation", "returns") or isinstance(node, (ast.JoinedStr, ast.Import, ast.ImportFrom)):
            continue
        if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant):
            continue  # -1 is one constant
        if isinstance(node, ast.keyword) and node.arg == "strict":
            continue  # of `zip`, which states what holds anyway
        for child in children:
            if not (field == "decorator_list" and "dataclass" in ast.unparse(child)):
                yield from _changes(child, function)


def _replacements(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.BinOp(left, op, right):
            yield from (ast.BinOp(left, other(), right) for other in _OPERATORS.get(type(op), ()))
        case ast.AugAssign(target, op, value):
            yield from (ast.AugAssign(target, other(), value) for other in _OPERATORS.get(type(op), ()))
        case ast.BoolOp(op, values):
            yield from (ast.BoolOp(other(), values) for other in _OPERATORS[type(op)])
        case ast.Compare(left, ops, right):
            for place, op in enumerate(ops):
                for other in _OPERATORS[type(op)]:
                    yield ast.Compare(left, [*ops[:place], other(), *ops[place + 1 :]], right)
        case ast.UnaryOp(ast.USub() | ast.Not(), operand):
            yield operand
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value) | float(value)):
            yield ast.Constant(value + 1)
        case ast.Name(name, ast.Load()) if name in _NAMES:
            yield ast.Name(_NAMES[name])
        case ast.Attribute(value, name) if name in _NAMES:
            yield ast.Attribute(value, _NAMES[name])
        case ast.IfExp(test, body, other):
            yield ast.IfExp(test, other, body)
        case ast.Call(ast.Attribute(_, "clamp") as called, [], [ast.keyword(name, value)]):
            yield ast.Call(called, [], [ast.keyword(_NAMES[name], value)])
        case ast.Return(value) if value is not None and not (isinstance(value, ast.Constant) and value.value is None):
            yield ast.Return(ast.Constant(None))
        case ast.Raise():
            yield ast.Pass()


@dataclass(frozen=True)
class Tests:
    """Tests that run in forks of this process, in a copy of the tree, as the arguments of pytest select them."""

    tree: Path
    selected: tuple[str, ...]

    def pass_within(self, seconds: float) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            outcome = Forked(self._run, Path(folder)).wait(seconds)
        if outcome.code in (3, 4, 5):  # pytest could not run them
            raise SystemExit(f"error: pytest ended with {outcome.code}: {outcome.out[-2000:]}; expected tests to run")
        return outcome.code == 0

    def _run(self) -> int:
        import pytest

        for name in [name for name in sys.modules if name.split(".")[0] in _OURS]:
            del sys.modules[name]
        quiet = ("-xq", "-p", "no:cacheprovider", "-p", "no:unraisableexception", "-m", "not slow and not gpu")
        code = pytest.main([*quiet, *self.selected])
        if not sys.dont_write_bytecode:
            (self.tree / "imported.json").write_text(json.dumps(list(sys.modules)))
        return int(code)

    def warm_up(self) -> float:
        """Run the tests without a change, import what they imported, and return the seconds that they take then."""
        if not self.pass_within(600):
            raise SystemExit(f"error: {' '.join(self.selected)} fail without a change; expected them to pass")
        for name in json.loads((self.tree / "imported.json").read_text()):
            if name.split(".")[0] not in _OURS:
                _import(name)
        os.environ["PYTHONDONTWRITEBYTECODE"], sys.dont_write_bytecode = "1", True
        gc.freeze()  # a collection in a fork would copy all of this process
        start = time.monotonic()
        self.pass_within(600)
        return time.monotonic() - start


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except Exception:
        return  # a module that another one has made, which has no file


def _copy_tree(folder: Path) -> Path:
    found = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, text=True)
    for name in filter(None, found.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def _survivors(tree: Path, file: str, mutants: list[Mutant], tests: Tests) -> list[Mutant]:
    path, found = tree / file, []
    original = path.read_text()
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    seconds = tests.warm_up()
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        compiled.unlink()
    for mutant in mutants:
        path.write_text(mutant.source)
        if tests.pass_within(10 + 4 * seconds):
            found.append(mutant)
    path.write_text(original)
    return found


def main() -> int:
    table = tomllib.loads(TABLE.read_text())
    parser = argparse.ArgumentParser(prog="tests.mutants")
    parser.add_argument("files", nargs="*", metavar="FILE", help="of `mutants.toml`; all if none is given")
    parser.add_argument("--sample", type=int, help="mutants of each file, drawn at random; all if not given")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    unnoticed = total = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = _copy_tree(Path(folder))
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        for file in args.files or table["tests"]:
            mutants = mutants_of(file, (tree / file).read_text())
            if args.sample is not None and args.sample < len(mutants):
                mutants = random.Random(args.seed).sample(mutants, args.sample)
            start, accepted = time.monotonic(), table.get("accepted", {}).get(file, {})
            survivors = _survivors(tree, file, mutants, Tests(tree, tuple(shlex.split(table["tests"][file]))))
            new = [mutant for mutant in survivors if mutant.change not in accepted]
            killed, seconds = len(mutants) - len(survivors), time.monotonic() - start
            known = f", {len(survivors) - len(new)} accepted" if len(new) < len(survivors) else ""
            print(f"{file}: {killed} of {len(mutants)} killed{known}, {seconds:.0f} s", flush=True)
            for mutant in sorted(new, key=lambda mutant: mutant.where):
                print(f"  survives: {mutant.where}: {mutant.change}", flush=True)
            unnoticed, total = unnoticed + len(new), total + len(mutants)
        os.chdir(ROOT)
    print(f"{total - unnoticed} of {total} killed or accepted, {1 - unnoticed / max(total, 1):.1%}; goal {GOAL:.0%}")
    return int(unnoticed > (1 - GOAL) * total)


if __name__ == "__main__":
    sys.exit(main())
