"""Print requirements with upper bounds at the next major release, for `make test-newest`.

    python -m tests.newest python-requirements.txt tests/requirements.txt

It runs before anything is installed, so it needs the standard library only.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_MINOR = re.compile(r"<(\d+)\.\d[\d.]*")  # an upper bound that is a minor release


def lifted(text: str) -> str:
    """The requirements, in which `<5.26` is `<6` and `<0.22` is `<1`."""
    return _MINOR.sub(lambda found: f"<{int(found[1]) + 1}", text)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
        print(*(lifted(line) for line in lines if not line.startswith("-r ")), sep="\n")
