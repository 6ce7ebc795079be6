"""The benchmarks: the file `lora_vs_peft.py` is `tools/benchmark.py lora-vs-peft`.

Each has a docstring, whose first line the list of benchmarks shows, and two functions::

    def add_options(parser: argparse.ArgumentParser) -> None: ...
    def run(args: argparse.Namespace) -> None: ...

`add_options` adds to the common options of `tools/benchmark.py`, or changes their defaults. For `run`, `args.device`
is a torch device and `args.command` the whole command. `measure.py` times variants and `subjects.py` makes the models.
"""

NAMES = (
    "alpha-test", "budget-time", "compile", "dyrealloc", "frozen-prefix", "lora-vs-peft", "padding", "sharding",
    "shortcuts", "trainer",
)  # fmt: skip
