"""Pictures of runs: what each kind shows, as a frozen dataclass, and how matplotlib draws it into a file or a page."""
