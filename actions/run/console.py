"""Terminal output, from the first process only."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings

from rich.console import Console

from options.actions import as_started

# Set by Lightning's launcher, torchrun and SLURM, before any process group exists.
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK")
_LOCAL_RANK_VARIABLES = ("LOCAL_RANK", "SLURM_LOCALID")


def print_any_text() -> None:
    """Print characters that the terminal's encoding lacks as escapes. By default they end the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def is_first_process() -> bool:
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun numbers the processes, also if SLURM has started it
        return os.environ["RANK"] == "0"
    return all(os.environ.get(variable, "0") == "0" for variable in _RANK_VARIABLES)


def local_rank() -> str:
    """The number of this process on its machine."""
    return next((os.environ[name] for name in _LOCAL_RANK_VARIABLES if name in os.environ), "0")


def is_first_of_node() -> bool:
    """Whether this is the first process of its machine."""
    return local_rank() == "0"


def say(what: object) -> None:
    """Print text or a rich table."""
    if is_first_process():
        what = as_started(what) if isinstance(what, str) else what
        Console(highlight=False, soft_wrap=isinstance(what, str)).print(what, markup=False)


def note(text: str) -> None:
    say(f"note: {text}")


def hide_warnings() -> None:
    """Hide what libraries say of a file or of the machine, so that an error is one line. It imports no library."""
    warnings.filterwarnings("ignore", category=UserWarning, module="pytorch_lightning|lightning_fabric|torch")
    warnings.filterwarnings("ignore", category=FutureWarning)


def set_log_level(level: str) -> None:
    """Set the log level of the libraries. Call it after they are imported, because they set levels on import.

    Above `info`, hints about the machine and transformers' report of a new head are hidden. Progress bars are shown on
    a terminal only.
    """
    import datasets
    import transformers

    number = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=number)
    for library in ("pytorch_lightning", "lightning_fabric", "datasets"):
        logging.getLogger(library).setLevel(number)
    transformers.logging.set_verbosity(number if number <= logging.INFO else logging.ERROR)
    logging.getLogger("huggingface_hub").propagate = False  # it prints itself, and the root logger would again
    if number > logging.INFO:
        hide_warnings()
    if not (sys.stderr.isatty() and is_first_process()):
        transformers.logging.disable_progress_bar()
        datasets.disable_progress_bars()
