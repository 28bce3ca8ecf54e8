"""Rows of tables in memory (pandas, polars, Arrow) and of datasets as dictionaries of Python values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def table_rows(source: object) -> list[Any] | None:
    """The rows of a table of pandas, polars or Arrow, as dictionaries; None of anything else."""
    library = type(source).__module__.partition(".")[0]
    if library == "pandas" and hasattr(source, "columns"):
        return [_of_pandas(row) for row in source.to_dict(orient="records")]  # type: ignore[attr-defined]
    method = {"polars": "to_dicts", "pyarrow": "to_pylist"}.get(library, "")
    return list(getattr(source, method)()) if hasattr(source, method) else None


def as_row(item: Any) -> Any:
    """A row of pandas, or a table of one row, as a dictionary; anything else as it is."""
    rows = table_rows(item)
    if rows is not None and len(rows) == 1:
        return rows[0]
    is_series = type(item).__module__.partition(".")[0] == "pandas" and hasattr(item, "to_dict")
    return _of_pandas(item.to_dict()) if is_series else item


def _of_pandas(row: Mapping[Any, Any]) -> dict[Any, Any]:
    return {column: None if _is_missing(value) else value for column, value in row.items()}


def _is_missing(value: object) -> bool:
    """Whether a cell says that there is none: pandas has nan, NA and NaT for it, also in columns of text."""
    return (isinstance(value, float) and math.isnan(value)) or type(value).__name__ in ("NAType", "NaTType")


def plain(value: Any) -> Any:
    """A value with lists in place of arrays, and numbers of Python in place of those of numpy and torch."""
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return plain(value.tolist()) if hasattr(value, "tolist") else value
