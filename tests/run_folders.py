"""Run folders in the program's own formats, made in no time: nothing is trained."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from actions.result.export import LORA, SHORTCUT
from actions.run.run_folder import CHECKPOINTS, LOGS, METRICS, PARAMETERS, write_config, write_json
from heterolora.choosing import scores
from heterolora.choosing.allocation import Scored, tie_generator
from heterolora.choosing.history import Decision, History
from heterolora.choosing.ranks import Budget, choose
from heterolora.choosing.scores import Scores
from heterolora.common.files import write_text
from heterolora.elements.config import ElementConfig
from heterolora.elements.element import SHORTCUTS, Place, Settings
from options.every import Options, changed
from tests.scoring import scored

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "w1", "w2")
WIDTH = 32


def places(layers: int, shortcuts: bool) -> tuple[Place, ...]:
    names = (*LINEARS, *(SHORTCUTS if shortcuts else ()))
    return tuple(Place(i, name) for i in range(layers) for name in names if (i, name) != (0, "shortcut2"))


def write_metrics(folder: Path, **figures: dict[str, float | None]) -> None:
    write_json(folder / METRICS, {"metrics": figures, "versions": {"torch": "2.13.0", "transformers": "5.24.0"}})


def write_parameters(folder: Path, trainable: int, total: int) -> None:
    base = {"kind": "base", "name": "base", "on": 0, "off": 0, "ranks": []}
    rows = [
        {"kind": "lora", "name": "q_proj", "trainable": trainable, "total": trainable, "on": 6, "off": 2, "ranks": [4]},
        {**base, "trainable": 0, "total": total - trainable},
    ]
    write_json(folder / PARAMETERS, {"trainable": trainable, "total": total, "rows": rows})


def curves(steps: int, start: float, seed: int) -> dict[str, list[tuple[int, float]]]:
    """A loss that falls from `start`, an accuracy that rises, a cosine of a learning rate."""
    draw = random.Random(seed)
    train = [(i, start * math.exp(-2 * i / steps) + draw.uniform(-0.05, 0.05)) for i in range(0, steps, 2)]
    checks = range(steps // 8 - 1, steps, steps // 8)
    return {
        "train/loss": train,
        "validation/loss": [(i, start * math.exp(-1.6 * i / steps) + 0.1) for i in checks],
        "validation/accuracy": [(i, 0.9 - 0.4 * math.exp(-3 * i / steps) + draw.uniform(0, 0.03)) for i in checks],
        "learning_rate/matrices": [(i, 1e-4 * (1 + math.cos(math.pi * i / steps)) / 2) for i in range(0, steps, 2)],
    }


def write_csv(folder: Path, series: dict[str, list[tuple[int, float]]]) -> None:
    names = sorted(series)
    lines = [",".join((*names, "step"))]
    for name in names:
        for step, value in series[name]:
            lines.append(",".join((*(repr(value) if other == name else "" for other in names), str(step))))
    write_text(folder / LOGS / "metrics.csv", "\n".join(lines) + "\n")


def write_tensorboard(folder: Path, series: dict[str, list[tuple[int, float]]]) -> None:
    with SummaryWriter(str(folder / LOGS)) as writer:
        for name, points in series.items():
            for step, value in points:
                writer.add_scalar(name, value, step)


def trained_run(folder: Path, action: str = "train", loss: float = 0.9, seed: int = 0, **options: object) -> Path:
    """A run with metrics and, by its `logger`, curves."""
    where = {"project": folder.name, "project_dir": folder.parent}
    resolved = changed(Options(), {"task": "classification", "seed": seed, **where, **options})
    write_config(folder, action, resolved, {})
    (folder / CHECKPOINTS).mkdir(exist_ok=True)
    write_parameters(folder, 12_288 + 1024 * seed, 331_200_000)
    write_metrics(
        folder,
        validation={"loss": loss / 3, "accuracy": 0.91 - loss / 10, "official/accuracy": 0.91 - loss / 10},
        test={"loss": loss / 3.1, "accuracy": 0.9 - loss / 10},
    )
    series = curves(160, loss, seed)
    if resolved.run.logger == "csv":
        write_csv(folder, series)
    elif resolved.run.logger == "tensorboard":
        write_tensorboard(folder, series)
    return folder


def element_scores(layers: int, shortcuts: bool, seed: int = 0) -> tuple[Scored, ...]:
    draw = random.Random(seed)
    return tuple(
        scored(
            place.layer,
            place.name,
            draw.lognormvariate(-2 - 0.1 * place.layer, 1.0),
            widths=(WIDTH, WIDTH),
            module="model.decoder.layers",
        )
        for place in places(layers, shortcuts)
    )


def scored_run(folder: Path, layers: int = 8, shortcuts: bool = True, seed: int = 0) -> Path:
    model = "opt_lora_ags" if shortcuts else "opt_lora"
    named = {"model": model, "task": "classification", "importance_test_name": "snip"}
    write_config(folder, "imp-test", changed(Options(), named), {})
    elements = element_scores(layers, shortcuts, seed)
    found = Scores(elements, "snip", "classification", "toy_nli", model, "facebook/opt-350m", 32, 8, seed)
    scores.write(folder / "scores.toml", found)
    return folder


def write_history(folder: Path, layers: int, epochs: Sequence[int], seed: int = 0) -> History:
    """One reallocation for each number in `epochs`, by scores that drift."""
    first, draw = element_scores(layers, shortcuts=True, seed=seed), random.Random(seed)
    elements = [item.element for item in first]
    current, decisions = [item.score for item in first], []
    for number, epoch in enumerate(epochs):
        current = [score * draw.lognormvariate(0, 0.35) for score in current]
        candidates = [Scored(element, score) for element, score in zip(elements, current, strict=True)]
        on = choose(candidates, Budget("share", 0.25), "combined", tie_generator(seed, number))
        step = 40 * sum(other == epoch for other in epochs[:number])
        decisions.append(Decision(epoch, step, tuple(current), tuple(element.key in on for element in elements)))
    history = History(tuple(Place(e.layer, e.name) for e in elements), decisions)
    history.write(folder)
    return history


def dynamic_run(folder: Path, layers: int = 8, epochs: Sequence[int] = (0, 0, 0, 1, 1, 1, 2, 2, 2), **more) -> Path:
    trained_run(folder, "train-dyrealloc", model="opt_lora_ags", **more)
    history = write_history(folder, layers, epochs)
    write_result(folder, history.places, history.last_on())
    return folder


def write_result(folder: Path, all_places: Sequence[Place], on: frozenset[str]) -> None:
    for kind, file in (("lora", LORA), ("shortcut", SHORTCUT)):
        sites = {
            (place.layer, place.name): Settings(
                rank=8 if kind == "lora" else 4, alpha=16.0, disabled=place.key not in on
            )
            for place in all_places
            if (place.name in SHORTCUTS) == (kind == "shortcut")
        }  # fmt: skip
        config = ElementConfig(kind, "layer", Settings(), sites)
        write_text(folder / file, config.to_toml())
