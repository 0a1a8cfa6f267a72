"""Does anything still mention these subscribers? A search of whole files, of any kind.

Parquet: every string column, nested ones included, and every column of 64-bit integers for the keys. JSON, one object a
file or one a line, as the Delta log has them: every value, also inside texts that are JSON. Everything else: as text.

An id counts as mentioned where it stands alone: not as part of a longer word or number. One that is only digits, or
shorter than four characters, stands for a subscriber only where it is a whole value: a cell, a quoted text.
"""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SHORT = 4
AT_ONCE = 500  # alternatives in one regular expression


@dataclass(frozen=True)
class Wanted:
    """``ids``: as text; ``keys``: their subscriber keys; ``columns``: names of columns that hold subscribers."""

    ids: frozenset[str]
    keys: frozenset[int]
    columns: frozenset[str] = frozenset({"subscriber"})

    @cached_property
    def _array(self) -> np.ndarray:
        return np.array(sorted(self.keys), np.int64)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        long = [re.escape(i) for i in self.ids if _telling(i)]
        parts = [rf"(?<![0-9]){k}(?![0-9])" for k in sorted(self.keys)]
        if long:
            parts.append(rf"(?<!\w)(?:{'|'.join(sorted(long))})(?!\w)")
        short = [re.escape(i) for i in self.ids if not _telling(i)]
        if short:
            parts.append(rf"(?<=[\"'>])\s*(?:{'|'.join(sorted(short))})\s*(?=[\"'<])")
        return re.compile("|".join(parts))

    def in_value(self, text: str) -> bool:
        """Whether one whole value mentions any of them."""
        if text in self.ids:
            return True
        if text[:1] in ("{", "[") and (found := _loads(text)) is not None:
            return self.in_json(found)
        return self.in_text(text)

    def in_text(self, text: str) -> bool:
        return self._pattern.search(text) is not None

    def in_json(self, value: Any, name: str = "") -> bool:
        if isinstance(value, dict):
            return any(self.in_value(str(k)) or self.in_json(v, str(k)) for k, v in value.items())
        if isinstance(value, list | tuple):
            return any(self.in_json(v, name) for v in value)
        if isinstance(value, str):
            return self.in_value(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value in self.keys or (name in self.columns and str(value) in self.ids)
        return False

    def in_column(self, name: str, column: Any) -> bool:
        """Whether an Arrow array, of any type, mentions any of them."""
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if isinstance(array, pa.ChunkedArray):
            return any(self.in_column(name, chunk) for chunk in array.chunks)
        kind = array.type
        if pa.types.is_dictionary(kind):
            used = array.dictionary.take(pc.unique(array.indices).drop_null())
            return self.in_column(name, used)
        if pa.types.is_struct(kind):
            fields = [kind.field(i).name for i in range(kind.num_fields)]
            return any(self.in_column(f, part) for f, part in zip(fields, array.flatten(), strict=True))
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            return any(self.in_value(text) for text in self._candidates(array))
        if pa.types.is_integer(kind):
            if name in self.columns and self._has_ids(array):
                return True
            return pa.types.is_int64(kind) and bool(np.isin(array.fill_null(0).to_numpy(), self._array).any())
        if pa.types.is_nested(kind):
            return self.in_json(array.to_pylist(), name)
        return False

    def _candidates(self, array: Any) -> list[str]:
        """The distinct texts that could mention any of them."""
        texts = pc.unique(array.cast(pa.large_string())).drop_null()
        near = pc.is_in(texts, value_set=pa.array(sorted(self.ids), pa.large_string()))
        parts = [re.escape(i) for i in sorted(self.ids) if _telling(i)] + [str(k) for k in sorted(self.keys)]
        for first in range(0, len(parts), AT_ONCE):
            near = pc.or_(near, pc.match_substring_regex(texts, "|".join(parts[first : first + AT_ONCE])))
        if any(not _telling(i) for i in self.ids):
            near = pc.or_(near, pc.match_substring_regex(texts, r"^[\[{]"))
        found: list[str] = texts.filter(near).to_pylist()
        return found

    def _has_ids(self, array: Any) -> bool:
        numbers = [int(i) for i in self.ids if re.fullmatch(r"-?\d{1,18}", i)]
        return bool(numbers) and bool(pc.any(pc.is_in(array.cast(pa.int64()), value_set=pa.array(numbers))).as_py())


def _telling(text: str) -> bool:
    return len(text) >= SHORT and not text.isdigit()


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def mentions(fs: Any, path: str, wanted: Wanted) -> bool:
    """Whether a file mentions any of some subscribers. What is not what its name says is searched as text."""
    if path.endswith((".parquet", ".parquet.tmp")):
        try:
            with fs.open_input_file(path) as handle, pq.ParquetFile(handle) as file:
                if _in_metadata(file, wanted):
                    return True
                return any(_in_group(file, group, wanted) for group in range(file.metadata.num_row_groups))
        except (pa.ArrowException, OSError):
            pass
    with fs.open_input_stream(path) as stream:
        text = stream.read().decode("utf-8", errors="replace")
    if path.endswith(".json"):
        values = _loads(text)
        lines = [values] if values is not None else [_loads(line) for line in text.splitlines() if line.strip()]
        if all(line is not None for line in lines):
            return any(wanted.in_json(line) for line in lines)
    if path.endswith((".html", ".htm")):
        text = html.unescape(text)
    return wanted.in_text(text)


def _in_metadata(file: Any, wanted: Wanted) -> bool:
    found = file.schema_arrow.metadata or {}
    own = file.metadata.metadata or {}
    skipped = {b"ARROW:schema", b"sha256"}
    texts = {v.decode("utf-8", errors="replace") for k, v in [*found.items(), *own.items()] if k not in skipped}
    return any(wanted.in_value(text) for text in texts)


def _in_group(file: Any, group: int, wanted: Wanted) -> bool:
    table = file.read_row_group(group, use_threads=False)
    return any(wanted.in_column(name, table.column(name)) for name in table.column_names)


def without(value: Any, wanted: Wanted, client: str | None, name: str = "") -> Any:
    """JSON without them: list elements that are theirs are left out, other mentions are blanked.

    Args:
        client: whose subscribers, None for every client; name: of the value.
    """
    if isinstance(value, dict):
        return {k: without(v, wanted, client, k) for k, v in value.items()}
    if isinstance(value, list):
        return [without(v, wanted, client, name) for v in value if not _theirs(v, wanted, client)]
    return "(forgotten)" if wanted.in_json(value, name) else value


def _theirs(value: Any, wanted: Wanted, client: str | None) -> bool:
    if not isinstance(value, dict) or client not in (None, value.get("client", client)):
        return False
    return any(str(value.get(name)) in wanted.ids for name in wanted.columns)
