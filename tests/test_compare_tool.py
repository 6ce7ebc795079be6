"""`tools/compare_scores.py` against SciPy, and by hand."""

import dataclasses
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console
from scipy import stats

from heterolora.choosing import scores
from heterolora.choosing.history import Decision, History
from heterolora.choosing.scores import Scores
from heterolora.common.errors import UserError
from heterolora.elements.element import Place
from tests.run_folders import write_history
from tests.scoring import scored
from tools import compare_scores as tool
from tools import plot_realloc
from tools.reporting.parts.agreement import overlap, spearman


def _scores(heuristic: str, values: list[float]) -> Scores:
    elements = tuple(
        scored(layer, "q_proj", value, module=f"layers.{layer}.q_proj") for layer, value in enumerate(values)
    )
    return Scores(elements, heuristic, "classification", "rte", "opt_lora", "", 1, 8, 0)


A = _scores("grad_norm", [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
B = _scores("snip", [3.0, 3.0, 0.5, 9.0, 3.0, 1e9, 7.0, 0.0])


@pytest.fixture
def write(tmp_path: Path):
    def write(name: str, content: Scores) -> str:
        scores.write(tmp_path / name, content)
        return str(tmp_path / name)

    return write


def test_spearman_with_ties() -> None:
    values = [[item.score for item in content.scored] for content in (A, B)]
    assert spearman(A, B) == pytest.approx(stats.spearmanr(*values).statistic)
    assert spearman(A, A) == pytest.approx(1)
    assert spearman(A, _scores("constant", [1.0] * 8)) is None


def test_overlap_of_the_top_share() -> None:
    assert overlap(A, B, 0.375) == 2 / 3  # the best of A are in blocks 5, 6, 7; of B in 5, 3, 6
    assert overlap(A, B, 0.5) in (2 / 4, 3 / 4)  # and 4; and one of 0, 1, 4 is drawn
    assert overlap(A, A, 0.25) == 1
    assert overlap(A, _scores("snip", [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]), 0.5) == 0


def test_the_order_of_a_file_does_not_matter() -> None:
    assert spearman(A, dataclasses.replace(B, scored=B.scored[::-1])) == spearman(A, B)


def test_tables(write, capsys: pytest.CaptureFixture[str]) -> None:
    even = _scores("constant", [1.0] * 8)
    tool.main([write("a.toml", A), write("b.toml", B), write("c.toml", even), "--turn-on-percentile", "0.25"])
    shown = capsys.readouterr().out
    assert "note: all scores of constant are equal" in shown
    assert f"{spearman(A, B):.3f}" in shown
    assert "top 25%" in shown
    assert "–" in shown


def test_files_of_one_heuristic_are_told_apart(write, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    # The variable COLUMNS does not reach rich in every order of the tests.
    monkeypatch.setattr("actions.run.console.Console", partial(Console, width=1000, height=50))
    paths = [write("a.toml", A), write("b.toml", dataclasses.replace(B, importance_test_name="grad_norm"))]
    bracketed = Path(paths[0]).parent / "[x]" / "c.toml"
    bracketed.parent.mkdir()
    paths.append(str(shutil.copy(paths[0], bracketed)))
    tool.main(paths)
    shown = capsys.readouterr().out
    assert not [path for path in paths if f"grad_norm ({path})" not in shown], shown


def test_wrong_input(write) -> None:
    a = write("a.toml", A)
    with pytest.raises(UserError, match="one scores file; expected two or more"):
        tool.main([a])
    with pytest.raises(UserError, match=r"scores another model than .*layer_7\.q_proj differs"):
        tool.main([a, write("short.toml", dataclasses.replace(A, scored=A.scored[:-1]))])
    wide = tuple(scored(item.element.layer, "q_proj", item.score, widths=(32, 16)) for item in A.scored)
    with pytest.raises(UserError, match=r"layer_0\.q_proj differs"):
        tool.main([a, write("wide.toml", dataclasses.replace(A, scored=wide))])
    with pytest.raises(UserError, match="give a share in"):
        tool.main([a, write("b.toml", B), "--turn-on-percentile", "0"])
    with pytest.raises(UserError, match="cannot read"):
        tool.main([a, a + ".missing"])
    with pytest.raises(UserError, match="is given twice; give each of them once"):
        tool.main([a, f"{Path(a).parent}/../{Path(a).parent.name}/a.toml"])


def test_the_mean_churn_is_that_of_the_switches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first reallocation of a run switches nothing, and does not count."""
    places = (Place(0, "q_proj"), Place(0, "v_proj"))
    on = [(True, False), (False, True), (False, True)]
    decisions = [Decision(epoch, 0, (1.0, 1.0), each) for epoch, each in enumerate(on)]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        History(places, decisions).write(tmp_path / name)
    runs = [str(tmp_path / name) for name in ("one", "two")]
    monkeypatch.setattr(sys, "argv", ["plot_realloc.py", *runs, "--output", str(tmp_path / "pictures")])
    monkeypatch.setenv("COLUMNS", "200")
    plot_realloc.main()
    assert capsys.readouterr().out.count("50.0%") == 2  # of 100% and 0%


def test_the_same_history_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_history(tmp_path, 2, (0, 1))
    monkeypatch.setattr(sys, "argv", ["plot_realloc.py", str(tmp_path), f"{tmp_path}/.", "--output", "elsewhere"])
    with pytest.raises(UserError, match="is given twice"):
        plot_realloc.main()
