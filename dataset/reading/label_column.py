"""The values of a label column, each different one once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset


@dataclass(frozen=True)
class LabelColumn:
    """The values of a column: those that differ, in the order in which they first appear, and which one each row has.

    So what a label is, is found once for a label, and not for each row.
    """

    distinct: list[Any]
    places: np.ndarray  # (rows,)

    @classmethod
    def of(cls, rows: Dataset, column: str) -> LabelColumn:
        values = rows.select_columns(column).with_format("arrow")[:][column].combine_chunks()
        if pa.types.is_nested(values.type):  # Arrow does not compare them
            return cls(values.to_pylist(), np.arange(len(values)))
        encoded = pc.dictionary_encode(values, null_encoding="encode")
        return cls(encoded.dictionary.to_pylist(), encoded.indices.to_numpy())

    @property
    def missing(self) -> np.ndarray:
        """Which rows have no label."""
        return self.replaced([*map(is_missing, self.distinct)], bool)

    def first(self, place: int) -> int:
        """Return the first row with the value at `place`."""
        return int(np.argmax(self.places == place))

    def replaced(self, values: Sequence[Any], kind: type) -> np.ndarray:
        """Return what the rows have (rows,) if these values replace the distinct ones."""
        return np.asarray(values, kind)[self.places] if values else np.zeros(0, kind)


def is_missing(value: Any) -> bool:
    """Whether a label is not there."""
    return value is None or (isinstance(value, str) and not value.strip())
