"""One heuristic a file, named like it."""
