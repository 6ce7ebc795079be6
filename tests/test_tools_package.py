"""`tools/` is a package: each tool runs as a module and as a file, from the repository and from any other folder."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.quick import some_slow
from tests.world import ROOT

TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py") if "run(main)" in path.read_text(encoding="utf-8"))


def start(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_these_are_all() -> None:
    assert {"export", "quickstart", "report"} <= set(TOOLS)
    assert {path.stem for path in (ROOT / "tools").glob("*.py")} - set(TOOLS) == {"__init__", "cli", "tools"}


FEW = ("report", "study")  # each start of a process costs seconds, so the others are slow tests


@pytest.mark.parametrize("tool", some_slow(TOOLS, quick=FEW))
@pytest.mark.parametrize("form", some_slow(["file", "module"], quick=["file"]))
def test_help(tool: str, form: str, tmp_path: Path) -> None:
    if form == "file":
        done = start(ROOT / "tools" / f"{tool}.py", "--help", folder=tmp_path)
    else:
        done = start("-m", f"tools.{tool}", "--help", folder=ROOT)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 5


HEAVY = {"torch", "transformers", "pytorch_lightning", "datasets", "matplotlib", "scipy", "sklearn", "tensorboard"}
WHAT_IS_LOADED = """
import runpy, sys
sys.argv = ["tool", sys.argv[1]]
try:
    runpy.run_module("tools.{tool}", run_name="__main__")
except SystemExit as leaving:
    print(leaving.code or 0, *sorted(sys.modules.keys() & {heavy}))
"""


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("--no-such-flag", 2)])
@pytest.mark.parametrize("tool", TOOLS)
def test_nothing_heavy_is_imported_before_the_arguments_are_read(tool: str, argument: str, code: int) -> None:
    done = start("-c", WHAT_IS_LOADED.format(tool=tool, heavy=HEAVY), argument, folder=ROOT)
    assert done.stdout.splitlines()[-1] == str(code), done.stderr


@pytest.mark.parametrize("tool", TOOLS)
def test_the_repository_is_found_before_it_is_needed(tool: str) -> None:
    """The first import outside the standard library is `tools.cli`: as a file, a tool finds nothing else before it."""
    tree = ast.parse((ROOT / "tools" / f"{tool}.py").read_text(encoding="utf-8"))
    modules = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in tree.body
               if isinstance(node, ast.Import | ast.ImportFrom)]  # fmt: skip
    others = [module for module in modules if module.split(".")[0] not in sys.stdlib_module_names]
    assert others[0] == "tools.cli"


@pytest.mark.slow
def test_a_user_error_is_one_line_in_both_forms(tmp_path: Path) -> None:
    for arguments, folder in (((ROOT / "tools/report.py",), tmp_path), (("-m", "tools.report"), ROOT)):
        done = start(*arguments, tmp_path / "nowhere", folder=folder)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


def test_the_package_of_a_file_is_that_of_the_repository(tmp_path: Path) -> None:
    """Modules of this folder, such as `tools/cli.py`, are no top-level modules; other imports find the repository."""
    (tmp_path / "tools").mkdir()
    for name in ("tools.py", "cli.py"):
        (tmp_path / "tools" / name).write_text((ROOT / "tools" / name).read_text(encoding="utf-8"), encoding="utf-8")
    modules = {
        "actions/command/completion.py": "complete = None",
        "actions/run/console.py": "hide_warnings = print_any_text = print",
        "actions/run/endings.py": "ended = end_with_parent = 'found'",
        "options/actions.py": "TOOLS = {}\nas_started = None",
        "options/declare.py": "OptionInfo = None",
        "heterolora/common/checks.py": "Condition = None",
        "heterolora/common/errors.py": "class UserError(Exception): ...",
        "heterolora/program.py": "STARTED = None",
    }
    for module, text in modules.items():
        (tmp_path / module).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / module).write_text(text + "\n")
    (tmp_path / "tools" / "tool.py").write_text(
        "import sys\nfrom tools import cli\nassert cli.ended == 'found'\n"
        "assert 'cli' not in sys.modules\nassert not any(path.endswith('/tools') for path in sys.path), sys.path\n"
    )
    done = start(tmp_path / "tools" / "tool.py", folder=tmp_path.parent)
    assert done.returncode == 0, done.stderr
