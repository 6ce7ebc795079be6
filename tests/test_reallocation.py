"""When a dynamic run reallocates, what it remembers, and that its processes can't disagree without a word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import toml
import torch
from torch import distributed

from heterolora.choosing import history
from heterolora.choosing.history import FREQUENCY, HISTORY, Decision, History
from heterolora.choosing.ranks import Budget
from heterolora.common.errors import UserError
from heterolora.elements.element import Place
from heterolora.search import Plan
from model.reallocation.callback import Reallocate, ScoreSource
from model.reallocation.schedule import Schedule, realloc_interval
from tests.adapted import adapted, lora_config
from tests.together import together


@pytest.mark.parametrize(
    ("n", "per_epoch", "accumulate", "batches"),
    [
        (1, 10, 1, 1),
        (7, 10, 1, 7),
        (25, 10, 1, 25),
        (1.0, 10, 1, 10),
        (0.2, 10, 1, 2),
        (0.1, 30, 1, 3),  # 0.1 · 30 is 3.0000000000000004 in floats
        (0.25, 10, 1, 3),
        (0.001, 10, 1, 1),
        (5, 10, 4, 8),
        (0.2, 10, 4, 4),
        (8, 10, 4, 8),
    ],
)
def test_interval(n: int | float, per_epoch: int, accumulate: int, batches: int) -> None:
    assert realloc_interval(n, per_epoch, accumulate) == batches


def test_due_at_the_start_of_each_epoch_and_every_interval() -> None:
    schedule = Schedule(3, warmup_epochs=1)
    assert [batch for batch in range(8) if schedule.due(batch)] == [0, 3, 6]
    assert [schedule.batches_until_due(batch, per_epoch=8) for batch in range(8)] == [3, 2, 1, 3, 2, 1, 2, 1]
    assert [schedule.warming_up(epoch) for epoch in range(3)] == [True, False, False]


PLACES = (Place(0, "q_proj"), Place(0, "v_proj"), Place(1, "shortcut2"))


@pytest.fixture
def two() -> History:
    return History(PLACES, [Decision(0, 0, (0.1, 1e-30, 3.0), (True, False, False)),
                            Decision(0, 4, (-1.0, 0.0, 1 / 3), (False, False, True))])  # fmt: skip


class TestHistory:
    def test_counts_and_churn(self, two: History) -> None:
        assert two.times_on() == {"layer_0.q_proj": 1, "layer_0.v_proj": 0, "layer_1.shortcut2": 1}
        assert two.churn() == pytest.approx((0, 2 / 3))
        assert two.last_on() == {"layer_1.shortcut2"}

    def test_files_as_the_format_says(self, two: History, tmp_path: Path) -> None:
        two.write(tmp_path)
        written = toml.loads((tmp_path / HISTORY).read_text())
        assert written["dyrealloc_1"]["step"] == 4
        assert written["dyrealloc_1"]["epoch"] == 0
        assert written["dyrealloc_0"]["elements"][1] == {"layer": 0, "name": "v_proj", "score": 1e-30, "on": False}
        assert "[[dyrealloc_0.elements]]" in (tmp_path / HISTORY).read_text()
        assert toml.loads((tmp_path / FREQUENCY).read_text()) == {
            "total_reallocation_number": 2,
            "layer_0": {"q_proj": 1, "v_proj": 0},
            "layer_1": {"shortcut2": 1},
        }

    def test_appended_is_what_would_be_written_anew(self, two: History, tmp_path: Path) -> None:
        two.write(tmp_path / "at-once")
        growing = History(PLACES)
        growing.write(tmp_path / "by-and-by")
        for decision in two.decisions:
            growing.decisions.append(decision)
            growing.append(tmp_path / "by-and-by")
        for name in (HISTORY, FREQUENCY):
            assert (tmp_path / "by-and-by" / name).read_text() == (tmp_path / "at-once" / name).read_text()

    def test_read_gives_back_what_was_written(self, two: History, tmp_path: Path) -> None:
        two.write(tmp_path)
        assert history.read(tmp_path) == two

    def test_state_gives_back_what_was_saved(self, two: History, tmp_path: Path) -> None:
        torch.save(two.state_dict(), tmp_path / "state.pt")
        other = History(PLACES)
        other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert other == two
        with pytest.raises(UserError, match="another search space"):
            History(PLACES[:2]).load_state_dict(two.state_dict())

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            (None, "cannot read"),
            ("a = [", "not valid TOML"),
            ("[other]\nepoch = 0", "not a reallocation history"),
            ("", "no reallocation yet"),
        ],
    )
    def test_what_is_no_history(self, tmp_path: Path, text: str | None, found: str) -> None:
        if text is not None:
            (tmp_path / HISTORY).write_text(text)
        with pytest.raises(UserError, match=found):
            history.read(tmp_path)


class OtherScoresElsewhere(ScoreSource):
    """The best element is the first one on the first process, and the last one on another process."""

    def scores(self, trainer: SimpleNamespace, task: SimpleNamespace, until_due: int) -> Mapping[str, float]:
        keys = [element.key for element in task.space.elements]
        return dict(zip(keys if distributed.get_rank() else reversed(keys), map(float, range(len(keys))), strict=True))


def reallocate_once(folder: Path) -> str:
    """The message of this process."""
    distributed.init_process_group("gloo")
    task = SimpleNamespace(space=adapted("opt-pre", lora=lora_config()).space, total_steps=lambda: 4)
    plan = Plan(Budget("share", 0.25), "fixed")
    trainer = SimpleNamespace(
        num_training_batches=4,
        accumulate_grad_batches=1,
        current_epoch=0,
        global_step=0,
        is_global_zero=False,
        loggers=(),
    )
    reallocate = Reallocate(plan, 2, 0, OtherScoresElsewhere(), folder, print)
    reallocate.setup(trainer, task, "fit")
    reallocate.on_train_start(trainer, task)
    try:
        reallocate.on_train_batch_start(trainer, task, None, 0)
    except UserError as error:
        return str(error)
    return ""


def test_processes_that_disagree_are_stopped_by_name(tmp_path: Path) -> None:
    one, other = together(2, reallocate_once, tmp_path)
    assert one == other
    assert one.startswith("the processes disagree about layer_0.")
    assert " at reallocation 0; run all of them on machines of one kind" in one
