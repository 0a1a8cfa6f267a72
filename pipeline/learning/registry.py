"""Model versions on disk: written once, verified at every load, one of them in use.

``models/<client>/<version>/`` holds weights.npz (numbers only, never pickled), spec.json, config.yaml, model.json (the
architecture and what is known of each head), card.md for people, and card.json, which names the SHA-256 of each of
them. A version's name ends in the digest of its card, so a version vouches for all its bytes. ``current`` names the
version in use and is replaced atomically. Loading executes nothing from a file: the network is built by our code and
given numbers.

The versions of the model pooled over all clients are below ``models/@pooled``, which no client's folder can be called;
here its client is None. A client that it serves has ``@pooled/<version>`` in its ``current``.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import importlib.metadata
import io
import json
import platform
import re
import shutil
import tempfile
import urllib.parse
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import durable
from pipeline.config import Config
from pipeline.errors import ModelError
from pipeline.learning.card import markdown

if TYPE_CHECKING:
    from pipeline.features.spec import FeatureSpec
    from pipeline.learning.model import TrainedModel

FORMAT = 2  # 2: a card in Markdown, and what the gate found
FILES = ("weights.npz", "spec.json", "config.yaml", "model.json", "card.md")
POOLED = "@pooled"
VERSION = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{16}")
LIBRARIES = ("eventgrain", "tensorflow", "tensorflow-cpu", "keras", "numpy", "pandas", "scikit-learn")


def client_dir(models: str | Path, client: str | None) -> Path:
    """Where a client's versions are. Any name is safe: it is percent-encoded, a dot in front too."""
    if client is None:
        return Path(models) / POOLED
    if not client:
        raise ModelError("a model needs a client's name, found an empty one")
    name = urllib.parse.quote(client, safe="")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if len(name) > 200:  # file systems take 255 bytes; no encoded name has a '%' before anything but two hex digits
        name = f"{name[:150]}%-{hashlib.sha256(client.encode()).hexdigest()[:32]}"
    return Path(models) / name


def save_version(
    models: str | Path,
    client: str | None,
    model: TrainedModel,
    spec: FeatureSpec,
    config: Config,
    metrics: Mapping[str, Any],
    *,
    snapshot: int | None = None,
    as_of: str | None = None,
    facts: Mapping[str, Any] | None = None,
    activate: bool = True,
) -> str:
    """Write a new version and, with ``activate``, put it in use. Returns its name.

    A version appears whole or not at all: it is written aside, synced and renamed.

    Args:
        models: the run's models directory. metrics: strict JSON, as of ``evaluate``.
        snapshot: the store's version it was trained on. as_of: where its data end.
        facts: further entries of the card, strict JSON: ``split`` and ``rows``, see :mod:`pipeline.learning.card`, and
            ``gate``, see :class:`pipeline.learning.gate.Verdict`.
    Raises:
        ModelError: the metrics are not strict JSON, or the directory cannot be written.
    """
    contents = {
        "weights.npz": _pack(model.network.weights()),
        "spec.json": spec.to_json().encode(),
        "config.yaml": config.dump().encode(),
        "model.json": _json(model.describe()),
    }
    now = dt.datetime.now(dt.UTC)
    card = {
        "format": FORMAT,
        "client": client,
        "created": now.isoformat(timespec="seconds"),
        "as_of": as_of,
        "snapshot": snapshot,
        "seed": config.model.seed,
        "metrics": dict(metrics),
        "notes": model.notes,
        "training": model.training(),
        "libraries": {"python": platform.python_version(), **_libraries()},
        **(facts or {}),
    }
    _json(card)  # before anything is made of it
    contents["card.md"] = markdown(card, spec, config, model.describe()).encode()
    card["sha256"] = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    contents["card.json"] = _json(card)
    version = f"{now:%Y%m%dT%H%M%SZ}-{hashlib.sha256(contents['card.json']).hexdigest()[:16]}"
    home = client_dir(models, client)
    try:
        home.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".new-", dir=home))
        try:
            for name, data in contents.items():
                durable.write(aside / name, data)
            aside.chmod(0o755)
            try:
                aside.rename(home / version)
            except OSError:
                if not (home / version).is_dir():  # another process wrote the same bytes
                    raise
            durable.sync_folder(home)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise ModelError(f"cannot write a model version below {home}: {error.strerror}") from None
    if activate:
        use(models, client, version)
    return version


def use(models: str | Path, client: str | None, version: str) -> None:
    """Put a version in use, atomically: a reader sees the old name or the new one.

    Args:
        version: one of the client's, or ``@pooled/<version>``.
    Raises:
        ModelError: there is no such version, it is not what was written, or the directory cannot be written.
    """
    home = client_dir(models, client)
    folder = version_dir(models, client, version)
    if not folder.is_dir():
        known = versions(models, client)
        raise ModelError(f"there is no model version {version!r} in {home}; there are: {', '.join(known) or 'none'}")
    _verified(folder)
    try:
        durable.replace(home / "current", version.encode() + b"\n")
    except OSError as error:
        raise ModelError(f"cannot put model version {version} in use in {home}: {error.strerror}") from None


def clients(models: str | Path) -> list[str]:
    """The clients that have versions or are served by the pooled model, sorted; opens no TensorFlow.

    A card names its client; where it is damaged or names another one, the folder does.
    """
    homes = [p for p in Path(models).iterdir() if p.is_dir()] if Path(models).is_dir() else []
    served = (p for p in homes if p.name != POOLED and ((p / "current").is_file() or any(p.glob("*/card.json"))))
    return sorted(_client_of(home) for home in served)


def _client_of(home: Path) -> str:
    for path in sorted(home.glob("*/card.json"), reverse=True):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            client = json.loads(path.read_bytes())["client"]
            if client and client_dir(home.parent, client) == home:
                return str(client)
    return urllib.parse.unquote(home.name)


def versions(models: str | Path, client: str | None) -> list[str]:
    """A client's versions, oldest first."""
    home = client_dir(models, client)
    return sorted(p.name for p in home.iterdir() if VERSION.fullmatch(p.name)) if home.is_dir() else []


def current(models: str | Path, client: str | None) -> str | None:
    """The version in use, or None where the client has none. Raises ModelError for a damaged ``current``.

    ``@pooled/<version>`` where the model pooled over all clients serves this one.
    """
    try:
        name = (client_dir(models, client) / "current").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot read which model of {_whose(client)} is in use: {error}") from None
    if not VERSION.fullmatch(name if client is None else name.removeprefix(f"{POOLED}/")):
        raise ModelError(f"'current' of {_whose(client)} names {name[:80]!r}, which is no version; train again")
    return name


def version_dir(models: str | Path, client: str | None, version: str) -> Path:
    """The folder of a client's version, or of a pooled one, ``@pooled/<version>``.

    Raises:
        ModelError: that is not the name of a version.
    """
    pooled, name = version.startswith(f"{POOLED}/"), version.removeprefix(f"{POOLED}/")
    if not VERSION.fullmatch(name):
        raise ModelError(f"{version[:80]!r} is not the name of a model version")
    return client_dir(models, None if pooled else client) / name


def card(models: str | Path, client: str | None, version: str) -> dict[str, Any]:
    """The verified card of a version; opens no TensorFlow. Raises ModelError: a file is missing or changed."""
    return _verified(version_dir(models, client, version))[0]


def cited_snapshots(models: str | Path) -> set[int]:
    """The store versions that any client's model versions were trained on, as their cards say; opens no TensorFlow.

    Raises:
        ModelError: a card cannot be read.
    """
    found = set()
    for path in sorted(Path(models).glob("*/*/card.json")):
        if VERSION.fullmatch(path.parent.name):
            try:
                snapshot = json.loads(path.read_text(encoding="utf-8"))["snapshot"]
            except (OSError, ValueError, KeyError, TypeError):
                raise ModelError(f"{path} cannot be read: delete that model version, or restore it") from None
            if snapshot is not None:
                found.add(int(snapshot))
    return found


def intact(models: str | Path, clients: Iterable[str]) -> bool:
    """Whether each client has a version in use whose files are what was written; opens no TensorFlow.

    A version that serves several of them is read once.
    """
    try:
        used = {client: current(models, client) for client in clients}
        folders = {version_dir(models, client, version or "none") for client, version in used.items()}
        return all(bool(_verified(folder)) for folder in folders)
    except ModelError:
        return False


def load_current(models: str | Path, client: str | None) -> tuple[TrainedModel, FeatureSpec, dict[str, Any]]:
    """The model in use, its feature specification and its card, all verified.

    Raises:
        ModelError: the client has no model, or a file is missing, changed or of another format.
    """
    version = current(models, client)
    if version is None:
        raise ModelError(f"{_whose(client)} has no model yet in {Path(models)}: run train first")
    return load_version(models, client, version)


def specification(models: str | Path, client: str | None, version: str) -> FeatureSpec:
    """The verified feature specification of a version; opens no TensorFlow.

    Raises:
        ModelError: a file is missing, changed or of another format.
    """
    from pipeline.features.spec import FeatureSpec

    _, contents = _verified(version_dir(models, client, version))
    return FeatureSpec.from_json(contents["spec.json"].decode())


def load_version(
    models: str | Path, client: str | None, version: str
) -> tuple[TrainedModel, FeatureSpec, dict[str, Any]]:
    """As :func:`load_current`, of a named version."""
    folder = version_dir(models, client, version)
    card, contents = _verified(folder)
    key = (folder.name, *card["sha256"].values())
    if key not in _LATEST:
        made = _restored(folder, card, contents)
        _LATEST.clear()
        _LATEST[key] = made
    model, spec = _LATEST[key]
    return model if client is None else model.of(client), spec, card


# The model loaded last: thousands of clients may share one, and building a network takes longer than scoring with it.
_LATEST: dict[tuple[str, ...], tuple[TrainedModel, FeatureSpec]] = {}


def _restored(folder: Path, card: dict[str, Any], contents: dict[str, bytes]) -> tuple[TrainedModel, FeatureSpec]:
    from pipeline.features.spec import FeatureSpec
    from pipeline.learning.model import TrainedModel

    weights = _unpack(contents["weights.npz"])
    model = TrainedModel.restore(json.loads(contents["model.json"]), weights, card["training"])
    spec = FeatureSpec.from_json(contents["spec.json"].decode())
    if len(spec) != model.network.architecture.features:
        raise ModelError(f"model version {folder} has {len(spec)} features for a network of another width")
    return model, spec


def _verified(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The card and the bytes of every file, once their digests are right. What is verified is what is used."""
    data = _read(folder, "card.json")
    if hashlib.sha256(data).hexdigest()[:16] != folder.name[-16:]:
        raise ModelError(f"model version {folder}: card.json was changed after it was written; train again")
    card = json.loads(data)
    if card.get("format") != FORMAT:
        raise ModelError(
            f"model version {folder} has format {card.get('format')!r}, this version reads {FORMAT}; train again"
        )
    found = {name: _read(folder, name) for name in FILES}
    for name, data in found.items():
        digest, expected = hashlib.sha256(data).hexdigest(), str(card["sha256"].get(name))
        if digest != expected:
            raise ModelError(
                f"model version {folder}: {name} was changed after it was written (its SHA-256 begins {digest[:12]}, "
                f"the card says {expected[:12]}); put another version in use or train again"
            )
    return card, found


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise ModelError(f"model version {folder}: cannot read {name} ({error.strerror}); train again") from None


def _whose(client: str | None) -> str:
    return "the pooled model" if client is None else f"client {client!r}"


def _pack(weights: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.asarray(w, dtype=np.float32) for name, w in weights.items()})  # type: ignore[arg-type]
    return buffer.getvalue()


def _unpack(data: bytes) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(f"the weights of the model version cannot be read ({error}); train again") from None


def _json(values: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(values, indent=1, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ModelError(f"what is to be stored with the model is not strict JSON: {error}") from None


def _libraries() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
