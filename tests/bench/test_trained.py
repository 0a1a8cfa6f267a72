"""From a store to a trained model: every engine trains on the same rows, to the same loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import trained


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # of a generator Keras does not know the length
def test_every_engine_comes_to_the_same(tmp_path: Path) -> None:
    options = trained.parser().parse_args(["--events", "60000", "--epochs", "3", "--batch", "512"])
    trained.prepare(tmp_path, options)
    found = {}
    for engine in trained.ENGINES:
        options.engine = engine
        found[engine] = trained.measure(tmp_path, options)
    assert len({one["rows"] for one in found.values()}) == 1
    assert found["ours"]["rows"] > 5_000
    for one in found.values():
        assert min(one["seconds"].values()) > 0
        assert one["validation"] == pytest.approx(found["fit-numpy"]["validation"], abs=0.03)
