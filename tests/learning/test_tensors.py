from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.backend import PANDAS, Backend
from pipeline.errors import DataError
from pipeline.learning.tensors import address, aligned, permutation, shards, tensor, tf, to_array


def test_a_tensor_shares_the_arrays_memory(backend: Backend) -> None:
    array = backend.empty_aligned((5, 3), np.float32)
    array[...] = 1
    shared = tensor(array)
    array[2, 1] = 42
    backend.synchronize()
    assert shared.numpy()[2, 1] == 42
    assert shared.shape == (5, 3)
    assert ("GPU" in shared.device) == backend.on_gpu


def test_an_array_of_a_tensor_shares_its_memory(backend: Backend) -> None:
    array = backend.empty_aligned((4, 2), np.float32)
    array[...] = 3
    again = to_array(tf.identity(tensor(array)), backend)
    assert backend.to_host(again).tolist() == [[3.0, 3.0]] * 4


def test_the_tensor_outlives_the_name_of_its_array() -> None:
    def sevens() -> Any:
        array = PANDAS.empty_aligned((1000,), np.float32)
        array[...] = 7
        return tensor(array)

    shared = sevens()
    noise = [PANDAS.empty_aligned((1000,), np.float32) for _ in range(20)]
    for array in noise:
        array[...] = 1
    assert (shared.numpy() == 7).all()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda a: a[1:], "64-byte boundary"),
        (lambda a: a.T, "C-contiguous"),
        (lambda a: a.astype(np.int32), "int32"),
        (lambda a: a.astype(object), "object"),
    ],
)
def test_what_would_kill_the_process_is_refused_before(made: object, message: str) -> None:
    array = PANDAS.empty_aligned((8, 5), np.float32)
    array[...] = 0
    with pytest.raises(DataError, match=message):
        tensor(made(array))  # type: ignore[operator]


def test_a_read_only_array_is_refused_and_can_be_copied() -> None:
    array = PANDAS.empty_aligned((8,), np.float32)
    array[...] = 1
    array.flags.writeable = False
    with pytest.raises(DataError, match="read-only"):
        tensor(array)
    assert tensor(aligned(array)).numpy().sum() == 8


def test_aligned_copies_only_when_it_must(backend: Backend) -> None:
    array = backend.empty_aligned((64, 3), np.float32)
    array[...] = 2
    assert aligned(array) is array
    copy = aligned(array[1:, :2])
    assert address(copy) % 64 == 0
    assert backend.to_host(copy).tolist() == [[2.0, 2.0]] * 63


def test_an_empty_array_is_an_empty_tensor(backend: Backend) -> None:
    assert tensor(backend.empty_aligned((0, 3), np.float32)).shape == (0, 3)


def test_a_permutation_holds_every_row_once_and_is_its_seeds(backend: Backend) -> None:
    first = permutation(1000, 3, 1, backend.on_gpu).numpy()
    assert sorted(first.tolist()) == list(range(1000))
    assert (permutation(1000, 3, 1, backend.on_gpu).numpy() == first).all()
    for seed, epoch in ((3, 2), (4, 1)):
        assert (permutation(1000, seed, epoch, backend.on_gpu).numpy() != first).any()


def test_shards_are_equal_parts() -> None:
    for batch in (1, 7, 256, 1000, 4096, 4099):
        assert batch % shards(batch, on_gpu=False) == 0
    assert shards(4096, on_gpu=True) == 1
