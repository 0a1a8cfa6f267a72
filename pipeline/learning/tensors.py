"""Device arrays as TensorFlow tensors and back, without a copy; and how TensorFlow is set up in this process.

The only file that imports TensorFlow first: the others take ``tf`` and ``keras`` from here, so that the environment it
reads at import is set in one place. CuPy arrays go through DLPack, and so do NumPy arrays at a 64-byte-aligned address
(``Backend.empty_aligned``). What TensorFlow would answer by killing the process is checked before and raised.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.backend import Array, Backend, backend_of
from pipeline.errors import DataError


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No chatter while TensorFlow is imported, unless the user has set its log level.

    oneDNN announces itself on stderr before TensorFlow's log level is heeded, so the descriptor itself is turned away;
    an import that fails raises all the same.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    sys.stderr.flush()
    kept = os.dup(2)
    away = os.open(os.devnull, os.O_WRONLY)
    os.dup2(away, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(away)


os.environ.setdefault("TF_GPU_ALLOCATOR", "cuda_malloc_async")
os.environ["KERAS_BACKEND"] = "tensorflow"

with _quiet():
    import tensorflow as tf  # isort: skip
    import keras  # isort: skip

# Every client's model traces graphs of its own; TensorFlow takes that for a mistake and says so at length.
tf.get_logger().setLevel("ERROR")

__all__ = ["configure", "keras", "permutation", "shards", "tensor", "tf", "to_array"]

ALIGNMENT = 64  # bytes; TensorFlow aborts the process on less
DTYPES = ("float32", "float64", "int64", "int8", "uint8")
SMALLEST_SHARD = 512  # rows; below this an operation's overhead outweighs its work


@functools.cache
def configure() -> None:
    """Set TensorFlow's threads and GPU memory, once, before its first operation; without effect after that.

    On the CPU the training step is cut into independent shards of the batch (:func:`shards`) that run side by side,
    each operation on one thread: small matrix products split over threads spend half of their time on the split
    (measured: 0.25 s an epoch instead of 0.37 s, 1M rows x 32, 2 cores).
    """
    try:
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
        if "TF_NUM_INTRAOP_THREADS" not in os.environ:
            tf.config.threading.set_intra_op_parallelism_threads(max(1, cores() // 8))
            tf.config.threading.set_inter_op_parallelism_threads(min(cores(), 8) + 1)
    except RuntimeError:
        return  # somebody used TensorFlow before us: it works all the same, a little slower


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shards(batch: int, on_gpu: bool) -> int:
    """Into how many equal parts a step cuts its batch: at most one per core (and 8), 1 on a GPU."""
    if on_gpu:
        return 1
    fit = [k for k in range(1, min(cores(), 8) + 1) if batch % k == 0 and batch // k >= SMALLEST_SHARD]
    return max(fit, default=1)


def tensor(array: Array) -> Any:
    """A tensor over the array's own memory: no copy, on the array's device.

    The tensor keeps the array alive. Writing to the array changes the tensor, so do not while it is in use.

    Args:
        array: NumPy or CuPy; float32, float64, int64, int8 or uint8; C-contiguous; 64-byte aligned, which whole
            allocations of CuPy and of ``Backend.empty_aligned`` are, and slices of them usually are not.
    Raises:
        DataError: for anything else.
    """
    configure()
    backend = backend_of(array)
    if str(array.dtype) not in DTYPES:
        raise DataError(f"cannot share an array of {array.dtype} with TensorFlow; expected one of {', '.join(DTYPES)}")
    if array.size == 0:
        return tf.zeros(array.shape, dtype=str(array.dtype))
    if not array.flags.c_contiguous:
        raise DataError(f"cannot share an array of strides {array.strides} with TensorFlow; expected C-contiguous")
    offset = address(array) % ALIGNMENT
    if offset:
        raise DataError(
            f"cannot share an array with TensorFlow that lies {offset} bytes after a {ALIGNMENT}-byte boundary; "
            "allocate it whole with backend.empty_aligned, and slice inside TensorFlow"
        )
    if not backend.on_gpu and not array.flags.writeable:
        raise DataError("cannot share a read-only array with TensorFlow; allocate it with backend.empty_aligned")
    backend.synchronize()  # TensorFlow has streams of its own and does not wait for CuPy's
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def address(array: Array) -> int:
    """The address of the first element."""
    return int(array.data.ptr) if backend_of(array).on_gpu else int(array.ctypes.data)


def aligned(array: Array, dtype: Any = np.float32) -> Array:
    """The array itself where :func:`tensor` takes it, otherwise an aligned C-contiguous copy on the same device."""
    ready = array.dtype == dtype and array.flags.c_contiguous and not address(array) % ALIGNMENT
    if ready and getattr(array.flags, "writeable", True):
        return array
    copy = backend_of(array).empty_aligned(array.shape, dtype)
    copy[...] = array
    return copy


def to_array(values: Any, backend: Backend) -> Array:
    """A tensor as the backend's array, sharing its memory; on the GPU it does not leave the device."""
    if not backend.on_gpu:
        return values.numpy()
    tf.experimental.sync_devices()
    return backend.xp.from_dlpack(values)


def permutation(n: int, seed: int, epoch: int, on_gpu: bool) -> Any:
    """A random order of n rows on the device; the same for the same seed and epoch, so a resumed run continues it.

    Returns: int32[n] on the CPU, int64[n] on a GPU (TensorFlow keeps int32 on the host).
    """
    if not on_gpu:
        order = np.arange(n, dtype=np.int32 if n < 2**31 else np.int64)
        np.random.default_rng([seed, epoch]).shuffle(order)
        return tf.convert_to_tensor(order)
    return _sorted_noise(n, tf.constant([seed, epoch], dtype=tf.int64))


@functools.cache
def _noise_sorter(n: int) -> Any:
    def order(seed: Any) -> Any:
        noise = tf.random.stateless_uniform((n,), seed, minval=None, maxval=None, dtype=tf.int32)
        return tf.cast(tf.argsort(noise, stable=True), tf.int64)

    return tf.function(order, jit_compile=True)  # XLA sorts on the device; TensorFlow's own op goes through top_k


def _sorted_noise(n: int, seed: Any) -> Any:
    return _noise_sorter(n)(seed)
