"""The parts of `tools/inspect_model.py` that show a search space; those of --plan are in tools/planning."""
