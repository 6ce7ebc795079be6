"""Imports point down: benchmarks → tools → main → actions → model → dataset → options → heterolora. No files import
each other, and the files stay small."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.world import ROOT

LAYERS = ("heterolora", "options", "dataset", "model", "actions", "main", "tools", "benchmarks")

#: The folders of `actions`. Each imports only itself and those before it.
FOLDERS = ("command", "run", "request", "training", "result", "prediction")

LIGHTNING = {"pytorch_lightning", "lightning_fabric", "lightning"}
NOT_IN_THE_LIBRARY = {*LIGHTNING, "torchmetrics", "datasets"}
IN_FUNCTIONS_ONLY = {"transformers", "peft"}
#: The files of the library that name a framework: a callback for each of two trainers.
FRONTS = ("heterolora/lightning.py", "heterolora/transformers.py")
#: The files below `actions` that may know Lightning.
KNOWS_LIGHTNING = (
    "heterolora/lightning.py", "dataset/batching/module.py", "model/lightning.py", "model/task/", "model/reallocation/",
)  # fmt: skip

LONGEST, SHORTEST = 350, 15


@dataclass(frozen=True)
class Import:
    """An import statement: its file and line, the module, and whether it runs when the file is imported."""

    file: str
    line: int
    module: str
    on_import: bool

    @property
    def package(self) -> str:
        return self.module.split(".")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def product_files() -> list[Path]:
    return [ROOT / "main.py", *(path for name in LAYERS for path in sorted((ROOT / name).rglob("*.py")))]


def imports(source: str, file: str) -> Iterator[Import]:
    """Every import of a file: at its top, in functions, and under TYPE_CHECKING, which does not run."""

    def walk(node: ast.AST, on_import: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(file, child.lineno, alias.name, on_import)
            elif isinstance(child, ast.ImportFrom):
                parents = Path(file).parts[: -child.level] if child.level else ()
                yield Import(file, child.lineno, ".".join([*parents, child.module or ""]).strip("."), on_import)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for part in child.body:
                    yield from walk(ast.Module([part], []), on_import=False)
                for part in child.orelse:
                    yield from walk(ast.Module([part], []), on_import)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from walk(child, on_import=False)
            else:
                yield from walk(child, on_import)

    return walk(ast.parse(source), on_import=True)


def within_actions(found: Import) -> tuple[str, str] | None:
    """The folder of `actions` that imports, and the folder that is imported. None for any other import."""
    importer, imported = Path(found.file).parts[:2], found.module.split(".")[:2]
    both = importer[0] == imported[0] == "actions" and {importer[-1], imported[-1]} <= {*FOLDERS}
    return (importer[1], imported[1]) if both else None


def circles(arrows: Mapping[str, Collection[str]]) -> list[set[str]]:
    """The groups of files that import each other, directly or through others. `arrows`: file -> files it imports."""

    def reached(file: str) -> set[str]:
        found: set[str] = set()
        waiting = [*arrows[file]]
        while waiting:
            if (one := waiting.pop()) not in found:
                found.add(one)
                waiting += arrows.get(one, ())
        return found

    below = {file: reached(file) for file in arrows}
    groups = {frozenset(other for other in below[file] if file in below.get(other, ())) for file in arrows}
    return [set(group) for group in groups if group]


def arrows_between(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """File -> the files that it imports, anywhere in it. `sources`: file -> its text."""
    files = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in sources}
    found: dict[str, set[str]] = {}
    for file, source in sources.items():
        modules: set[str] = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                within = (f"{node.module}.{alias.name}" for alias in node.names)
                modules |= {name if name in files else node.module for name in within}
        found[file] = {files[name] for name in modules if name in files} - {file}
    return found


def names_of_lightning() -> set[str]:
    """The private names that the installed Lightning defines."""
    folders = [Path(importlib.util.find_spec(name).origin).parent for name in ("pytorch_lightning", "lightning_fabric")]
    texts = (path.read_text(encoding="utf-8") for folder in folders for path in folder.rglob("*.py"))
    return {name for text in texts for name in re.findall(r"(?:\bdef |\bclass |self\.)(_[a-zA-Z]\w*)", text)}


def private_names(source: str) -> set[str]:
    """The private names that a file imports or reads from an object, other than those that it defines itself."""
    nodes = list(ast.walk(ast.parse(source)))
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    used |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    own = {node.attr for node in nodes if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load)}
    own |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return {name for name in used - own if name.startswith("_") and not name.startswith("__")}


def points_up(found: Import) -> bool:
    importer = Path(found.file).parts[0].removesuffix(".py")
    return found.package in LAYERS and LAYERS.index(found.package) > LAYERS.index(importer)


#: What happens to rows, in this order: files to rows, rows to token ids, token ids to batches.
STAGES = ("dataset.reading", "dataset.encoding", "dataset.batching")


def points_to_a_later_stage(found: Import) -> bool:
    importer = found.file.replace("/", ".")
    here = next((index for index, stage in enumerate(STAGES) if importer.startswith(stage)), len(STAGES))
    return found.module.startswith(STAGES[here + 1 :])


def all_imports() -> list[Import]:
    files = ((path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in product_files())
    return [found for file, source in files for found in imports(source, file)]


class TestImports:
    @pytest.fixture(scope="class")
    def found(self) -> list[Import]:
        return all_imports()

    def test_they_point_down(self, found: list[Import]) -> None:
        assert not [str(one) for one in found if points_up(one)]

    def test_each_stage_of_the_data_knows_only_the_stages_before(self, found: list[Import]) -> None:
        assert not [str(one) for one in found if points_to_a_later_stage(one)]
        (wrong,) = imports("from dataset.encoding.encode import encode", "dataset/reading/x.py")
        assert points_to_a_later_stage(wrong)

    def test_the_library_does_without_lightning_metrics_and_data_sets(self, found: list[Import]) -> None:
        ours = [one for one in found if one.file.startswith("heterolora/") and one.file not in FRONTS]
        assert not [str(one) for one in ours if one.package in NOT_IN_THE_LIBRARY]
        assert not [str(one) for one in ours if one.package in IN_FUNCTIONS_ONLY and one.on_import]
        fronts = {file.removesuffix(".py").replace("/", ".") for file in FRONTS}
        users = {one.file for one in found if one.module in fronts}  # beside the library's user
        assert users == {"model/reallocation/callback.py"}

    def test_only_tasks_reallocation_and_the_data_module_know_lightning(self, found: list[Import]) -> None:
        below = [one for one in found if one.file.startswith(("heterolora/", "dataset/", "model/"))]
        assert not [str(one) for one in below if one.package in LIGHTNING and not one.file.startswith(KNOWS_LIGHTNING)]

    def test_private_parts_of_lightning_are_used_in_one_file(self, found: list[Import]) -> None:
        knows = {one.file for one in found if one.package in LIGHTNING} - {"model/lightning.py"}
        private, own = names_of_lightning(), {file: (ROOT / file).read_text(encoding="utf-8") for file in knows}
        assert not {file: used for file, text in own.items() if (used := private_names(text) & private)}

    def test_a_private_name_of_another_object_is_found(self) -> None:
        text = "from pytorch_lightning import _graph\nclass C:\n    def f(self, loop):\n        self._n = loop._fetcher"
        assert private_names(text) == {"_graph", "_fetcher"}
        assert {"_should_accumulate", "_SubprocessScriptLauncher"} <= names_of_lightning()

    def test_no_files_import_each_other(self) -> None:
        sources = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in product_files()}
        assert circles(arrows_between(sources)) == []

    def test_the_folders_of_actions_point_down(self, found: list[Import]) -> None:
        pairs = {str(one): pair for one in found if (pair := within_actions(one)) is not None}
        assert len(pairs) > 50
        assert not [one for one, (low, high) in pairs.items() if FOLDERS.index(low) < FOLDERS.index(high)]

    def test_a_circle_is_found(self) -> None:
        sources = {
            "model/a.py": "def f():\n    from model import b",
            "model/b.py": "if TYPE_CHECKING:\n    import model.c",
            "model/c.py": "from model.a import f",
            "model/d.py": "from model.a import f",
        }
        assert circles(arrows_between(sources)) == [{"model/a.py", "model/b.py", "model/c.py"}]

    @pytest.mark.parametrize(
        ("file", "source", "wrong"),
        [
            ("heterolora/x.py", "from model.load import load_base", True),
            ("heterolora/x.py", "import torch, dataset.spec", True),
            ("dataset/x.py", "def f():\n    from actions import train", True),
            ("model/x.py", "if TYPE_CHECKING:\n    from actions.command.command import Command", True),
            ("actions/x.py", "try:\n    import tools.cli\nexcept ImportError:\n    pass", True),
            ("main.py", "from tools import report", True),
            ("tools/x.py", "import benchmarks.measure", True),
            ("actions/x.py", "from heterolora import errors", False),
            ("model/task/x.py", "from . import y", False),
            ("main.py", "import actions.train", False),
            ("tools/x.py", "from main import main", False),
        ],
    )
    def test_every_form_of_import_is_read(self, file: str, source: str, wrong: bool) -> None:
        assert any(points_up(one) for one in imports(source, file)) == wrong

    def test_which_ones_run_on_import(self) -> None:
        source = "import peft\nif TYPE_CHECKING:\n    import a\nelse:\n    import b\n"
        source += "class C:\n    import c\n    def f():\n        import d"
        assert [one.module for one in imports(source, "model/x.py") if one.on_import] == ["peft", "b", "c"]


class TestFiles:
    def test_none_is_too_long(self) -> None:
        for path in product_files():
            name, lines = path.relative_to(ROOT).as_posix(), len(path.read_text(encoding="utf-8").splitlines())
            assert lines <= LONGEST, name

    def test_none_only_forwards(self) -> None:
        """A short file holds something of its own, or is a family's table or a heuristic."""
        for path in product_files():
            name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
            if path.name == "__init__.py" or name.startswith(("model/family/", "heterolora/saliency/heuristics/")):
                continue
            assert len(text.splitlines()) >= SHORTEST or not only_forwards(text), name


def only_forwards(source: str) -> bool:
    """Whether a module has nothing but a docstring, imports and names for what it imports."""
    return all(
        isinstance(part, ast.Import | ast.ImportFrom)
        or (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
        or (isinstance(part, ast.Assign) and isinstance(part.value, ast.Name | ast.Attribute | ast.List | ast.Tuple))
        for part in ast.parse(source).body
    )


#: How a docstring of a function would begin that describes the function instead of naming what it does.
_DESCRIBES = re.compile(
    "(Returns|Raises|Yields|Runs|Reads|Writes|Makes|Sets|Takes|Adds|Checks|Loads|Keeps|Draws|Encodes|Copies|Trains) "
)


def test_docstrings_of_functions_have_one_style() -> None:
    """`Return …`, as in PEP 257, or what the value is: `The …`."""
    described = []
    for path in (*product_files(), *sorted((ROOT / "tests").rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (text := ast.get_docstring(node)):
                described += [f"{path.relative_to(ROOT)}:{node.lineno} {text}"] if _DESCRIBES.match(text) else []
    assert not described
