"""`pip install .` installs the library `heterolora` alone, and the library works without the program around it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

import heterolora
from heterolora import saliency
from tests.test_architecture import imports
from tests.world import ROOT

PROGRAM = ("main", "actions", "dataset", "model", "options", "tools")
NOT_IMPORTED = (*PROGRAM, "pytorch_lightning", "lightning_fabric", "torchmetrics", "datasets", "transformers", "peft")
#: The two files that name a trainer. Users of that trainer import them.
FRONTS = ("heterolora.lightning", "heterolora.transformers")


def sources() -> set[str]:
    """The Python files of the library, relative to the repository."""
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / "heterolora").rglob("*.py")}


def quiet(*command: object, **options: object) -> str:
    """Runs a command that must succeed. Returns its output."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the repository that holds no caches and no earlier builds."""
    copy, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("heterolora", "actions", "dataset", "model", "options", "tools", "configs", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "fixtures"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "main.py"):
        shutil.copyfile(ROOT / name, copy / name)
    build = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", copy)
    quiet(*build, "--no-deps", "--no-build-isolation", "--no-index", "-w", output)
    (built,) = output.iterdir()
    return built


@pytest.fixture(scope="module")
def empty(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder, symlinks=True, with_pip=False)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    quiet(*pip, "install", "--no-deps", "--no-index", wheel)
    return python


class TestWheel:
    @pytest.fixture(scope="class")
    def names(self, wheel: Path) -> set[str]:
        return set(zipfile.ZipFile(wheel).namelist())

    @pytest.fixture(scope="class")
    def metadata(self, wheel: Path) -> Message:
        archive = zipfile.ZipFile(wheel)
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))

    def test_it_holds_the_library_and_nothing_else(self, names: set[str]) -> None:
        code = {name for name in names if ".dist-info/" not in name}
        assert code == sources() | {"heterolora/py.typed"}
        for heuristic in saliency.names():
            assert f"heterolora/saliency/heuristics/{heuristic}.py" in code

    def test_it_holds_the_licence(self, names: set[str], metadata: Message) -> None:
        assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
        assert metadata["License-Expression"] == "Apache-2.0"

    def test_metadata(self, metadata: Message) -> None:
        assert metadata["Name"] == "heterolora"
        assert metadata["Version"] == heterolora.__version__
        assert metadata["Requires-Python"] == ">=3.11"
        assert metadata.get_all("Provides-Extra") == ["peft"]
        assert metadata.get_payload().startswith("# HeteroLoRA")


class TestInstalled:
    def test_it_imports_without_any_other_package(self, empty: Path, tmp_path: Path) -> None:
        """In this environment there is no torch, so the import is quick."""
        code = "import heterolora; print(heterolora.__version__)"
        assert quiet(empty, "-I", "-c", code, cwd=tmp_path) == heterolora.__version__

    @pytest.mark.parametrize("name", PROGRAM)
    def test_the_program_is_not_installed(self, empty: Path, tmp_path: Path, name: str) -> None:
        code = f"import importlib.util; print(importlib.util.find_spec('{name}'))"
        assert quiet(empty, "-I", "-c", code, cwd=tmp_path) == "None"

    def test_every_module_imports_beside_torch(self, empty: Path, tmp_path: Path) -> None:
        """The other packages come from the environment of the tests; they are there, but the library leaves them."""
        code = f"""
import importlib, pkgutil, sys
import heterolora
modules = [found.name for found in pkgutil.walk_packages(heterolora.__path__, "heterolora.")]
for name in modules:
    if name not in {sorted(FRONTS)!r}:
        importlib.import_module(name)
unwanted = [name for name in {NOT_IMPORTED!r} if name in sys.modules]
print(heterolora.__file__, len(modules), *unwanted)
"""
        packages = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}
        place, modules, *unwanted = quiet(empty, "-c", code, cwd=tmp_path, env=packages).split()
        assert Path(place).is_relative_to(empty.parents[1])
        assert int(modules) == len(sources()) - 1  # without heterolora/__init__.py itself
        assert not unwanted


def packages(requirements: list[str]) -> set[str]:
    """The names of the packages, as they are imported."""
    return {re.split("[<>=]", requirement)[0].replace("-", "_") for requirement in requirements}


class TestDependencies:
    @pytest.fixture(scope="class")
    def project(self) -> dict:
        return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def test_they_are_what_the_library_imports(self, project: dict) -> None:
        """Those of the extra are imported only in the functions that need them."""
        dependencies, extra = packages(project["dependencies"]), packages(project["optional-dependencies"]["peft"])
        fronts = {f"{name.replace('.', '/')}.py" for name in FRONTS}
        files = sources() - fronts
        imported = {found.package for file in files for found in imports((ROOT / file).read_text(), file)}
        assert imported - sys.stdlib_module_names - {"heterolora"} - extra == dependencies

    def test_their_ranges_are_those_of_the_program(self, project: dict) -> None:
        files = ("python-requirements.txt", "tests/requirements.txt")
        lines = [line.split("#")[0].strip() for file in files for line in (ROOT / file).read_text().splitlines()]
        for requirement in (*project["dependencies"], *project["optional-dependencies"]["peft"]):
            assert requirement in lines or requirement == "numpy"  # any numpy that torch works with
