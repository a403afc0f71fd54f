"""Tables are the interface: their columns, their checks, and parquet files that say how they were made.

A check names the table, the column, the first bad row and the value in it, so that an error points at a cell and not at
a traceback. Written files carry their metadata (mpp, encoder, versions) as JSON under the parquet key ``pathkit``;
`read_table` gives it back in ``table.attrs``.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pathkit.files import replacing

__all__ = [
    "TableError",
    "check_objects",
    "check_patches",
    "check_predictions",
    "check_slides",
    "read_table",
    "write_table",
]

_KEY = b"pathkit"


class TableError(ValueError):
    """A table without a column that is needed, or with a value that cannot be."""


@dataclass(frozen=True)
class _Column:
    """What a column must hold: a test that gives True for each good value, and the words for it."""

    expected: str
    good: Callable[[pd.Series], pd.Series]
    required: bool = True


def _numbers(low: float, high: float = float("inf")) -> Callable[[pd.Series], pd.Series]:
    return lambda s: pd.to_numeric(s, errors="coerce").between(low, high)


def _positive(high: float = float("inf")) -> Callable[[pd.Series], pd.Series]:
    return lambda s: pd.to_numeric(s, errors="coerce").gt(0) & pd.to_numeric(s, errors="coerce").le(high)


def _whole(low: float) -> Callable[[pd.Series], pd.Series]:
    return lambda s: pd.to_numeric(s, errors="coerce").ge(low) & (pd.to_numeric(s, errors="coerce") % 1 == 0)


def _text(s: pd.Series) -> pd.Series:
    return s.notna() & (s.astype(str).str.strip() != "")


_ID = _Column("a name that is not empty", _text)
_MPP = _Column("microns per pixel, above 0 and at most 100", _positive(100))
_SLIDES = {
    "slide_id": _ID,
    "patient_id": _ID,
    "site": _Column("a name that is not empty", _text, required=False),
    "path": _Column("a path that is not empty", _text),
    "mpp": _Column(_MPP.expected, _MPP.good, required=False),
    "label": _Column("a label that is not missing", lambda s: s.notna(), required=False),
}
_PATCHES = {
    "slide_id": _ID,
    "x_l0": _Column("a whole number of level-0 pixels", _whole(float("-inf"))),
    "y_l0": _Column("a whole number of level-0 pixels", _whole(float("-inf"))),
    "size_px": _Column("a whole number of pixels, at least 1", _whole(1)),
    "mpp": _MPP,
    "tissue": _Column("a fraction from 0 to 1", _numbers(0, 1), required=False),
}
_OBJECTS = {
    "slide_id": _ID,
    "x_um": _Column("a number of microns", _numbers(float("-inf"))),
    "y_um": _Column("a number of microns", _numbers(float("-inf"))),
    "class": _ID,
    "area_um2": _Column("an area above 0", _positive()),
}
_PREDICTIONS = {"slide_id": _ID, "score": _Column("a number", _numbers(float("-inf")))}


def check_slides(table: pd.DataFrame) -> pd.DataFrame:
    """Check a table of slides: slide_id (unique), patient_id, path; where present site, mpp, label.

    Returns
    -------
    DataFrame
        `table` itself, so that the check can stand in a chain.

    Raises
    ------
    TableError
        Naming the column and the first bad row.
    """
    _check(table, "slides", _SLIDES)
    _check_unique(table, "slides", ["slide_id"])
    return table


def check_patches(table: pd.DataFrame) -> pd.DataFrame:
    """Check a table of patches: slide_id, x_l0, y_l0, size_px, mpp; where present tissue. Raises as `check_slides`."""
    return _check(table, "patches", _PATCHES)


def check_objects(table: pd.DataFrame) -> pd.DataFrame:
    """Check a table of objects: slide_id, x_um, y_um, class, area_um2. Raises as `check_slides`."""
    return _check(table, "objects", _OBJECTS)


def check_predictions(table: pd.DataFrame) -> pd.DataFrame:
    """Check a table of predictions: slide_id and score. Raises as `check_slides`."""
    return _check(table, "predictions", _PREDICTIONS)


def _check(table: pd.DataFrame, name: str, columns: dict[str, _Column]) -> pd.DataFrame:
    missing = [c for c, rule in columns.items() if rule.required and c not in table]
    if missing:
        raise TableError(
            f"{name}: no column {missing[0]!r} ({columns[missing[0]].expected}). It has {', '.join(map(str, table.columns))};"
            f" rename one, or add it: table[{missing[0]!r}] = ..."
        )
    for column, rule in columns.items():
        if column not in table:
            continue
        bad = ~rule.good(table[column]).to_numpy(dtype=bool)
        if bad.any():
            row = int(bad.argmax())
            raise TableError(
                f"{name}: column {column!r}, row {row} (index {table.index[row]!r}): expected {rule.expected}, got"
                f" {table[column].iloc[row]!r}; {int(bad.sum())} of {len(table)} rows are like this."
            )
    return table


def _check_unique(table: pd.DataFrame, name: str, columns: list[str]) -> None:
    repeated = table.duplicated(columns).to_numpy()
    if repeated.any():
        row = int(repeated.argmax())
        value = table[columns[0]].iloc[row]
        raise TableError(
            f"{name}: column {columns[0]!r}, row {row} (index {table.index[row]!r}): {value!r} stands there a second time."
            " Each row must be one slide: give the second its own id, or drop it."
        )


# Files -----------------------------------------------------------------------------------------------------------


def write_table(table: pd.DataFrame, path: str | os.PathLike[str], **metadata: Any) -> Path:
    """Write a table to parquet, whole or not at all.

    Parameters
    ----------
    table : DataFrame
        Its ``attrs`` are kept as metadata.
    path : path
        ``.parquet``.
    **metadata
        Added to the table's ``attrs``, for example ``mpp=0.5, encoder="efficientnet-lite0"``; JSON types only. The
        versions of pathkit, numpy and pandas are added under ``versions``.

    Returns
    -------
    Path
    """
    import pyarrow
    import pyarrow.parquet

    path = Path(path)
    stored: dict[str, Any] = {
        **{str(k): v for k, v in table.attrs.items()},
        **metadata,
        "versions": _versions(),
    }
    try:
        text = json.dumps(stored)
    except TypeError as error:
        raise TableError(
            f"{path.name}: its metadata must be numbers, text, lists and dicts: {error}."
        ) from error
    plain = table.copy(deep=False)
    plain.attrs = {}
    arrow = pyarrow.Table.from_pandas(plain)
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), _KEY: text.encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        pyarrow.parquet.write_table(arrow, partial)
    return path


def read_table(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a parquet table; metadata that `write_table` stored come back in ``attrs`` (empty for other files).

    Raises
    ------
    TableError
        If the file does not exist or is no parquet file.
    """
    import pyarrow
    import pyarrow.parquet

    path = Path(path)
    if not path.is_file():
        raise TableError(f"{path}: no such table.")
    try:
        arrow = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise TableError(f"{path.name}: not a parquet table, or a damaged one: {error}.") from error
    table = arrow.to_pandas()
    table.attrs = json.loads((arrow.schema.metadata or {}).get(_KEY, b"{}"))
    return table


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("pathkit", "numpy", "pandas")}
