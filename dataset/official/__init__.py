"""The benchmarks' own metrics, as `evaluate` modules in this repository: nothing is downloaded.

`evaluate.load` takes a folder whose one script has the folder's name. It copies that script elsewhere and reads its
imports line by line, so a script imports nothing of this project and has one import a line.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from heterolora.errors import UserError, nearest

if TYPE_CHECKING:
    import evaluate

_FOLDER = Path(__file__).resolve().parent


def official_metric(name: str) -> evaluate.EvaluationModule:
    """The metric `<module>` or `<module>/<configuration>`, e.g. `glue/rte`, `super_glue/cb`, `rouge`.

    Its `compute(predictions=…, references=…)` takes class ids (or similarities for `glue/stsb`, texts for `rouge`) and
    returns a dictionary of floats under the names that data set entries use. It sees one process's rows only: gather
    them before.

    Raises:
        UserError: there is no such module or no such configuration of it.
    """
    import evaluate

    module, _, config = name.partition("/")
    known = [script.parent.name for script in _FOLDER.glob("*/*.py") if script.stem == script.parent.name]
    if module not in known:
        raise UserError(f"official metric '{name}' is not known", nearest(module, known))
    try:
        return evaluate.load(str(_FOLDER / module), config or None, keep_in_memory=True)
    except KeyError as error:
        raise UserError(f"official metric '{name}' is not known", error.args[0]) from None
