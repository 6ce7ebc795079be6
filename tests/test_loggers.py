"""The loggers show the same; a run that goes on shows what one that never stopped would."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.mistakes import complains
from tests.quick import some_slow
from tests.world import World, command, main, run

Series = dict[str, list[tuple[int, float]]]


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


needs_wandb = needs("wandb")
LOGGERS = ("tensorboard", "csv", pytest.param("wandb", marks=needs_wandb))
TRACKERS = [pytest.param(name, marks=needs(name)) for name in ("mlflow", "trackio")]


def read_csv(run_folder: Path) -> Series:
    series: Series = {}
    with (run_folder / "logs" / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name != "step":
                    series.setdefault(name, []).append((int(row["step"]), float(value)))
    return series


def read_tensorboard(run_folder: Path) -> Series:
    events = EventAccumulator(str(run_folder / "logs"), size_guidance={"scalars": 0})
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def wandb_records(run_folder: Path) -> Iterator[object]:
    from wandb.proto import wandb_internal_pb2

    for file in sorted(run_folder.glob("logs/wandb/offline-run-*/*.wandb")):
        records: list[wandb_internal_pb2.Record] = []
        patience = time.monotonic() + 60
        while not (records and records[-1].HasField("exit")):  # written by a process of its own
            assert time.monotonic() < patience, f"{file} is never finished"
            time.sleep(0.02)
            records = [wandb_internal_pb2.Record.FromString(data) for data in leveldb_records(file.read_bytes())]
        yield from records


def leveldb_records(content: bytes, block: int = 32768, head: int = 7) -> Iterator[bytes]:
    """W&B's file is a LevelDB log: blocks of chunks (checksum 4, length 2, kind 1), after a head of 7 bytes."""
    at, parts = head, b""
    while at < len(content):
        if block - at % block < head:  # too little for a chunk: filled up
            at += block - at % block
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + head : at + head + length]
        at += head + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def read_wandb(run_folder: Path) -> Series:
    """End the run that is open."""
    import wandb

    wandb.finish()
    series: Series = {}
    for record in wandb_records(run_folder):
        # What is nested describes a picture: its width, height and number.
        items = {
            item.key or item.nested_key[0]: json.loads(item.value_json)
            for item in record.history.item
            if len(item.nested_key) <= 1
        }
        step = items.pop("trainer/global_step", None)
        for name, value in items.items():
            if not name.startswith("_") and isinstance(value, int | float):
                series.setdefault(name, []).append((step, value))
    return series


def mlflow_run(run_folder: Path) -> tuple[object, object]:
    """The client of the database, and the run."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run_folder.parent / 'mlflow.db'}")
    return client, client.get_run((run_folder / "logs" / "mlflow_id").read_text())


def read_mlflow(run_folder: Path) -> Series:
    client, found = mlflow_run(run_folder)
    history = {name: client.get_metric_history(found.info.run_id, name) for name in found.data.metrics}
    return {name: sorted((metric.step, metric.value) for metric in points) for name, points in history.items()}


def read_trackio(run_folder: Path) -> Series:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    trackio.finish()
    series: Series = {}
    for row in SQLiteStorage.get_logs("heterolora", run_folder.name):
        for name, value in row.items():
            if name not in ("step", "timestamp") and isinstance(value, int | float):
                series.setdefault(name, []).append((row["step"], float(value)))
    return series


READERS: dict[str, Callable[[Path], Series]] = {
    "csv": read_csv,
    "tensorboard": read_tensorboard,
    "wandb": read_wandb,
    "mlflow": read_mlflow,
    "trackio": read_trackio,
}


@pytest.fixture(autouse=True, scope="module")
def trackio_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Trackio reads the name of its folder when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(folder := tmp_path_factory.mktemp("trackio")))
        yield folder


@pytest.fixture(autouse=True)
def wandb_offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    if importlib.util.find_spec("wandb") is not None:
        import wandb

        wandb.finish()


@pytest.fixture
def train(world: World, tmp_path: Path) -> Callable[..., Path]:
    """Train with a logger that notes every step; returns the run's folder."""

    def start(logger: str, project: str, *more: object) -> Path:
        arguments = (*more, "--project-dir", tmp_path, "--project", project, "--log-every-n-steps", 1)
        assert main([*command(*world.training(*arguments)), "--logger", logger]) == 0
        return tmp_path / project

    return start


def resume(run_folder: Path, *more: object) -> None:
    """TensorBoard and W&B name files by the second of their start: two tries within one second, as only a test makes
    them, would be read in any order."""
    time.sleep(1 - time.time() % 1)
    last = run_folder / "checkpoints" / "last.ckpt"
    assert main(["train", "--resume-training", "--load", str(last), *map(str, more), "--accelerator", "cpu"]) == 0


def close(found: Series, expected: Series) -> None:
    """Names and steps are equal, and values but for float32."""
    assert found.keys() == expected.keys()
    for name, points in expected.items():
        assert [step for step, _ in found[name]] == [step for step, _ in points], name
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in points], rel=1e-6), name


@pytest.fixture(scope="module")
def uneven_lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ranks that differ, so that there is an allocation to draw."""
    path = tmp_path_factory.mktemp("lora") / "uneven.toml"
    path.write_text(
        'granularity = "layer"\n[default]\nr = 0\nlora_alpha = 8\n'
        "[model_layer_0.q_proj]\nr = 2\n[model_layer_1.v_proj]\nr = 5\n"
    )
    return path


@needs_wandb
def test_all_show_the_same_series(train: Callable[..., Path], uneven_lora: Path) -> None:
    options = ("--max-epochs", 1, "--lr-scheduler", "linear", "--loraplus-ratio", 4, "--lora-config", uneven_lora)
    shown = {}
    for logger in ("csv", "tensorboard", "wandb"):
        read, folder = READERS[logger], train(logger, logger, *options)
        shown[logger] = read(folder)
    steps = [step for step, _ in shown["csv"]["train/loss"]]
    assert steps == list(range(12))
    expected = {"epoch", "train/loss", "learning_rate/matrices", "learning_rate/B"}
    expected |= {f"{where}validation/{name}" for where in ("", "final/") for name in ("loss", "accuracy")}
    assert shown["csv"].keys() == expected | {"final/validation/official/accuracy"}
    close(shown["tensorboard"], shown["csv"])
    close(shown["wandb"], shown["csv"])


@pytest.mark.slow
@pytest.mark.parametrize("logger", TRACKERS)
def test_a_tracker_shows_the_same(
    train: Callable[..., Path], uneven_lora: Path, trackio_folder: Path, logger: str
) -> None:
    """Series, options and pictures; a resumed run continues the same run of the tracker."""
    options = ("--max-steps", 3, "--lora-config", uneven_lora)
    expected = read_csv(train("csv", "as-csv", *options))
    folder = train(logger, "tracked", *options)
    close(READERS[logger](folder), expected)
    picture = (folder / "adapter" / "allocation.png").read_bytes()
    if logger == "mlflow":
        client, found = mlflow_run(folder)
        assert (found.info.run_name, found.data.params["optimizer"]) == ("tracked", "adamw")
        assert Path(client.download_artifacts(found.info.run_id, "allocation.png")).read_bytes() == picture
    else:
        from trackio.sqlite_storage import SQLiteStorage

        assert SQLiteStorage.get_run_config("heterolora", "tracked")["optimizer"] == "adamw"
        assert [
            file for file in trackio_folder.rglob("*.png") if Image.open(file).size == Image.open(BytesIO(picture)).size
        ]
    resume(folder, "--max-steps", 5)
    assert [step for step, _ in READERS[logger](folder)["train/loss"]] == [0, 1, 2, 3, 4]


def test_the_rates_are_those_of_the_schedule(train: Callable[..., Path]) -> None:
    folder = train("csv", "rates", "--max-steps", 4, "--lr-scheduler", "linear", "--loraplus-ratio", 4)
    series = read_csv(folder)
    assert series["learning_rate/matrices"] == [(i, pytest.approx(1e-2 * (1 - i / 4))) for i in range(4)]
    assert series["learning_rate/B"] == [(i, pytest.approx(4e-2 * (1 - i / 4))) for i in range(4)]


def test_a_longer_run_has_the_rates_of_its_schedule_from_the_checkpoint_on(train: Callable[..., Path]) -> None:
    """The first run ends at the rate 0."""
    folder = train("csv", "longer", "--max-steps", 4, "--lr-scheduler", "linear")
    resume(folder, "--max-steps", 8)
    series = read_csv(folder)["learning_rate/matrices"]
    expected = [1e-2 * (1 - i / 4) for i in range(4)] + [1e-2 * (1 - i / 8) for i in range(4, 8)]
    assert series == [(i, pytest.approx(rate)) for i, rate in enumerate(expected)]


def test_final_figures_are_those_of_the_best_weights_and_end_no_curve(train: Callable[..., Path]) -> None:
    folder = train("csv", "final", "--max-epochs", 2)
    series, saved = read_csv(folder), json.loads((folder / "metrics.json").read_text())["metrics"]["validation"]
    assert [step for step, _ in series["validation/loss"]] == [11, 23]
    for name, value in saved.items():
        assert series[f"final/validation/{name}"] == [(24, pytest.approx(value))]


class TestPicture:
    def test_tensorboard(self, train: Callable[..., Path], uneven_lora: Path) -> None:
        folder = train("tensorboard", "run", "--max-steps", 1, "--lora-config", uneven_lora)
        events = EventAccumulator(str(folder / "logs"), size_guidance={"images": 0})
        events.Reload()
        assert events.Tags()["images"] == ["allocation"]
        (shown,) = events.Images("allocation")
        saved = Image.open(folder / "adapter" / "allocation.png").convert("RGB")
        assert (shown.width, shown.height) == saved.size
        image = Image.open(BytesIO(shown.encoded_image_string)).convert("RGB")
        np.testing.assert_array_equal(np.asarray(image), np.asarray(saved))

    @pytest.mark.parametrize(
        ("action", "expected"),
        [
            ("imp-test", ["scores"]),
            ("train-dyrealloc", ["allocation", "reallocation_frequency", "reallocation_timeline"]),
        ],
    )
    def test_of_scores_and_of_a_search(self, world: World, tmp_path: Path, action: str, expected: list[str]) -> None:
        model = ("--model", "opt_lora", "--load", world.opt, "--pretrained")
        data = ("--dataset", "sst2", "--dataset-saved-path", world.sst2, "--batch-size", 4, "--project-dir", tmp_path)
        short = ("--imp-limit-test-batches", 1, *(("--max-steps", 2) if action == "train-dyrealloc" else ()))
        arguments = map(str, (action, *model, *data, *short, "--project", "run", "--accelerator", "cpu"))
        assert main(list(arguments)) == 0
        events = EventAccumulator(str(tmp_path / "run" / "logs"), size_guidance={"images": 0})
        events.Reload()
        assert sorted(events.Tags()["images"]) == expected
        assert [len(events.Images(name)) for name in expected] == [1] * len(expected)

    @needs_wandb
    def test_wandb(self, train: Callable[..., Path], uneven_lora: Path) -> None:
        folder = train("wandb", "run", "--max-steps", 1, "--lora-config", uneven_lora)
        (shown,) = folder.glob("logs/wandb/offline-run-*/files/media/images/allocation_*.png")
        assert shown.read_bytes() == (folder / "adapter" / "allocation.png").read_bytes()

    def test_csv_leaves_it_in_the_folder(self, train: Callable[..., Path], uneven_lora: Path) -> None:
        folder = train("csv", "run", "--max-steps", 1, "--lora-config", uneven_lora)
        assert (folder / "adapter" / "allocation.png").is_file()
        assert {path.name for path in (folder / "logs").iterdir()} == {"metrics.csv", "hparams.yaml"}


class TestResume:
    @pytest.mark.parametrize("logger", some_slow(["tensorboard", "csv"], quick=["csv"]))
    def test_curves_are_those_of_a_run_that_never_stopped(self, train: Callable[..., Path], logger: str) -> None:
        """Killed after step 9 with a checkpoint from step 6: what 7 to 9 had shown is shown once, by the second try."""
        whole = train(logger, "whole", "--max-epochs", 1)
        cut = train(logger, "cut", "--max-epochs", 1, "--max-steps", 6)
        at_6 = shutil.copy(cut / "checkpoints" / "last.ckpt", cut / "at_6.ckpt")
        resume(cut, "--max-steps", 9)
        shutil.copy(at_6, cut / "checkpoints" / "last.ckpt")
        resume(cut, "--max-steps", -1)
        found, expected = READERS[logger](cut), READERS[logger](whole)
        for name in ("train/loss", "learning_rate/matrices"):
            close({name: found[name]}, {name: expected[name]})
        assert [step for step, _ in found["validation/loss"]] == [5, 11]  # it stopped at 6 with a validation

    def test_csv_rows_survive_new_columns(self, train: Callable[..., Path]) -> None:
        folder = train("csv", "run", "--max-steps", 2)
        before = read_csv(folder)["train/loss"]
        (folder / "logs" / "metrics.csv").write_text(
            "step,train/loss,older\n" + "".join(f"{step},{value},{step}.5\n" for step, value in before)
        )
        resume(folder, "--max-steps", 3)
        series = read_csv(folder)
        assert series["train/loss"][:2] == before
        assert series["older"] == [(0, 0.5), (1, 1.5)]

    def test_csv_file_that_is_gone(self, train: Callable[..., Path]) -> None:
        folder = train("csv", "run", "--max-steps", 2)
        shutil.rmtree(folder / "logs")
        resume(folder, "--max-steps", 3)
        assert [step for step, _ in read_csv(folder)["train/loss"]] == [2]

    @needs_wandb
    def test_wandb_goes_on_with_the_same_run(self, train: Callable[..., Path]) -> None:
        import wandb

        folder = train("wandb", "run", "--max-steps", 2)
        wandb.finish()
        resume(folder, "--max-steps", 4)
        assert [step for step, _ in read_wandb(folder)["train/loss"]] == [0, 1, 2, 3]
        runs = [record.run for record in wandb_records(folder) if record.HasField("run")]
        ids = {run.run_id for run in runs}
        assert ids == {(folder / "logs" / "wandb_id").read_text()}
        assert {run.project for run in runs} == {"heterolora"}
        assert {run.display_name for run in runs} == {"run"}


@pytest.mark.parametrize("logger", LOGGERS)
def test_a_new_run_starts_afresh(train: Callable[..., Path], logger: str, world: World) -> None:
    """From a checkpoint, but not resumed: the other run's curves stay as they are."""
    first = train(logger, "first", "--max-steps", 2)
    files = {path: path.read_bytes() for path in (first / "logs").rglob("*") if path.is_file() and logger != "wandb"}
    if logger == "wandb":
        read_wandb(first)
    arguments = ("--load", first / "checkpoints" / "last.ckpt", "--max-steps", 1, "--project-dir", first.parent)
    second = ("train", *arguments, "--project", "second", "--log-every-n-steps", 1, "--logger", logger)
    assert main([*map(str, second), "--accelerator", "cpu"]) == 0
    assert [step for step, _ in READERS[logger](first.parent / "second")["train/loss"]] == [0]
    assert files == {path: path.read_bytes() for path in files}


class TestMistakes:
    @pytest.mark.parametrize("logger", ["wandb", "mlflow", "trackio"])
    def test_a_package_is_missing(
        self, capsys, monkeypatch: pytest.MonkeyPatch, world: World, tmp_path: Path, logger: str
    ) -> None:
        there = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == logger else there(name))
        arguments = world.training("--project-dir", tmp_path)
        assert main([*arguments, "--logger", logger]) == 2
        expected = f"error: --logger {logger} needs {logger}; pip install {logger}, or use tensorboard or csv\n"
        assert capsys.readouterr().err == expected
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("action", ["train", "imp-test"])
    @pytest.mark.parametrize("logger", [pytest.param("wandb", marks=needs_wandb), "mlflow", "trackio"])
    def test_nobody_is_logged_in(
        self, capfd, monkeypatch: pytest.MonkeyPatch, world: World, tmp_path: Path, logger: str, action: str
    ) -> None:
        """It is found before there is a folder or a model, and in one line."""
        for name in ("WANDB_API_KEY", "WANDB_MODE", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))  # where wandb keeps a login
        monkeypatch.setenv("NETRC", str(tmp_path / "none"))
        monkeypatch.setenv("TRACKIO_SPACE_ID", "owner/space")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:9")  # where no server is
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
        monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", None)
        if logger == "wandb":
            importlib.import_module("wandb").teardown()  # it keeps the mode of an earlier run of this process
        runs = tmp_path / "runs"
        given = (action, *world.training("--project-dir", runs)[1:], "--accelerator", "cpu", "--logger", logger)
        complains(capfd, f"--logger {logger}: ", "or use another --logger", *given)
        assert not runs.exists()

    def test_no_logger_no_folder(self, world: World, tmp_path: Path) -> None:
        assert run(*world.training("--project-dir", tmp_path, "--project", "run", "--max-steps", 1)) == 0
        assert not (tmp_path / "run" / "logs").exists()
