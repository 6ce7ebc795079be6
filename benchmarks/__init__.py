"""The benchmarks: the file `lora_vs_peft.py` is `python -m benchmarks lora-vs-peft`.

Each has a docstring, whose first line the list of benchmarks shows, and two functions::

    def add_options(parser: argparse.ArgumentParser) -> None: ...
    def run(args: argparse.Namespace) -> None: ...

`add_options` adds to the common options of `python -m benchmarks`, or changes their defaults. For `run`, `args.device`
is a torch device and `args.command` the whole command. `measure.py` times variants and `subjects.py` makes the models.
"""

NAMES = (
    "alpha-test", "around-steps", "base-digest", "budget-time", "compile", "decompositions", "dyrealloc",
    "frozen-prefix", "labels", "learning-rate", "lora-vs-peft", "own-data", "padding", "scoring", "sharding",
    "shared-input", "shortcuts", "trainer",
)  # fmt: skip
