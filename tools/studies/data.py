"""Whether the data of a study are still those that its finished runs read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from actions.run.run_folder import write_json
from dataset import registry
from dataset.reading.cache import file_digest
from heterolora.common.errors import UserError
from heterolora.common.outside import read_json
from options.every import defaults
from tools.studies.jobs import PROGRAM, from_here
from tools.studies.spec import Study

FILE = "data.json"
_AGAIN = "give another --output"


def check_data(study: Study, folder: Path) -> None:
    """Record a digest of each task's own files in the folder of the study. Raises UserError if one has changed."""
    path = folder / FILE
    known = read_json(path, "the digests of the data", _AGAIN) if path.is_file() else {}
    found = {task: _digest(options) for task, options in study.tasks.items()}
    for task, digest in found.items():
        if known.get(task, digest) != digest:
            raise UserError(f"the data of task {task} have changed since the study began", _AGAIN)
    write_json(path, {**known, **found})


def _digest(options: Mapping[str, Any]) -> str:
    """Of the bytes of all files; those of a hub or of the program have none."""
    dataset, digest = options.get("dataset", defaults()["dataset"]), hashlib.sha256()
    places = [options.get("dataset_saved_path"), None if registry.is_known(dataset) else dataset]
    for place in (Path(PROGRAM, from_here("dataset", place)) for place in places if place is not None):
        for file in _files(place):
            digest.update(str(file.relative_to(place)).encode())
            digest.update(file_digest(file).encode())
    return digest.hexdigest()[:16]


def _files(place: Path) -> Iterator[Path]:
    """The file, or the files below the folder, in order."""
    yield from [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
