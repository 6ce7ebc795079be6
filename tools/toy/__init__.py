"""The parts of `tools/quickstart.py`: baselines without LoRA, and the runs of the program."""
