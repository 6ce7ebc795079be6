"""The versions: one set that is installed, ranges around it, and calls that libraries will drop."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.newest import lifted
from tests.world import ROOT

LOCK = ROOT / "python-constraints.txt"
FILES = ("python-requirements.txt", "tests/requirements.txt", "docs/requirements.txt")
OF_CUDA = ("nvidia-", "cuda-", "triton")  # what builds of torch for GPUs add
OF_PYTHON = ("pip", "setuptools", "heterolora")
PYTHONS = ("3.11", "3.12", "3.13")
of_the_lock = pytest.mark.skipif(
    sys.prefix.endswith(("-newest", "-oldest")),
    reason="this environment has other versions than python-constraints.txt",
)


def lines(path: Path) -> list[str]:
    plain = (line.split("  #")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in plain if line and not line.startswith(("#", "-r "))]


def pinned(python: str) -> dict[str, str]:
    """Package -> its version on Linux with that Python."""
    found = {}
    for requirement in map(Requirement, lines(LOCK)):
        here = {**default_environment(), "python_version": python, "python_full_version": f"{python}.7"}
        if requirement.marker is None or requirement.marker.evaluate(here):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} has two versions for Python {python}"
            found[name] = str(requirement.specifier).removeprefix("==")
    return found


def test_the_lock_names_versions_and_nothing_else() -> None:
    for line in lines(LOCK):
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*( ; [^@/]+)?", line), line
        assert not line.startswith(OF_CUDA), line


@pytest.mark.parametrize("python", PYTHONS)
def test_every_range_admits_what_the_lock_has(python: str) -> None:
    versions = pinned(python)
    for requirement in (Requirement(line) for file in FILES for line in lines(ROOT / file)):
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} does not admit {version}"


@of_the_lock
def test_everything_that_is_installed_is_in_the_lock() -> None:
    versions = pinned(f"{sys.version_info.major}.{sys.version_info.minor}")
    command = [sys.executable, "-m", "pip", "list", "--format", "freeze", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    for line in done.stdout.split():
        name, _, version = line.partition("==")
        name = canonicalize_name(name)
        if name not in OF_PYTHON and not name.startswith(OF_CUDA):
            assert versions.get(name) == version.partition("+")[0], line


def test_upper_bounds_are_lifted_to_the_next_major_release() -> None:
    assert lifted("transformers>=5.23,<5.26") == "transformers>=5.23,<6"
    assert lifted("peft>=0.21.2,<0.22  # why") == "peft>=0.21.2,<1  # why"
    assert lifted("rich>=14,<16") == "rich>=14,<16"
    assert lifted("tiny==0.1.0") == "tiny==0.1.0"


def test_continuous_integration_runs_the_targets_of_make() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    targets = {word for step in steps if "run" in step for word in re.findall(r"^make ([\w-]+)", step["run"])}
    assert targets == {"lint", "test", "docs", "test-newest", "test-wheel"}
    assert all("run" not in step or step["run"].startswith("make ") for step in steps)
    for target in targets:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for action in re.findall(r"uses: (\S+)", text):
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action)
    assert tuple(workflow["jobs"]["test"]["strategy"]["matrix"]["python"]) == PYTHONS


OTHER = """import warnings
from typing_extensions import deprecated
def call(): warnings.warn('old', FutureWarning)
@deprecated('old')
def dropped(): pass
"""


@pytest.mark.parametrize(
    ("library", "fails"),
    [
        ("import warnings\ndef call(): warnings.warn('old', FutureWarning)", True),
        ("import warnings\ndef call(): inner()\ndef inner(): warnings.warn('old', DeprecationWarning)", True),
        ("import logging\ndef call(): logging.getLogger('transformers.x').warning('`a` is deprecated')", True),
        ("import logging\ndef call(): logging.getLogger('transformers.x').warning('slow')", False),
        ("import warnings\ndef call(): warnings.warn('odd', UserWarning)", False),
        ("import other\ndef call(): other.call()", False),
        ("from typing_extensions import deprecated\n@deprecated('old')\ndef call(): pass", True),
        ("import other\ndef call(): other.dropped()", False),
    ],
)
def test_calls_that_a_library_will_drop_fail(library: str, fails: bool, tmp_path: Path) -> None:
    """The plugin of `make test-newest`, in a process of its own."""
    (tmp_path / "library.py").write_text(library)
    (tmp_path / "other.py").write_text(OTHER)
    (tmp_path / "test_own.py").write_text("from library import call\ndef test_it():\n    call()\n")
    plugin = (ROOT / "tests" / "deprecations.py").read_text(encoding="utf-8")
    plugin = plugin.replace("path.is_relative_to(ROOT)", "path.name == 'test_own.py'")
    (tmp_path / "plugin.py").write_text(plugin)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "plugin", "-p", "no:cacheprovider", "test_own.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == (1 if fails else 0), done.stdout[-2000:]
    assert ("DeprecatedError" in done.stdout) is fails
