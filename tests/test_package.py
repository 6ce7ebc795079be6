"""`pip install .` installs the library `heterolora`, and inside it the program, which the command `heterolora` starts.

The library works without the packages that the program needs, and Python finds no other new package.
"""

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
from tests.studies import DRAWN, ON_TOY_DATA, UNIFORM, study_text
from tests.test_architecture import imports
from tests.world import ROOT

FOLDERS = ("actions", "configs", "dataset", "model", "options", "tools")
PROGRAM = ("main", "actions", "dataset", "model", "options", "tools")
NOT_IMPORTED = (*PROGRAM, "pytorch_lightning", "lightning_fabric", "torchmetrics", "datasets", "transformers", "peft")
#: The two files that name a trainer. Users of that trainer import them.
FRONTS = ("heterolora.lightning", "heterolora.transformers")


def sources() -> set[str]:
    """The Python files of the library, relative to the repository."""
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / "heterolora").rglob("*.py")}


def quiet(*command: object, **options: object) -> str:
    """Run a command that must succeed. Returns its output."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository that holds no earlier builds."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("heterolora", *FOLDERS, "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "fixtures"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "main.py"):
        shutil.copyfile(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("wheel")
    build = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", source)
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

    def test_its_only_package_is_the_library(self, names: set[str]) -> None:
        assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"heterolora"}

    def test_it_holds_the_library_and_the_program_and_nothing_else(self, names: set[str]) -> None:
        code = {name for name in names if ".dist-info/" not in name}
        found = (path for name in FOLDERS for path in (ROOT / name).rglob("*") if path.is_file())
        paths = {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts} | {"main.py"}
        assert code == sources() | {"heterolora/py.typed"} | {f"heterolora/_program/{path}" for path in paths}
        assert "heterolora/_program/model/toy_opt/model.safetensors" in code
        for heuristic in saliency.names():
            assert f"heterolora/saliency/heuristics/{heuristic}.py" in code

    def test_it_holds_the_licence(self, names: set[str], metadata: Message) -> None:
        assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
        assert metadata["License-Expression"] == "Apache-2.0"

    def test_metadata(self, metadata: Message) -> None:
        assert metadata["Name"] == "heterolora"
        assert metadata["Version"] == heterolora.__version__
        assert metadata["Requires-Python"] == "<3.14,>=3.11"
        assert metadata.get_all("Provides-Extra") == ["peft", "plot", "program"]
        assert metadata.get_payload().startswith("# HeteroLoRA")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_it_installs_from_a_git_address(source: Path, tmp_path: Path) -> None:
    repository, python = tmp_path / "repository", tmp_path / "env" / "bin" / "python"
    shutil.copytree(source, repository, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    git = ("git", "-C", repository, "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    for words in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "all")):
        quiet(*git, *words)
    venv.create(tmp_path / "env", symlinks=True, with_pip=False)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    path = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}  # of setuptools, which builds it
    given = (
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        f"heterolora[program] @ git+file://localhost{repository}",
    )
    quiet(*pip, "install", *given, env=path)
    assert quiet(python.with_name("heterolora"), "--version", cwd=tmp_path) == f"heterolora {heterolora.__version__}"


class TestInstalled:
    def test_it_imports_without_any_other_package(self, empty: Path, tmp_path: Path) -> None:
        """In this environment there is no torch, so the import is quick."""
        code = "import heterolora; print(heterolora.__version__)"
        assert quiet(empty, "-I", "-c", code, cwd=tmp_path) == heterolora.__version__

    @pytest.mark.parametrize("name", PROGRAM)
    def test_the_program_is_not_installed(self, empty: Path, tmp_path: Path, name: str) -> None:
        code = f"import importlib.util; print(importlib.util.find_spec('{name}'))"
        assert quiet(empty, "-I", "-c", code, cwd=tmp_path) == "None"

    def test_the_command_names_its_version(self, empty: Path, tmp_path: Path) -> None:
        assert quiet(empty.with_name("heterolora"), "--version", cwd=tmp_path) == f"heterolora {heterolora.__version__}"

    def test_the_command_says_that_its_packages_are_missing(self, empty: Path, tmp_path: Path) -> None:
        done = subprocess.run([empty.with_name("heterolora"), "train"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert line.endswith("; pip install 'heterolora[program]'")

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


SMALL = ("--accelerator", "cpu", "--batch-size", 4, "--max-steps", 2, "--limit-val-batches", 1)
SMALL += ("--limit-test-batches", 1)
STUDY = study_text(
    ON_TOY_DATA,
    UNIFORM,
    DRAWN,
    options="""accelerator = "cpu"
logger = "none"
max_steps = 2
limit_val_batches = 2
limit_test_batches = 1""",
    parameters=1152,
    rates="4e-3",
)


class TestCommand:
    """The command `heterolora` in an environment of its own, started in a folder that holds nothing of the program."""

    @pytest.fixture(scope="class")
    def command(self, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """The packages that the program needs are those of the environment of the tests."""
        folder = tmp_path_factory.mktemp("full")
        venv.create(folder, symlinks=True, with_pip=False)
        python = folder / "bin" / "python"
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
        quiet(*pip, "install", "--no-deps", "--no-index", wheel)
        (found,) = folder.glob("lib/python*/site-packages")
        (found / "packages.pth").write_text(sysconfig.get_path("purelib"))
        return folder / "bin" / "heterolora"

    @pytest.mark.slow
    def test_it_trains_and_reports(self, command: Path, tmp_path: Path) -> None:
        said = quiet(
            command, "imp-test", *SMALL[:4], "--imp-limit-test-batches", 1, "--project", "scored", cwd=tmp_path
        )
        assert "\n  heterolora realloc runs/scored/scores.toml --" in said
        assert "\n  heterolora train --config runs/scored/config.toml" in said
        quiet(command, "realloc", "runs/scored", "--parameters", 1152, "--output", "lora.toml", cwd=tmp_path)
        quiet(command, "train", *SMALL, "--lora-config", "lora.toml", "--project", "a", cwd=tmp_path)
        assert "heterolora test --load" in (tmp_path / "runs/a/adapter/README.md").read_text()
        assert quiet(command, "report", "runs/a", cwd=tmp_path) == "report: report.html"
        assert "heterolora train --config runs/a/config.toml" in (tmp_path / "report.html").read_text()

    def test_a_mistake_names_the_command(self, command: Path, tmp_path: Path) -> None:
        done = subprocess.run([command, "report"], cwd=tmp_path, capture_output=True, text=True)
        assert done.stderr.strip().endswith("; see heterolora report --help")

    @pytest.mark.slow
    def test_it_starts_other_processes_of_itself(self, command: Path, tmp_path: Path) -> None:
        several = ("--num-devices", 2, "--strategy", "ddp", "--logger", "none")
        quiet(command, "train", *SMALL, *several, "--project", "two", cwd=tmp_path)
        assert (tmp_path / "runs/two/metrics.json").is_file()
        (tmp_path / "study.toml").write_text(STUDY)
        quiet(command, "study", "study.toml", "--output", "studied", cwd=tmp_path)
        assert (tmp_path / "studied/report.html").is_file()


def packages(requirements: list[str]) -> set[str]:
    """The names of the packages, as they are imported."""
    return {re.split("[<>=]", requirement)[0].replace("-", "_") for requirement in requirements}


class TestDependencies:
    @pytest.fixture(scope="class")
    def project(self) -> dict:
        return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def test_they_are_what_the_library_imports(self, project: dict) -> None:
        """Those of the extra are imported only in the functions that need them."""
        extras = project["optional-dependencies"]
        dependencies, extra = packages(project["dependencies"]), packages([*extras["peft"], *extras["plot"]])
        fronts = {f"{name.replace('.', '/')}.py" for name in FRONTS}
        files = sources() - fronts
        imported = {found.package for file in files for found in imports((ROOT / file).read_text(), file)}
        assert imported - sys.stdlib_module_names - {"heterolora"} - extra == dependencies

    def test_their_ranges_are_those_of_the_program(self, project: dict) -> None:
        files, extras = ("python-requirements.txt", "tests/requirements.txt"), project["optional-dependencies"]
        lines = [line.split("#")[0].strip() for file in files for line in (ROOT / file).read_text().splitlines()]
        for requirement in (*project["dependencies"], *extras["peft"], *extras["plot"]):
            assert requirement in lines or requirement == "numpy"  # any numpy that torch works with

    def test_those_of_the_program_are_what_it_needs(self, project: dict) -> None:
        needed = {line.split("#")[0].strip() for line in (ROOT / "python-requirements.txt").read_text().splitlines()}
        assert {*project["optional-dependencies"]["program"]} == needed - {"", *project["dependencies"]}
