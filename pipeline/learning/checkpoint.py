"""The state of an unfinished training on disk, from which it goes on as if it had never stopped.

A file holds numbers only and is never unpickled: the SHA-256 of the rest, then a NumPy archive of arrays, one of which
is JSON text. It is replaced atomically, so a kill at any moment leaves the last whole state. Its fingerprint says which
training it is of; another one refuses it.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.durable import replace
from pipeline.errors import ModelError

FORMAT = 1
STATE = "state"  # the array of the archive that is JSON text


class Checkpoint:
    """Where a training keeps its state, and how often.

    Args:
        path: the file; its directory is made. every: seconds between two writes; 0: after every epoch.
        strict: refuse what belongs to another training or is damaged; else it is set aside and training starts anew.
    """

    def __init__(self, path: str | Path, every: float = 0.0, strict: bool = True) -> None:
        self.path, self.every, self.strict = Path(path), every, strict
        self._written = time.monotonic()

    def load(self, fingerprint: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """The arrays and the state last saved; None where there is none.

        Raises:
            ModelError: ``strict``, and the file is damaged or of another training.
        """
        try:
            arrays, state = _unpack(self.path, self.path.read_bytes())
            if state.get("format") != FORMAT or state.pop("fingerprint") != digest(fingerprint):
                raise ModelError(
                    f"the checkpoint {self.path} belongs to another training (other rows, settings or libraries): "
                    "delete it to train anew, or give what it was made with"
                )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ModelError(f"cannot read the checkpoint {self.path}: {error.strerror}") from None
        except ModelError:
            if self.strict:
                raise
            return None
        return arrays, state

    def beside(self, name: str) -> Checkpoint:
        """That of another training for the same end, in a file of its own."""
        return Checkpoint(self.path.with_name(f"{self.path.name}-{name}"), self.every, self.strict)

    def due(self) -> bool:
        """Whether it is time to write again."""
        return time.monotonic() - self._written >= self.every

    def save(self, fingerprint: Mapping[str, Any], arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        """Replace the state on disk.

        Args:
            state: plain values.
        Raises:
            ModelError: it cannot be written.
        """
        text = json.dumps({**state, "format": FORMAT, "fingerprint": digest(fingerprint)}).encode()
        buffer = io.BytesIO()
        np.savez(buffer, **{STATE: np.frombuffer(text, dtype=np.uint8)}, **arrays)  # type: ignore[arg-type]
        data = buffer.getvalue()
        try:
            replace(self.path, hashlib.sha256(data).digest() + data, aside=f".{self.path.name}.new")
        except OSError as error:
            raise ModelError(f"cannot write the checkpoint {self.path}: {error.strerror}") from None
        self._written = time.monotonic()

    def remove(self) -> None:
        """The training is finished."""
        self.path.unlink(missing_ok=True)


def digest(values: Any) -> str:
    """SHA-256 of plain values, written as JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _unpack(path: Path, data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        raise ModelError(f"the checkpoint {path} was changed after it was written: delete it to train anew")
    try:
        with np.load(io.BytesIO(data[32:]), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return arrays, json.loads(arrays.pop(STATE).tobytes())
    except (ValueError, KeyError) as error:
        raise ModelError(f"the checkpoint {path} cannot be read ({error}): delete it to train anew") from None
