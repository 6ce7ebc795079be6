"""Stands in for the package `tools` when a tool runs as a file.

`python tools/report.py` puts this folder first on `sys.path`, not the repository, so that `import tools` finds this
file. It names the folder as the package's own and puts the repository in its place on `sys.path`. `python -m
tools.report` finds the package itself and never reads this file.
"""

import sys
from pathlib import Path

__path__ = [str(Path(__file__).resolve().parent)]
sys.path[0] = str(Path(__file__).resolve().parents[1])
