"""One heuristic per file; the file has the name of the heuristic."""
