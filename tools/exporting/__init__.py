"""The parts of `tools/export.py`: what all formats check, and a file for each format."""
