"""`python -m benchmarks`: what it runs, compares and says. No test measures speed."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest
import torch

import benchmarks
from benchmarks import __main__ as benchmark
from benchmarks import learning_rate, measure, padding, shortcuts, subjects
from heterolora.common.errors import UserError
from options.optimization import RATES
from tests.world import ROOT

CPU = torch.device("cpu")
TINY = ("--hidden-size", "64", "--layers", "2", "--rows", "2", "--tokens", "8", "--rank", "2", "--device", "cpu")


def sizes(**changed: int) -> argparse.Namespace:
    return argparse.Namespace(**{"hidden_size": 64, "layers": 2, "rows": 2, "tokens": 8, "device": CPU, **changed})


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    benchmark.main(arguments)
    return capsys.readouterr().out


def test_every_file_of_the_folder_is_a_benchmark(capsys):
    listed = report(capsys, "--help")
    shared = {"__init__", "__main__", "measure", "subjects", "pretrain_toy_opt", "interval_coverage", "published"}
    files = [path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in shared]
    assert {"lora_vs_peft", "padding", "shortcuts"} <= set(files)
    assert {name.replace("_", "-") for name in files} == set(benchmarks.NAMES)
    for name in files:
        found = benchmark.get(name.replace("_", "-"))
        assert callable(found.run)
        assert callable(found.add_options)
        assert f"  {name.replace('_', '-')}" in listed
        assert found.__doc__.splitlines()[0] in listed


def test_help_needs_nothing_heavy():
    code = "import sys; from benchmarks.__main__ import main; main(['--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "lora-vs-peft" in done.stdout


def test_mistakes_are_one_line():
    with pytest.raises(UserError, match="'shortcut' is not known; did you mean 'shortcuts'"):
        benchmark.main(["shortcut"])
    with pytest.raises(UserError, match="--device tpu is not here"):
        benchmark.main(["shortcuts", *TINY[:-1], "tpu"])
    with pytest.raises(UserError, match=r"see python -m benchmarks shortcuts --help"):
        benchmark.main(["shortcuts", "--size", "3"])


@pytest.mark.parametrize(("name", "variants"), [("lora-vs-peft", ("ours", "peft")), ("shortcuts", ("with shortcuts",))])
def test_a_report_says_what_was_measured_and_where(capsys, name, variants):
    said = report(capsys, name, *TINY, "--rounds", "3")
    assert f"command: python -m benchmarks {name} --hidden-size 64" in said
    assert f"torch {torch.__version__}" in said
    assert "1 thread" in said
    assert "LoRA on q, v" in said
    assert "LoRA on all" in said
    assert "3 rounds" in said
    assert "peak memory" in said
    for variant in variants:
        assert variant in said


def test_a_step_of_a_folder_is_compared(capsys):
    said = report(capsys, "lora-vs-peft", *TINY, "--rounds", "1", "--base", "model/toy_opt")
    assert "training step of opt with LoRA, with peft.LoraModel, and frozen" in said
    assert "│ frozen base" in said


def test_a_frozen_prefix_is_compared(capsys):
    said = report(capsys, "frozen-prefix", *TINY, "--rounds", "1", "--batches", "2")
    assert "an epoch of 2 training steps" in said
    for variant in ("all blocks", "upper half", "upper half, cached"):
        assert variant in said


def test_the_trainer_is_compared_with_a_bare_loop(capsys):
    said = report(capsys, "trainer", *TINY, "--rounds", "1", "--interval", "3")
    assert "3 training steps of opt_lora" in said
    assert "bare loop" in said
    assert "the trainer adds" in said


def test_the_time_of_a_budget_is_predicted_and_measured(capsys):
    said = report(capsys, "budget-time", *TINY, "--rounds", "2")
    shares = ("0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "all on")
    rows = {cells[0]: cells[1:] for line in said.splitlines() if (cells := table_row(line)) and cells[0] in shares}
    assert set(rows) <= set(shares)
    assert rows["all on"] == ["12", "0", "1.00", "1.000 (1.000–1.000)"]
    for share, (on, _, predicted, _) in rows.items():
        if share != "all on":
            assert int(on) < 12
            assert float(predicted) <= float(share) + 0.005  # rounded


def table_row(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("│")[1:-1]]


@pytest.mark.slow
def test_memory_and_time_of_a_sharded_base(capsys):
    said = report(capsys, "sharding", *TINY, "--rounds", "2", "--processes", "2")
    for mode in ("replicated", "sharded", "nf4", "sharded nf4"):
        assert f" {mode} " in said
    assert "bit for bit equal in 4 of 4 cases" in said


def test_padding_is_counted(capsys, tmp_path):
    """Rows of 1 to 6 times the same sentence pair, in batches of two."""
    lines = "".join(
        f'{{"sentence1": "{"it rains " * n}", "sentence2": "it does", "label": {n % 2}}}\n' for n in (1, 6, 2, 5, 3, 4)
    )
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(lines)
    options = ("--dataset-saved-path", str(tmp_path), "--rounds", "1", "--batches", "2", "--tokens", "40")
    said = report(capsys, "padding", *TINY, *options)
    assert "240" in said  # six rows of 40
    for padded_to in ("batch", "grouped", "data", "--tokens"):
        assert padded_to in said


def test_padded_batches_compute_the_same():
    network = subjects.base(sizes(tokens=16)).eval()
    network.config.pad_token_id = 1
    batch = dict(subjects.batch(sizes()))
    longer = padding.padded(batch, 16)
    assert longer["input_ids"].shape == longer["attention_mask"].shape == (2, 16)
    assert int(longer["attention_mask"].sum()) == 16
    longer["input_ids"][:, 8:] = 1
    torch.testing.assert_close(network(**longer).logits, network(**batch).logits)


def test_the_batches_that_are_timed_are_spread_over_the_epoch():
    assert padding.spread(range(11), 4) == [0, 3, 6, 9]


def test_dense_shortcuts_compute_the_same_with_square_matrices():
    base, batch = subjects.base(sizes()), subjects.batch(sizes())
    elements = (subjects.lora(2, ("q_proj",)), subjects.shortcuts(2))
    (ours, _), (dense, space) = (subjects.adapted(base, *elements) for _ in range(2))
    shortcuts.with_bases(dense, space)
    assert sum(buffer.shape == (64, 64) for name, buffer in dense.named_buffers() if name.endswith("base")) == 7
    torch.testing.assert_close(dense(**batch).logits, ours(**batch).logits)
    plain, _ = subjects.adapted(base, elements[0])
    assert not torch.allclose(plain(**batch).logits, ours(**batch).logits, atol=1e-3)


def test_variants_run_by_turns():
    ran: list[str] = []
    variants = {name: lambda name=name: ran.append(name) for name in "abc"}
    seconds = measure.by_turns(variants, rounds=3, device=CPU, warm_up=1)
    assert "".join(ran[3:]) == "abcbcacab"  # after a round that is not counted
    assert {name: len(rounds) for name, rounds in seconds.rounds.items()} == {"a": 3, "b": 3, "c": 3}


def test_ratios_are_taken_round_by_round():
    seconds = measure.Seconds({"slow": (2.0, 9.0, 4.0), "fast": (1.0, 3.0, 4.0)})
    assert seconds.ratio("slow", "fast") == measure.Spread(median=2.0, low=1.0, high=3.0)
    assert str(seconds.ratio("slow", "fast")) == "2.000 (1.000–3.000)"


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with measure.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_peak_memory_is_what_is_held_at_once(capfd):
    mebi = 2**18  # float32 values of a MiB

    def step() -> None:
        kept = torch.ones(3 * mebi)
        for _ in range(4):
            torch.ones(2 * mebi)
        del kept

    assert measure.peak_memory(step, CPU) == pytest.approx(5 * 2**20, rel=0.01)
    assert capfd.readouterr().err == "", "the profiler writes nothing of its own"


def test_a_step_moves_what_is_trained():
    network, space = subjects.adapted(subjects.base(sizes()), subjects.lora(2, ("q_proj",)))
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    subjects.training_step(network, subjects.batch(sizes()))()
    moved = {name for name, parameter in network.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert len(space) == 2


def test_it_ends_with_a_code_and_one_line():
    tool = [sys.executable, "-m", "benchmarks"]
    assert subprocess.run([*tool, "--help"], cwd=ROOT, capture_output=True).returncode == 0
    wrong = subprocess.run([*tool, "nothing"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: ")
    assert wrong.stderr.count("\n") == 1


def test_a_chosen_rate_is_compared_with_the_best_one():
    one = learning_rate.Result("rte", 0, 2e-4, {5e-5: 0.69, 2e-4: 0.66, 8e-4: 0.65})
    assert one.best == 8e-4
    assert one.behind == pytest.approx(0.01)
    diverged = learning_rate.Result("rte", 1, 3.2e-3, {5e-5: 0.69})
    assert diverged.behind == float("inf")
    assert learning_rate.table([one, diverged]).row_count == 2


@pytest.mark.parametrize(
    ("trials", "reused"),
    [
        ({rate: rate for rate in RATES}, set(RATES)),
        ({rate: rate + 0.01 for rate in RATES}, {8e-4}),  # other rows than those of the run
        ({rate: rate for rate in RATES[:3]}, {8e-4}),
    ],
)
def test_a_trial_is_the_run_of_its_rate_if_the_chosen_one_is(trials, reused):
    recorded = [{"learning_rate": rate, "loss": loss} for rate, loss in trials.items()]
    assert set(learning_rate.of_trials(recorded, 8e-4, 8e-4)) == reused
    twice = [*recorded, *recorded[:2]]  # the last trials are longer than the first
    assert set(learning_rate.of_trials(twice, 8e-4, 8e-4)) == {8e-4}


@pytest.mark.slow
def test_a_benchmark_of_rates_goes_on_with_finished_runs(capsys, tmp_path, world):
    task = ("--model", "opt_lora", "--load", world.opt, "--pretrained", "--dataset", "sst2")
    small = ("--dataset-saved-path", world.sst2, "--max-steps", "2", "--max-epochs", "1", "--max-token-len", "16")
    once = ("learning-rate", "--device", "cpu", "--seeds", "1", "--output", tmp_path, "--", *task, *small)
    assert "1 of 1 are within 0.02" in report(capsys, *map(str, once))
    runs = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.json")}
    assert len(runs) == 1  # the trials are whole runs
    again = report(capsys, *map(str, once))
    assert "1 of 1 are within 0.02" in again
    assert "trial of" not in again
    assert runs == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.json")}


def test_what_imp_test_measures_besides_scores_is_timed(capsys):
    said = report(capsys, "scoring", *TINY, "--rounds", "1", "--batches", "4", "--heuristic", "gain")
    assert "scoring of opt_lora by gain on 4 batches" in said
    for variant in ("scores and halves", "scores, and halves apart", "scores and step time"):
        assert variant in said


def test_a_kept_digest_is_compared_with_a_computed_one(capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.base_digest.RECENT", -1)  # no wait
    monkeypatch.setattr("model.base_digest.RECENT", 0)
    said = report(capsys, "base-digest", *TINY, "--rounds", "1")
    assert "SHA-256 of a base" in said
    assert "kept" in said


@pytest.mark.slow
def test_what_is_around_the_steps_is_compared(capsys):
    said = report(capsys, "around-steps", "--rounds", "1", "--device", "cpu")
    assert "before the first step" in said
    assert "after the last step" in said


@pytest.mark.slow
def test_files_of_own_data_are_measured(capsys):
    said = report(capsys, "own-data", "--size", "1", "--device", "cpu")
    for kind in ("txt", "jsonl", "csv", "parquet"):
        assert f" {kind} " in said
