"""The parts of `tools/report.py`: run folders are read, charts drawn, and one page made of them."""
