"""A data file's footer, checked against the file's name.

Page checksums cover a file's pages alone. Its footer says where they are and what they mean: one flipped bit there, or
another file's bytes under this name, can be silently wrong. So the name of a data file ends in the first digits of the
footer's SHA-256, and a footer is compared with it when it is opened.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

DIGITS = 8
TAIL = 1 << 16  # bytes that hold most footers
NAMED = re.compile(rf"-[0-9a-f]{{12}}([0-9a-f]{{{DIGITS}}})\.parquet\Z")


def footer_digest(data: Any) -> str:
    """The first digits of the SHA-256 of a Parquet file's footer, hex.

    Args:
        data: the file's bytes, or as many of the last ones as hold the footer.
    Raises:
        ValueError: no footer ends there.
    """
    view = memoryview(data).cast("B")
    size = _size(view)
    if size > len(view):
        raise ValueError("the footer is longer than the file")
    return hashlib.sha256(view[len(view) - size :]).hexdigest()[:DIGITS]


def _size(view: memoryview) -> int:
    """Bytes of the footer at the end, its length and the magic bytes included."""
    if len(view) < 12 or bytes(view[-4:]) != b"PAR1":
        raise ValueError("it does not end as a Parquet file does")
    return int.from_bytes(view[-8:-4], "little") + 8


def read_footer(source: Any, path: str) -> Any:
    """The footer of an open file.

    Raises:
        ValueError, OSError, ArrowException: it is not a Parquet file, or not the one that was written under this name.
    """
    size = source.size()
    tail = source.read_at(min(TAIL, size), size - min(TAIL, size))
    wanted = min(_size(memoryview(tail)), size)
    if wanted > len(tail):
        tail = source.read_at(wanted, size - wanted)
    named = NAMED.search(path)
    if named is not None and footer_digest(tail) != named[1]:
        raise ValueError("its footer is not the one that was written under this name")
    return pq.read_metadata(pa.BufferReader(tail))
