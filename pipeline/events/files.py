"""Files by path or URI: one face for local disks and object stores.

A local file is written whole or not at all: under a temporary name, flushed to the disk, then renamed. An object store
does the same by itself. Named fault points (:func:`fault`) let tests kill the process at each step.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import glob as globbing
import hashlib
import os
import re
import signal
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.durable import sync_folder
from pipeline.errors import EventgrainError, SourceError, StoreError

PATIENCE = 3  # seconds that Google's client asks again when files are listed; 15 minutes of its own accord
ENDS = (".parquet", ".pq", ".parq")

_seen: dict[str, int] = {}


def fault(point: str) -> None:
    """Die here, as by a power cut, when EVENTGRAIN_FAULT is ``point``, or ``point:n`` at its n-th passing."""
    wanted = os.environ.get("EVENTGRAIN_FAULT")
    if not wanted:
        return
    _seen[point] = _seen.get(point, 0) + 1
    name, _, count = wanted.partition(":")
    if name == point and _seen[point] >= int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)


def is_remote(uri: str) -> bool:
    return bool(re.match(r"^[A-Za-z][A-Za-z0-9+.-]+://", uri)) and not uri.startswith("file://")


def filesystem(uri: str, patience: int | None = None) -> tuple[Any, str]:
    """The pyarrow filesystem of a path or URI and the path in it; fsspec serves the schemes that Arrow does not know.

    Args:
        patience: seconds that Google's client asks again; None: as it likes. Others give up within seconds.
    Raises:
        SourceError: no filesystem is known for the scheme, or its package is missing.
    """
    if not is_remote(uri):
        return pafs.LocalFileSystem(), str(Path(uri.removeprefix("file://")).absolute())
    scheme, _, rest = uri.partition("://")
    try:
        if scheme in ("s3", "gs", "gcs"):  # the key is taken as it stands: a URI parser would decode its percent signs
            name, _, given = rest.partition("?") if "=" in rest.rpartition("?")[2] else (rest, "", "")
            options = "&".join(filter(None, [given, *_options(scheme, given, patience)]))
            fs, _ = pafs.FileSystem.from_uri(f"{scheme}://{name.partition('/')[0]}?{options}")
            return fs, re.sub("^[^/@]*@", "", name)  # without who reads it, as in gs://anonymous@bucket/folder
        if scheme in ("hdfs", "viewfs", "abfs", "abfss"):
            fs, path = pafs.FileSystem.from_uri(uri)
            return fs, path
        import fsspec

        return pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem(scheme))), rest
    except (ImportError, ValueError, OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SourceError(
            f"cannot open {uri!r}: {error}. Expected a local path or a URI such as s3://bucket/folder/"
        ) from None


def _options(scheme: str, given: str, patience: int | None) -> list[str]:
    """What Arrow is told of an object store, unless ``given`` in the URI."""
    known = {part.partition("=")[0] for part in given.split("&")}
    found = _s3_options() if scheme == "s3" else {"retry_limit_seconds": str(patience or "")}
    return [f"{name}={quote(value, safe='')}" for name, value in found.items() if value and name not in known]


def _s3_options() -> dict[str, str]:
    """The endpoint and region that the environment names, as the Delta library reads them.

    Arrow would ask Amazon for the region of a bucket that it does not know, and would not return without a network.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ("us-east-1" if endpoint else "")
    scheme, _, host = endpoint.rpartition("://")
    return {"region": region, "endpoint_override": host.rstrip("/"), "scheme": scheme}


@dataclass(frozen=True)
class Found:
    """One file found: its path as the user would write it, its path inside the filesystem, size and change stamp."""

    name: str
    path: str
    size: int
    stamp: str  # changes whenever the content may have changed; equal stamps need no digest


def _stamp(info: Any) -> str:
    return str(info.mtime_ns if info.mtime_ns is not None else "")


def find_files(uri: str) -> tuple[Any, list[Found]]:
    """All Parquet files below a folder, matching a glob, or the one file named, sorted by path.

    Names that start with ``_`` or ``.`` below a folder are not data, by the convention of Parquet writers. A file that
    symbolic links show under several names is found once; see also :func:`dangling`.

    Raises:
        SourceError: nothing there, nothing readable, or no Parquet file.
    """
    fs, path = filesystem(uri, PATIENCE)  # a run begins with this, so it says at once where there is no network
    local = isinstance(fs, pafs.LocalFileSystem)
    try:
        infos = _matching(fs, path)
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"source.path: cannot list {uri!r}: {_why(str(error))}") from None
    if local:
        infos = _once(infos)
    prefix = "" if local else uri.partition("://")[0] + "://"
    found = []
    for info in infos:
        stamp = _stamp(info)
        if local:
            with contextlib.suppress(FileNotFoundError):  # gone since it was listed: reading it will say so
                stat = os.stat(info.path)  # noqa: PTH116
                stamp = f"{stat.st_mtime_ns}-{stat.st_ctime_ns}"
        found.append(Found(prefix + info.path, info.path, int(info.size), stamp))
    if not found:
        raise SourceError(
            f"source.path: no Parquet file (*.parquet, *.pq) in {uri!r}. "
            "Give a folder that holds some, a glob, or one file"
        )
    return filesystem(uri)[0], sorted(found, key=lambda f: f.name)


def dangling(uri: str) -> list[str]:
    """Symbolic links to what is not there, below a folder or on the way of a glob: each may stand for a day's events.

    Arrow does not list them. Each once, however many links lead to its folder; only names that can be a folder's or a
    Parquet file's.
    """
    fs, path = filesystem(uri, PATIENCE)
    if not isinstance(fs, pafs.LocalFileSystem):
        return []
    if re.search(r"[*?\[]", path):
        parts = path.split("/")
        ways = ["/".join(parts[: i + 1]) for i, part in enumerate(parts) if re.search(r"[*?\[]", part)]
        names: Iterable[str] = (name for way in ways for name in globbing.iglob(way, recursive=True))  # noqa: PTH207
    else:
        names = (
            os.path.join(folder, name)  # noqa: PTH118
            for folder, folders, files in _walk(path.rstrip("/") or "/")
            for name in [*folders, *files]
        )
    found: dict[str, str] = {}
    for name in names:
        if os.path.islink(name):  # noqa: PTH114
            folder, last = os.path.split(name)
            link = os.path.join(os.path.realpath(folder), last)  # noqa: PTH118
            if not os.path.exists(link) and ("=" in last or Path(last).suffix.lower() in ("", *ENDS)):  # noqa: PTH110
                found[link] = min(found.get(link, name), name, key=len)
    return sorted(found.values())


def _walk(root: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """``os.walk`` through links, each folder once and hidden ones not at all."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if name[0] not in "_."]
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield folder, folders, [name for name in files if name[0] not in "_."]


def _once(infos: list[Any]) -> list[Any]:
    """Each file once, where symbolic links show it under several names: by its own, so that a link that is made later
    does not rename what was ingested; or else by the one with the fewest links."""

    @functools.cache
    def links(path: str) -> int:
        above = os.path.dirname(path)  # noqa: PTH120
        return os.path.islink(path) + (links(above) if above != path else 0)  # noqa: PTH114

    found: dict[str, Any] = {}
    for info in sorted(infos, key=lambda i: (links(i.path), len(i.path), i.path)):
        found.setdefault(os.path.realpath(info.path), info)
    return list(found.values())


def _why(text: str) -> str:
    """What a filesystem says of a listing that failed, without its wrapping, and what to do."""
    advice = "Give a folder, a glob, or one file"
    if re.search("UNAVAILABLE|NETWORK_CONNECTION", text):
        advice = "Is there a network, and are the address and the keys right?"
    text = text.removeprefix("[Errno 2] ").partition(" error_info=")[0].rpartition("with a last message of ")[2]
    return f"{text}. {advice}"


def _matching(fs: Any, path: str) -> list[Any]:
    if re.search(r"[*?\[]", path):
        if isinstance(fs, pafs.LocalFileSystem):
            names = [p for p in globbing.glob(path, recursive=True) if Path(p).is_file()]  # noqa: PTH207
            return list(fs.get_file_info(names)) if names else []
        base = re.split(r"[*?\[]", path)[0].rpartition("/")[0]
        pattern = re.compile(_glob(path.lstrip("/")))
        every = fs.get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
        return [i for i in every if i.type == pafs.FileType.File and pattern.match(i.path.lstrip("/"))]
    info = fs.get_file_info(path.rstrip("/") or "/")
    if info.type == pafs.FileType.File:
        return [info]
    if info.type == pafs.FileType.NotFound:
        raise FileNotFoundError(errno.ENOENT, "there is no such file or folder")
    every = fs.get_file_info(pafs.FileSelector(info.path, recursive=True))
    base = len(info.path) + 1

    def visible(p: str) -> bool:
        return not any(part[:1] in ("_", ".") for part in p[base:].split("/"))

    return [i for i in every if i.type == pafs.FileType.File and i.path.lower().endswith(ENDS) and visible(i.path)]


def _glob(pattern: str) -> str:
    """A glob as a regular expression: ``*`` stays within a folder, ``**/`` spans folders."""
    out = ""
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]*\]|.", pattern, flags=re.S):
        special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        out += special.get(token) or (token if token[0] == "[" and len(token) > 1 else re.escape(token))
    return out + r"\Z"


def digest_of(fs: Any, path: str) -> str:
    """The SHA-256 of a file's bytes, hex."""
    sha = hashlib.sha256()
    with fs.open_input_stream(path) as stream:
        while chunk := stream.read(1 << 22):
            sha.update(chunk)
    return sha.hexdigest()


def explain(error: BaseException, doing: str, where: str) -> EventgrainError:
    """A failed write as an error that says what to do about it."""
    code = getattr(error, "errno", None)
    text = str(error)
    if code == errno.ENOSPC or "No space left" in text or code == errno.EFBIG or code == errno.EDQUOT:
        advice = "The disk is full (or a size limit reached): free some space and run again; nothing was lost"
    elif code in (errno.EROFS, errno.EACCES, errno.EPERM) or "ermission denied" in text or "Read-only" in text:
        advice = "It cannot be written to: choose another place with store=..., or change its permissions"
    else:
        advice = "Mend that and run again; what was committed before is untouched"
    return StoreError(f"cannot {doing} {where}: {text}. {advice}")


@dataclass(frozen=True)
class Place:
    """A folder to write to, by path or URI."""

    uri: str

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        return filesystem(self.uri)

    @property
    def fs(self) -> Any:
        return self._opened[0]

    @property
    def root(self) -> str:
        return self._opened[1].rstrip("/")

    @property
    def local(self) -> bool:
        return not is_remote(self.uri)

    @property
    def target(self) -> str:
        """What the Delta library opens: an absolute path, or the URI."""
        return self.root if self.local else self.uri

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def write(self, name: str, data: Any) -> None:
        """Write a whole file (bytes or an Arrow buffer) durably under ``name``, relative to this folder.

        Raises:
            StoreError: says what to do about a full disk, a read-only target and the like.
        """
        path = self.path(name)
        try:
            view = memoryview(data).cast("B")
            half = len(view) // 2
            if not self.local:
                with self.fs.open_output_stream(path) as stream:
                    stream.write(view[:half])
                    fault("half-written")
                    stream.write(view[half:])
                fault("file-written")
                return
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
            try:
                with temporary.open("wb", buffering=0) as file:
                    _write_all(file, view[:half])
                    fault("half-written")
                    _write_all(file, view[half:])
                    os.fsync(file.fileno())
                fault("file-written")
                temporary.rename(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            sync_folder(target.parent)
            fault("file-renamed")
        except (OSError, pa.ArrowException) as error:
            raise explain(error, "write", path) from error

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None where there is none."""
        info = self.fs.get_file_info(self.path(name))
        return int(info.size) if info.type == pafs.FileType.File else None

    def list(self, name: str = "") -> list[str]:
        """Names, relative to this folder, of all files below the folder ``name``."""
        selector = pafs.FileSelector(self.path(name).rstrip("/"), recursive=True, allow_not_found=True)
        base = len(self.root) + 1
        return sorted(i.path[base:] for i in self.fs.get_file_info(selector) if i.type == pafs.FileType.File)

    def stats(self, name: str = "") -> tuple[Stat, ...]:
        """Name, size and time of change of all files below the folder ``name``, sorted by name."""
        selector = pafs.FileSelector(self.path(name).rstrip("/"), recursive=True, allow_not_found=True)
        base = len(self.root) + 1
        files = [i for i in self.fs.get_file_info(selector) if i.type == pafs.FileType.File]
        return tuple(sorted((Stat(i.path[base:], int(i.size), _changed(i)) for i in files), key=lambda s: s.name))

    def delete(self, name: str) -> None:
        """Delete a file; one that is gone already is fine."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.delete_file(self.path(name))


@dataclass(frozen=True)
class Stat:
    """``changed``: int us UTC, None where the filesystem does not say."""

    name: str
    size: int
    changed: int | None


def _changed(info: Any) -> int | None:
    return None if info.mtime_ns is None else int(info.mtime_ns) // 1000


def _write_all(file: Any, view: memoryview) -> None:
    """Every byte, in as many writes as an unbuffered file takes."""
    while view:
        view = view[file.write(view) :]
