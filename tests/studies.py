"""Studies in tests: a study file, runs in the process of the test, and results that are made up."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Sequence
from pathlib import Path

from main import main as program
from tests.world import World
from tools import study as tool
from tools.studies import peft_run
from tools.studies.jobs import Case
from tools.studies.results import Measured, Row
from tools.studies.spec import Arm

ON_TOY_DATA = '[tasks.toy]\ndataset = "toy_nli"'
ON_SST2 = '[tasks.reviews]\nmodel = "opt_lora"\ndataset = "sst2"\nload = "{load}"\ndataset_saved_path = "{data}"'
UNIFORM, DRAWN = '[arms.uniform]\nmethod = "uniform"\n', '[arms.drawn]\nmethod = "drawn"\n'
GRAD_NORM = '[arms.grad_norm]\nmethod = "grad_norm"\nrank = 4\n'


def study_text(
    task: str, *arms: str, options: str = "", parameters: int = 600, seeds: str = "0", rates: str = "1e-3"
) -> str:
    """A study file. `options` holds lines, and an arm is a table with its name."""
    numbers = f"parameters = [{parameters}]\nseeds = [{seeds}]\nlearning_rates = [{rates}]\n"
    return f'{numbers}measure = "accuracy"\n[options]\n{options}\n{task}\n{"".join(arms)}'


MINIMAL = study_text(
    ON_SST2,
    UNIFORM,
    GRAD_NORM,
    options="""max_epochs = 1
batch_size = 8
pretrained = true
accelerator = "cpu"
logger = "csv"
imp_limit_test_batches = 2""",
    seeds="0, 1",
    rates="1e-3, 1e-2",
)


def write(folder: Path, world: World, text: str = MINIMAL, **replaced: str) -> Path:
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "study.toml"
    path.write_text(text.replace("{load}", str(world.opt)).replace("{data}", str(world.sst2)))
    return path


class InThisProcess:
    """Runs the commands of a study in the process of the test, and keeps them."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.fail: str | None = None  # part of the name of runs that fail

    def __call__(self, arguments: Sequence[str], log: Path) -> int:
        self.commands.append([*arguments])
        if self.fail and self.fail in log.name:
            log.write_text("error: the base is damaged; give another\n")
            return 2
        module, *options = arguments[1:]
        with log.open("a") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            if module == "main":
                return program(options)
            peft_run.main(options)
            return 0


def study(path: Path, folder: Path, *more: str) -> None:
    tool.main([str(path), "--output", str(folder), *more])


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def measured(arm: str, seed: int, *splits: Sequence[float | Row]) -> Measured:
    """A run whose rows of the splits `first`, `second` have these values."""
    found = {
        name: {index: value if isinstance(value, Row) else Row(value, 1.0) for index, value in enumerate(values)}
        for name, values in zip(("first", "second"), splits, strict=False)
    }
    return Measured(Case("task", 1, Arm(arm, "uniform"), 1e-3, seed), Path(), found, {}, 1, None, None, 1.0)
