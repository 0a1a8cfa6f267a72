"""Rules of the user's own, applied to the rows of one source file (or a part of it) at a time.

A rule is given a frame of the rows that the built-in rules let pass, in the order of the file: canonical columns, the
client and what is carried, ``subscriber_key`` as index, of the backend's kind. It returns a boolean for each row, true
where the row breaks the rule. What else it returns, or raises, stops the ingest with the rule's name and file.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.backend import Backend, Frame
from pipeline.errors import DataError, EventgrainError
from pipeline.events.hashing import hash_ids
from pipeline.events.schema import TIME, plain
from pipeline.events.tables import rows_of
from pipeline.extensions import UserRule


def broken(
    rules: Sequence[UserRule], rows: Any, passed: np.ndarray, where: str, backend: Backend
) -> Mapping[str, np.ndarray]:
    """Each rule's verdict: name -> bool[n], where a row breaks it.

    Args:
        rows: Arrow table[n] as of prepare.py; passed: bool[n], the rows to ask the rules about; where: the file.
    Raises:
        DataError: a rule fails, or returns something else than a boolean for each row; names it, its file and the line.
    """
    some = rows if passed.all() else rows.filter(pa.array(passed))
    found: dict[str, np.ndarray] = {}
    if some.num_rows == 0:
        return found
    for rule in rules:
        frame = frame_of(some, backend)  # its own: what one rule does to it is nothing to the next
        mask = np.zeros(rows.num_rows, dtype=bool)
        mask[passed] = _verdict(rule, frame, where, backend)
        found[rule.name] = mask
    return found


def frame_of(rows: Any, backend: Backend) -> Frame:
    """Rows of prepare.py as a canonical frame."""
    key = backend.to_host(hash_ids(plain(rows.column("subscriber")), backend))
    names = [n for n in rows.column_names if n != "marks"]
    arrays = {n: plain(rows.column(n)) for n in names}
    for name in ("ts", "ingested_at"):
        arrays[name] = arrays[name].view(TIME)
    arrays["subscriber"] = arrays["subscriber"].cast(pa.string())
    table = pa.table({"subscriber_key": pa.array(key), **arrays})
    kind: Any = rows_of(backend)
    if not backend.on_gpu:
        return kind(table).frame(names)
    data = backend.df.DataFrame.from_arrow(table)
    for name in table.column_names:
        if getattr(data[name].dtype, "tz", None) is not None:
            data[name] = data[name].dt.tz_localize(None)
    return kind(data, backend).frame(names)


def _verdict(rule: UserRule, frame: Frame, where: str, backend: Backend) -> np.ndarray:
    n, index = len(frame), frame.index
    who = f"rule {rule.name!r} in {rule.file}"
    try:
        result = rule.function(frame)
    except EventgrainError:
        raise
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == rule.file]
        line = f", line {lines[-1]}" if lines else ""
        text = str(error).partition("\n")[0]
        raise DataError(f"{who}{line} failed on the rows of {where}: {type(error).__name__}: {text}") from None
    wanted = f"expected a boolean for each of the {n:,} events it was given (rows of {where})"
    if isinstance(result, backend.df.Series):
        if len(result) == n and not result.index.equals(index):
            raise DataError(f"{who} returned a series with another index: {wanted}, in their order; keep events.index")
        if len(result) == n and bool(result.isna().any()):
            raise DataError(f"{who} returned {int(result.isna().sum()):,} nulls: {wanted}; fill them")
        kind = str(result.dtype)
        if kind in ("bool", "boolean", "bool[pyarrow]"):
            values = backend.to_host(backend.column(result.astype("bool")))
        else:
            values = np.empty(len(result), dtype=object)
    elif hasattr(result, "dtype") and hasattr(result, "shape"):
        values, kind = backend.to_host(result), str(result.dtype)
    else:
        raise DataError(f"{who} returned {type(result).__name__}: {wanted}, as a series")
    if values.shape != (n,):
        shape = " x ".join(map(str, values.shape)) or "one"
        raise DataError(f"{who} returned {shape} values: {wanted}")
    if values.dtype != bool:
        raise DataError(f"{who} returned a series of {kind}: {wanted}; compare to get booleans")
    checked: np.ndarray = values
    return checked
