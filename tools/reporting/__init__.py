"""The parts of `tools/report.py`: run folders are read, and one page is made of them."""
