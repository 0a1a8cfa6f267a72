"""What weight decay takes off, and what it is there for."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.backend import PANDAS
from pipeline.learning.chunks import as_chunks, survey
from pipeline.learning.metrics import spearman
from pipeline.learning.model import TrainedModel
from pipeline.learning.models import Architecture, Head, build, history_of
from pipeline.learning.rows import Rows
from pipeline.learning.tensors import tf
from pipeline.learning.train import train
from pipeline.learning.trainer import Trainer
from pipeline.options import Model
from tests.learning.data import planted
from tests.learning.histories import SPEC, histories

HEADS = (Head("a"), Head("b"))


@pytest.mark.parametrize("kind", ["dense", "recurrent", "attention"])
def test_a_step_takes_its_share_off_kernels_and_vectors_alone(kind: str) -> None:
    """AdamW of gradients that are zero: w (1 - rate x decay) of each weight, biases and scales as they were
    (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2)."""
    data, settings = planted(PANDAS, 600), Model(batch_size=300, learning_rate=0.01, weight_decay=2.0)
    rows = Rows(data.rows.X, data.rows.y, data.rows.mask, data.rows.weight, sequences=histories(PANDAS, 600, 0))
    network = build(Architecture(6, HEADS, (8,), kind=kind, units=8, history=history_of(kind, SPEC)))
    rng = np.random.default_rng(0)
    network.set_weights({n: rng.uniform(0.5, 1, w.shape).astype(np.float32) for n, w in network.weights().items()})
    found = survey(as_chunks(rows), HEADS, 1)
    trainer = Trainer(TrainedModel(network, found.labels), as_chunks(rows), found, rows, settings)
    before, variables = network.weights(), network.body.trainable_variables
    trainer.optimizer.apply([tf.zeros(v.shape) for v in variables], variables)
    left, whole = 1 - 0.01 * 2.0, 0
    for name, weight in network.weights().items():
        kept = name.startswith("normalise") or name.endswith(("bias", "gamma", "beta"))
        whole += kept and not name.startswith("normalise")
        np.testing.assert_allclose(weight, before[name] * (1 if kept else left), rtol=1e-6, err_msg=name)
    assert whole >= (2 if kind == "dense" else 3)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_rare_outcome_among_much_noise_ranks_better_with_it(seed: int) -> None:
    """Much of it beside next to none: in the order of the true probability of rows that training has not seen."""
    data, fresh, valid = (planted(PANDAS, n, 60, -4.5, seed) for n, seed in ((10_000, 0), (10_000, 1), (3_000, 2)))
    settings = Model(batch_size=512, epochs=8, seed=seed)
    alike = []
    for decay in (0.5, 1e-4):
        decayed = settings.model_copy(update={"weight_decay": decay})
        p = train(data.rows, valid.rows, HEADS, decayed).predict(fresh.rows.X)[:, 0]
        alike.append(spearman(p, fresh.p[:, 0]) or 0.0)
    assert alike[0] > alike[1] + 0.001
