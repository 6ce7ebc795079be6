"""The parts of a report: a file for each, which makes its text, pictures and table. page.py lists them."""
