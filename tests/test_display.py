"""How scores and lists of names are shown."""

from __future__ import annotations

import warnings

import matplotlib
import pytest
import torch
from torch import nn

import heterolora as hl
from heterolora.common.errors import nearest
from tests.tiny import tiny_network


@pytest.fixture(scope="module")
def scores() -> hl.Scores:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    batches = [torch.randn(3, 4) for _ in range(2)]
    return hl.score(network, batches, loss=lambda model, batch: model(batch).square().mean(), target_modules=["0", "2"])


def test_the_line_is_short(scores: hl.Scores) -> None:
    assert repr(scores).startswith(f"<Scores of {len(scores.scored)} elements by grad_norm, highest ")
    assert len(repr(scores)) < 100
    assert next(iter(scores.by_module())) in repr(scores)


def test_the_table_is_in_the_order_of_the_scores(scores: hl.Scores) -> None:
    head, *lines = scores.table().splitlines()
    assert head.split() == ["element", "module", "shape", "score", "share"]
    assert [line.split()[1] for line in lines] == list(scores.by_module())
    assert sum(float(line.split()[-1].rstrip("%")) for line in lines) == pytest.approx(100, abs=0.2)
    assert scores.table(1).splitlines()[-1] == f"and {len(scores.scored) - 1} more"


def test_a_notebook_shows_the_highest(scores: hl.Scores) -> None:
    shown = scores._repr_html_()
    assert shown.startswith("<table><caption>Scores of ")
    assert shown.count("<tr>") == 1 + len(scores.scored)


def test_the_picture_has_a_cell_for_each_element(scores: hl.Scores) -> None:
    matplotlib.use("Agg")
    axes = scores.plot()
    shown, expected = [float(text.get_text()) for text in axes.texts], [item.score for item in scores.scored]
    share = sum(shown) / sum(expected)  # a power of ten, which the picture names
    assert sorted(shown) == pytest.approx(sorted(share * score for score in expected), rel=0.01)
    assert axes.get_title().startswith("scores by ")


def test_long_lists_of_names_are_shortened() -> None:
    names = [f"name{index:02}" for index in range(30)]
    said = nearest("name07x", names)
    assert said.startswith("did you mean 'name07'? (valid: ")
    assert said.endswith(" and 20 others)")
    assert said.count("name") == 11
    assert "others" not in nearest("name07x", names[:10])
    assert nearest("other", names, "the command").endswith(" and 20 others; the command lists all")
    assert nearest("other", names[:11], "the command").endswith(" and 1 other; the command lists all")
    assert "the command" not in nearest("other", names[:10], "the command")


@pytest.mark.parametrize("form", ["mapping", "pair"])
def test_the_batch_size_is_that_of_the_batches(form: str) -> None:
    pairs = [(torch.randn(3, 4), torch.tensor([0, 1, 1]))] * 2
    batches = pairs if form == "pair" else [{"step": 1, "x": x, "y": y} for x, y in pairs]

    def loss(network, batch):
        x, y = batch if form == "pair" else (batch["x"], batch["y"])
        return torch.nn.functional.cross_entropy(network(x), y)

    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    found = hl.score(network, batches, loss=loss, target_modules=["0"])
    assert (found.batches, found.batch_size) == (2, 3)


def test_a_frozen_head_is_not_forgotten() -> None:
    ids = torch.randint(5, 20, (2, 6))
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1])}]
    network = tiny_network("opt", "classification")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hl.score(network, batches)
    network.requires_grad_(False)
    with pytest.warns(UserWarning, match=r"the head \(score\) is frozen and not scored"):
        hl.score(network, batches)
