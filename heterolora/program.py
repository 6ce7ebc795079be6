"""The program around this library, from any folder: the command `heterolora`, and `fit` for Python and notebooks.

A wheel carries the program's folders inside this package, in `_program`, so that site-packages has no packages with
names such as `model` or `tools`. In a clone they lie beside this package. Either way they are on the path of this
process and of those that it starts, and of no other.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from heterolora import __version__
from heterolora.common.errors import UserError

#: An environment variable of the command `heterolora` and of the processes that it starts: the word after the command.
STARTED = "HETEROLORA_STARTED_AS_COMMAND"

_CARRIED = Path(__file__).with_name("_program")
FOLDER = _CARRIED if _CARRIED.is_dir() else Path(__file__).parents[1]

# Modules of the program. It uses this package, and not the other way: they are started by name, as by `python -m`.
_MAIN, _STARTER = "main", "tools.cli"
_USER_ERROR = 2
_NEEDS = ("rich", "safetensors", "datasets", "transformers", "pytorch_lightning", "torchmetrics")


def main() -> int:
    """Run an action or a tool, and return its exit code."""
    if sys.argv[1:] in (["--version"], ["version"]):
        print(f"heterolora {__version__}")
        return 0
    try:
        _check_packages()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return _USER_ERROR
    _make_importable(FOLDER)
    os.environ[STARTED] = name = _first_word()
    return int(importlib.import_module(_STARTER).start(name, sys.argv[1:]))


def fit(action: str = "train", **options: Any) -> Any:
    """Train as the command does, from Python: `fit` of the program's `main.py`, which see.

    Example::

        run = fit(model="roberta_lora", load="FacebookAI/roberta-base", dataset="sst2", max_epochs=1)
        run.folder, run.metrics["validation"]["accuracy"], run.adapter
        run.predict(["a film that I will see again"])

    Raises:
        UserError: a mistake, as the command line would print it, or the packages of the program are not installed.
    """
    _check_packages()
    _make_importable(FOLDER)
    program = importlib.import_module(_MAIN)
    if Path(program.__file__ or "").parent != FOLDER:
        raise UserError(f"another module is called main: {program.__file__}", "import it after the call of fit")
    return program.fit(action, **options)


def _check_packages() -> None:
    if missing := [name for name in _NEEDS if importlib.util.find_spec(name) is None]:
        found = f"the packages of the program are not installed, such as {missing[0]}"
        raise UserError(found, "pip install 'heterolora[program]'")


def _first_word() -> str:
    """The action or the tool. A shell that asks for completions gives the command in an environment variable."""
    words = os.environ["COMP_LINE"].split() if "_ARGCOMPLETE" in os.environ else sys.argv
    return words[1] if len(words) > 1 else ""


def _make_importable(folder: Path) -> None:
    """Put the folder first on the path of this process, and of every Python that it starts."""
    sys.path.insert(0, str(folder))
    others = os.environ.get("PYTHONPATH")
    if others is None or str(folder) not in others.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *([others] if others else [])])


if __name__ == "__main__":
    sys.exit(main())
