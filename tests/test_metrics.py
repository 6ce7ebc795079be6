"""Running metrics against scikit-learn, SciPy and the benchmark modules, in uneven batches, on one process and two."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from scipy import stats
from sklearn import metrics as sklearn_metrics
from torch import distributed

from dataset import registry
from dataset.better import mode
from dataset.official import official_metric
from heterolora.common.errors import UserError
from model import metrics

ROWS = 13  # a prime: no batch size divides it
CLASSES = ("accuracy", "f1", "matthews")
TEXTS = [f"the {i} cats sat on mat {i % 3}" for i in range(ROWS)]
SUMMARIES = [f"a cat sat, {i % 3} of {i}" for i in range(ROWS)]


def _logits(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(0, classes, (ROWS,), generator=generator)
    return torch.randn(ROWS, classes, generator=generator) + torch.eye(classes)[labels], labels


REAL = ("pearson", "spearman", "rmse", "mae")


def _values() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(ROWS, 1, generator=generator) + 100  # far from 0, where float32 sums of squares lose digits
    return values, (values.flatten() + torch.randn(ROWS, generator=generator)).round()  # with ties


def _run(rows: torch.Tensor) -> dict[str, float]:
    """All metrics over this process's rows, in batches of three."""
    binary, values, loss, texts = (
        metrics.build(names, classes)
        for names, classes in (
            (CLASSES, 2),
            (REAL, 1),
            (("perplexity",), 1),
            (("rouge1", "rouge2", "rougeL"), 1),
        )
    )
    logits, labels = _logits(2)
    predicted, similarities = _values()
    for batch in rows.split(3) if len(rows) else ():
        binary.update(logits[batch], labels[batch])
        values.update(predicted[batch], similarities[batch])
        loss.update(labels[batch].float().sum(), int((batch + 1).sum()))
        texts.update([TEXTS[i] for i in batch], [SUMMARIES[i] for i in batch])
    computed = {**binary.compute(), **values.compute(), **loss.compute(), **texts.compute()}
    return {name: float(value) for name, value in computed.items()}


def _expected() -> dict[str, float]:
    logits, labels = _logits(2)
    chosen = logits.argmax(1)
    values, similarities = (tensor.flatten().double().numpy() for tensor in _values())
    return {
        "accuracy": sklearn_metrics.accuracy_score(labels, chosen),
        "f1": sklearn_metrics.f1_score(labels, chosen),
        "matthews": sklearn_metrics.matthews_corrcoef(labels, chosen),
        "pearson": stats.pearsonr(values, similarities).statistic,
        "spearman": stats.spearmanr(values, similarities).statistic,
        "rmse": sklearn_metrics.root_mean_squared_error(similarities, values),
        "mae": sklearn_metrics.mean_absolute_error(similarities, values),
        "perplexity": math.exp(int(labels.sum()) / (ROWS * (ROWS + 1) / 2)),
        **official_metric("rouge").compute(predictions=TEXTS, references=SUMMARIES),
    }


def test_one_process() -> None:
    assert _run(torch.arange(ROWS)) == pytest.approx(_expected(), abs=1e-6)


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(_run(torch.arange(rank, ROWS, 2)), f"{folder}/seven and six rows, {rank}.pt")
    torch.save(_run(torch.arange(ROWS * (1 - rank))), f"{folder}/all and none, {rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_different_numbers_of_rows(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    results = {path.stem: torch.load(path, weights_only=True) for path in tmp_path.glob("*.pt")}
    assert len(results) == 4
    for name, computed in results.items():
        assert computed == pytest.approx(_expected(), abs=1e-6), name


def test_f1_with_three_classes_is_their_mean() -> None:
    logits, labels = _logits(3)
    collection = metrics.build((*CLASSES, "macro_f1"), 3)
    collection.update(logits.argmax(1), labels)
    assert {name: float(value) for name, value in collection.compute().items()} == pytest.approx(
        {
            "accuracy": sklearn_metrics.accuracy_score(labels, logits.argmax(1)),
            **dict.fromkeys(("f1", "macro_f1"), sklearn_metrics.f1_score(labels, logits.argmax(1), average="macro")),
            "matthews": sklearn_metrics.matthews_corrcoef(labels, logits.argmax(1)),
        },
        abs=1e-6,
    )


@pytest.mark.parametrize("predicted", [0, 1])
@pytest.mark.parametrize("truth", [[0, 0, 1], [1, 1, 1], [0, 0, 0]])
def test_a_model_that_predicts_one_class(predicted: int, truth: list[int]) -> None:
    collection = metrics.build(CLASSES, 2)
    collection.update(torch.full((3,), predicted), torch.tensor(truth))
    computed = {name: float(value) for name, value in collection.compute().items()}
    official = official_metric("glue/mrpc").compute(predictions=[predicted] * 3, references=truth)
    assert computed == pytest.approx({**official, "matthews": 0.0})


def test_many_batches_do_not_drift() -> None:
    collection = metrics.build(("perplexity",), 1)
    for _ in range(3000):
        collection.update(0.1, 1)
    assert float(collection.compute()["perplexity"]) == pytest.approx(math.exp(np.float32(0.1)), abs=1e-7)


def test_a_batch_without_target_tokens_changes_nothing() -> None:
    collection = metrics.build(("perplexity",), 1)
    collection.update(torch.tensor(6.0, requires_grad=True), torch.tensor(3))
    collection.update(torch.tensor(0.0), torch.tensor(0))
    assert float(collection.compute()["perplexity"]) == pytest.approx(math.exp(2))


def test_reset_starts_again() -> None:
    collection = metrics.build(("rouge1", "rougeL"), 1)
    collection.update(["nothing"], ["in common"])
    collection.reset()
    collection.update(["a cat"], ["a cat"])
    assert {name: float(value) for name, value in collection.compute().items()} == {"rouge1": 1.0, "rougeL": 1.0}


def test_very_many_classes_have_no_matrix_of_pairs() -> None:
    spec = registry.get("sst2")
    few, many = (metrics.Figures(replace(spec, labels=tuple(map(str, range(count))))) for count in (200, 30_000))
    assert few.confusion is not None
    assert many.confusion is None


def test_direction() -> None:
    assert {mode(name) for name in ("perplexity", "rmse", "mae")} == {"min"}
    names = (*CLASSES, "pearson", "spearman", "rouge1", "rouge2", "rougeL")
    assert {mode(name) for name in names} == {"max"}


@pytest.mark.parametrize("use", [mode, lambda name: metrics.build(("accuracy", name), 2)])
def test_unknown_name(use) -> None:
    with pytest.raises(UserError, match="metric 'acuracy' is not known; did you mean 'accuracy'"):
        use("acuracy")


@pytest.mark.parametrize(("predicted", "labels"), [([0.1] * 7, range(7)), (range(7), [2.0] * 7)])
def test_a_correlation_with_constant_values_is_not_a_number(predicted: list[float], labels: list[float]) -> None:
    made = metrics.build(("pearson", "spearman"), 1)
    for batch in torch.arange(7).split(3):
        made.update(torch.tensor(predicted)[batch].float().unsqueeze(1), torch.tensor(labels)[batch].float())
    assert all(math.isnan(value) for value in made.compute().values())
    assert math.isnan(stats.spearmanr(predicted, labels).statistic)
