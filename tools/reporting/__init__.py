"""The parts of `tools/report.py`: run folders are read, figures drawn with plotly, and one page made of them."""
