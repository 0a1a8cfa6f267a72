"""The processes that train one model together, and what each of them asks of the others.

TensorFlow's MultiWorkerMirroredStrategy sets up the collective operations (a ring over gRPC between CPUs, NCCL between
GPUs) and watches over the members: where one dies or stops, the others' next operation raises. Nothing else of it is
used, since Keras 3 does not train under it: variables are each process's own, and stay equal because all of them start
equal and take the same steps. What is added is added once, in one order, so all members see the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.learning.tensors import configure, tf

TIMEOUT = 3600  # seconds that a member waits for what another computes; one that died is noticed within seconds


class Group:
    """A process that trains alone: nobody to ask.

    ``rank``: its number; ``size``: how many there are; ``neighbours``: how many of them share its machine.
    """

    rank, size, neighbours = 0, 1, 1

    def add(self, tensors: Sequence[Any]) -> list[Any]:
        """The sums over all members of float32 tensors; inside a ``tf.function``."""
        return list(tensors)

    def sum(self, array: np.ndarray) -> np.ndarray:
        """The sum over all members of an array of numbers on the host, of one shape and dtype everywhere."""
        return array

    def exchange(self, value: Any) -> list[Any]:
        """Every member's value, plain as in JSON, by rank."""
        return [value]


ALONE = Group()


class Together(Group):
    """One of several processes. To be made before TensorFlow's first operation.

    Args:
        addresses: ``host:port`` of every member, by rank; all of them free, each on its member's machine.
        on_gpu: whether tensors are on a GPU, so that NCCL carries them.
        neighbours: members on this machine.
    """

    def __init__(self, rank: int, addresses: Sequence[str], on_gpu: bool, neighbours: int) -> None:
        configure()
        self.rank, self.size, self.neighbours = rank, len(addresses), neighbours
        distribute = tf.distribute
        kinds = distribute.experimental.CommunicationImplementation
        where = distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({"worker": list(addresses)}), task_type="worker", task_id=rank, rpc_layer="grpc"
        )
        how = distribute.experimental.CommunicationOptions(
            implementation=kinds.NCCL if on_gpu else kinds.RING, timeout_seconds=TIMEOUT
        )
        self._strategy = distribute.MultiWorkerMirroredStrategy(where, how)
        self._sums: dict[str, Any] = {}

    def _all_reduce(self, x: Any) -> Any:
        def summed(x: Any) -> Any:
            # The copy is placed on the member's device, as the strategy wants it.
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(x))

        return self._strategy.run(summed, args=(x,))

    def add(self, tensors: Sequence[Any]) -> list[Any]:
        tensors = [tf.convert_to_tensor(x) for x in tensors]
        together = self._all_reduce(tf.concat([tf.reshape(x, (-1,)) for x in tensors], axis=0))
        parts = tf.split(together, [int(np.prod(x.shape)) for x in tensors])
        return [tf.reshape(part, x.shape) for part, x in zip(parts, tensors, strict=True)]

    def sum(self, array: np.ndarray) -> np.ndarray:
        array = np.asarray(array)
        dtype = array.dtype if array.dtype.kind == "f" else np.dtype(np.int64)
        if dtype.name not in self._sums:
            signature = [tf.TensorSpec((None,), dtype.name)]
            self._sums[dtype.name] = tf.function(self._all_reduce, input_signature=signature)
        total = self._sums[dtype.name](array.reshape(-1).astype(dtype)).numpy()
        return np.asarray(total).astype(array.dtype).reshape(array.shape)

    def exchange(self, value: Any) -> list[Any]:
        text = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
        lengths = np.zeros(self.size, dtype=np.int64)
        lengths[self.rank] = len(text)
        lengths = self.sum(lengths)
        texts = np.zeros((self.size, lengths.max()), dtype=np.float32)  # whole numbers up to 255 are exact in it
        texts[self.rank, : len(text)] = text
        texts = self.sum(texts).astype(np.uint8)
        return [json.loads(texts[rank, :n].tobytes()) for rank, n in enumerate(lengths.tolist())]
