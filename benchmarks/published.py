"""The published studies. `docs/measured` has the rows of their runs, from which this command makes the tables again.

NAME.tar.xz has the study file and, of each run, what its result follows from. NAME.md, results.csv (as NAME.csv) and
NAME.png are made from it.

examples:
  python -m benchmarks.published
  python -m benchmarks.published --keep studies/NAME --study NAME.toml
"""

from __future__ import annotations

import argparse
import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from actions.result.export import LORA
from actions.run.run_folder import METRICS, SCORES
from heterolora.common.files import whole, write_text
from heterolora.pictures.drawing import Picture, save
from model.task.rows import ROWS
from tools.studies import figures
from tools.studies.execution import Execution
from tools.studies.page import markdown
from tools.studies.question import STUDY
from tools.studies.spec import Study, read_study
from tools.studies.summary import Comparison
from tools.studies.table import table

FOLDER = Path(__file__).parents[1] / "docs" / "measured"
_ENDING = ".tar.xz"
_KEPT = {METRICS, ROWS, LORA, SCORES}
_ABSOLUTE = re.compile(r'"/[^"\n]*/([^"/\n]+)"')  # paths of the machine that ran the study


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="add the finished study in this folder")
    parser.add_argument("--study", type=Path, metavar="STUDY.toml", help="its file (default: study.toml in the folder)")
    args = parser.parse_args(arguments)
    if args.keep is not None:
        keep(args.keep, args.study or args.keep / STUDY, FOLDER / f"{args.keep.name}{_ENDING}")
    for archive in sorted(FOLDER.glob(f"*{_ENDING}")):
        print(f"{archive.name}: {', '.join(path.name for path in compute(archive, FOLDER))}", flush=True)


def keep(study_folder: Path, study_file: Path, archive: Path) -> None:
    """Write what the result of a study follows from into an archive, without paths of this machine."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with whole(archive) as unfinished, tarfile.open(unfinished, "w:xz") as packed:
        for name, text in _members(study_folder, study_file):
            content = _ABSOLUTE.sub(r'"\1"', text).encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))


def _members(study_folder: Path, study_file: Path) -> Iterator[tuple[str, str]]:
    """The name and the text of each file of the archive."""
    yield STUDY, study_file.read_text(encoding="utf-8")
    for record in sorted(study_folder.glob("jobs/*.json")):
        if not record.name.endswith(".started.json"):
            # The digest of a job follows from absolute paths too. A record without one is accepted as it is.
            values = json.loads(record.read_text(encoding="utf-8")) | {"digest": ""}
            yield str(record.relative_to(study_folder)), json.dumps(values)
    for path in sorted(study_folder.glob("runs/**/*")):
        if path.name == METRICS:
            values = json.loads(path.read_text(encoding="utf-8"))
            yield (
                str(path.relative_to(study_folder)),
                json.dumps({key: values.get(key, {}) for key in ("metrics", "resources", "versions")}),
            )
        elif path.name in _KEPT:
            yield str(path.relative_to(study_folder)), path.read_text(encoding="utf-8")


def compute(archive: Path, into: Path) -> list[Path]:
    """Write the tables and the picture of a published study into a folder. Returns their paths."""
    name = archive.name.removesuffix(_ENDING)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / name
        with tarfile.open(archive, "r:xz") as packed:
            packed.extractall(folder, filter="data")
        study = read_study(folder / STUDY)
        execution = Execution(study, folder)
        comparisons = execution.comparisons(run_jobs=False, track=lambda items, *_: items)
        runs = [*execution.parts.values(), *execution.measured.values()]
        paths = [into / f"{name}{ending}" for ending in (".md", ".csv", ".png")]
        write_text(paths[0], markdown(study, comparisons, execution))
        write_text(paths[1], table(runs, study))
    save(paths[2], *_pictures(study, comparisons))
    return paths


def _pictures(study: Study, comparisons: Sequence[Comparison]) -> Iterator[Picture]:
    for comparison in comparisons:
        if study.question == "smallest":
            yield from (chart.picture for chart in figures.sizes(study, comparison))
        elif (chart := figures.forest(study, comparison)) is not None:
            yield chart.picture


if __name__ == "__main__":
    main()
