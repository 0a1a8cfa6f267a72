"""A training that is killed goes on from its checkpoint as if it had never stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.backend import PANDAS
from pipeline.errors import ModelError
from pipeline.learning import models
from pipeline.learning.checkpoint import Checkpoint
from pipeline.learning.chunks import Chunks
from pipeline.learning.models import Head
from pipeline.learning.tensors import keras
from pipeline.learning.train import train
from pipeline.options import Model
from tests.learning.data import planted, rows_of
from tests.learning.test_sequence_inputs import counting
from tests.learning.test_sequence_inputs import table as sequence_table

HEADS = (Head("a"), Head("b"))
SETTINGS = Model(hidden=[16], dropout=0.2, batch_size=256, epochs=8, patience=8, minimum_positives=5)
WHERE = Path(__file__).parents[2]


def learn(way: str, path: Path | None, kill_at: int = 0, settings: Model = SETTINGS) -> Any:
    """A training of 8 epochs: of rows, or of chunks; killed in an epoch of that number."""
    data = planted(PANDAS, 6_000)
    rows: Any = data.rows
    if way == "chunks":
        rows = Chunks(3, lambda i: rows_of(PANDAS, data.X[i::3], data.y[i::3]))

    class Killer(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch + 1 == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    checkpoint = Checkpoint(path) if path else None
    valid = planted(PANDAS, 1_000, seed=1).rows
    return train(rows, valid, HEADS, settings, callbacks=[Killer()], checkpoint=checkpoint)


def killed(way: str, path: Path, kill_at: int) -> None:
    code = f"from tests.learning.test_checkpoint import *; learn({way!r}, Path({str(path)!r}), {kill_at})"
    done = subprocess.run([sys.executable, "-c", code], cwd=WHERE, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("way", ["rows", "chunks"])
def test_a_killed_training_ends_in_the_weights_of_one_that_was_not(way: str, tmp_path: Path) -> None:
    path = tmp_path / "models" / "unfinished"
    killed(way, path, 4)
    assert path.exists()
    resumed, whole = learn(way, path), learn(way, None)
    assert len(resumed.history) == len(whole.history) == 8
    assert [h["loss"] for h in resumed.history] == [h["loss"] for h in whole.history]
    assert resumed.best_epoch == whole.best_epoch
    for name, weight in whole.network.weights().items():
        np.testing.assert_array_equal(resumed.network.weights()[name], weight, err_msg=name)
    assert list(path.parent.iterdir()) == []


def unfinished(path: Path) -> None:
    """What a training that failed in its fourth epoch left."""

    class Failing(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(planted(PANDAS, 2_000).rows, None, HEADS, SETTINGS, callbacks=[Failing()], checkpoint=Checkpoint(path))


def test_one_of_other_data_or_settings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "unfinished"
    unfinished(path)
    with pytest.raises(ModelError, match="belongs to another training"):
        train(planted(PANDAS, 2_000, seed=5).rows, None, HEADS, SETTINGS, checkpoint=Checkpoint(path))
    other = SETTINGS.model_copy(update={"learning_rate": 0.01})
    with pytest.raises(ModelError, match="belongs to another training"):
        train(planted(PANDAS, 2_000).rows, None, HEADS, other, checkpoint=Checkpoint(path))
    anew = train(planted(PANDAS, 2_000).rows, None, HEADS, other, checkpoint=Checkpoint(path, strict=False))
    assert len(anew.history) == 8
    assert not path.exists()


@pytest.mark.parametrize("damage", ["a flipped bit", "cut short", "empty"])
def test_a_damaged_one_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "unfinished"
    unfinished(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"a flipped bit": bytes(data), "cut short": bytes(data[:200]), "empty": b""}[damage])
    with pytest.raises(ModelError, match="was changed after it was written"):
        train(planted(PANDAS, 2_000).rows, None, HEADS, SETTINGS, checkpoint=Checkpoint(path))


def test_it_is_never_unpickled(tmp_path: Path) -> None:
    """An archive with a right digest that holds objects."""
    import hashlib
    import io

    buffer = io.BytesIO()
    np.savez(buffer, state=np.array([{"format": 1}], dtype=object))
    path = tmp_path / "unfinished"
    path.write_bytes(hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())
    with pytest.raises(ModelError, match="cannot be read"):
        Checkpoint(path).load({})


def test_what_is_written_aside_is_not_seen(tmp_path: Path) -> None:
    """A kill while the file is written leaves the one before."""
    kept = Checkpoint(tmp_path / "unfinished", every=3600)
    kept.save({"a": 1}, {"w": np.arange(3.0)}, {"epoch": 2})
    (tmp_path / ".unfinished.new").write_bytes(b"half of it")
    loaded = kept.load({"a": 1})
    assert loaded is not None
    assert loaded[0]["w"].tolist() == [0.0, 1.0, 2.0]
    assert loaded[1]["epoch"] == 2
    assert not kept.due()
    assert Checkpoint(tmp_path / "none").load({}) is None


@pytest.mark.parametrize("way", ["rows", "chunks"])
@pytest.mark.parametrize("change", ["none", "one element", "rows change places", "of the validation rows"])
def test_one_of_other_sequences_is_refused(
    way: str, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "build", counting)
    rows, valid = (sequence_table(PANDAS, n, seed)[0] for n, seed in ((1_200, 0), (400, 1)))
    path = tmp_path / "unfinished"

    def learn(*callbacks: Any) -> Any:
        some: Any = rows
        if way == "chunks":
            some = Chunks(3, lambda i: rows.chosen(np.arange(i, len(rows), 3)))
        return train(some, valid, HEADS, SETTINGS, callbacks=callbacks, checkpoint=Checkpoint(path))

    class Failing(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(Failing())
    campaign = (valid if change == "of the validation rows" else rows).sequences["campaign"]
    if change == "rows change places":  # nothing that is summed up would tell
        campaign[[300, 303]] = campaign[[303, 300]]
    elif change != "none":
        campaign[7, 2] += 1
    if change == "none":
        assert len(learn().history) == 8
    else:
        with pytest.raises(ModelError, match="belongs to another training"):
            learn()
