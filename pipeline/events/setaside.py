"""Source files that cannot be taken: set aside by name, so that one of them does not stop the others.

A file is set aside when it cannot be read (cut short, damaged, not Parquet, gone), when its columns do not fit the
mapping, or when it was ingested before and has other content now. Nothing of it is taken. The list is kept in the run's
``quarantine/_bad_files.parquet``; every file on it is tried again at the next run, and leaves it once it is good.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, EventgrainError, SourceError
from pipeline.events.files import Found, Place, digest_of

NAME = "quarantine/_bad_files.parquet"
SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("size", pa.int64()),
        ("stamp", pa.string()),
        ("sha256", pa.string()),  # null where the bytes cannot be read
        ("error", pa.string()),
        ("changed", pa.bool_()),  # it was ingested before, with other content
        ("time", pa.string()),  # when it was first found so, ISO 8601 UTC
    ]
)


@dataclass(frozen=True)
class BadFile:
    """One source file that was not taken, and why: see :data:`SCHEMA`."""

    file: str
    size: int
    stamp: str
    sha256: str | None
    error: str
    changed: bool
    time: str

    def public(self) -> dict[str, Any]:
        """For metrics.json."""
        return {n: v for n, v in asdict(self).items() if n != "stamp"}


class SetAside:
    """The files set aside by one ingest.

    Args:
        policy: ``quarantine``, or ``fail``: the first bad file is an error; run_dir: of the run, where the list is;
        fs: the source's filesystem.
    """

    def __init__(self, policy: str, run_dir: Path, fs: Any) -> None:
        self.policy, self.place, self.fs = policy, Place(str(run_dir)), fs
        self.files: dict[str, BadFile] = {}
        self.errors: dict[str, EventgrainError] = {}
        self.before = {b.file: b for b in listed(run_dir)}

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def add(self, found: Found, error: EventgrainError, changed: bool = False) -> None:
        """Set a file aside. Raises ``error`` where the policy is ``fail``."""
        if self.policy == "fail":
            raise error
        if found.name in self.files:
            return
        old, sha = self.before.get(found.name), None
        same = old is not None and (old.size, old.stamp) == (found.size, found.stamp)
        if old is not None and same:
            sha = old.sha256
        else:
            with contextlib.suppress(OSError, pa.ArrowException):
                sha = digest_of(self.fs, found.path)
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        time = old.time if old is not None and same else now
        self.files[found.name] = BadFile(found.name, found.size, found.stamp, sha, str(error), changed, time)
        self.errors[found.name] = error

    def refuse_all(self) -> None:
        """Where no new file was good: an error, unless every bad one was on the list already.

        Raises:
            SourceError, ConfigError: names each file.
        """
        new = {name: e for name, e in self.errors.items() if not self.files[name].changed}
        if not new or new.keys() <= self.before.keys():
            return
        errors = list(new.values())
        if len(errors) == 1 or all(isinstance(e, ConfigError) for e in errors):
            raise errors[0]
        some = "\n  ".join(str(e) for e in errors[:20])
        more = f"\n  and {len(errors) - 20:,} more" if len(errors) > 20 else ""
        raise SourceError(f"none of the {len(errors):,} new source files can be taken:\n  {some}{more}")

    def save(self) -> None:
        """Keep the list as it is now; an empty one is removed."""
        if self.files:
            self.place.write(NAME, _encode(list(self.files.values())))
        elif self.before:
            self.place.delete(NAME)


def listed(run_dir: Path) -> list[BadFile]:
    """The files that the run's last ingest set aside; none where the list is damaged, for it is made anew."""
    try:
        rows = pq.read_table(run_dir / NAME, schema=SCHEMA, partitioning=None).to_pylist()
    except (OSError, pa.ArrowException, KeyError):
        return []
    return [BadFile(**row) for row in rows]


def _encode(files: Sequence[BadFile]) -> Any:
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist([asdict(f) for f in files], schema=SCHEMA)
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()
