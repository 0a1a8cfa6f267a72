"""A member that does what its work says, without TensorFlow."""

from __future__ import annotations

import sys
import time
from multiprocessing.connection import Connection


def main() -> None:
    link = Connection(int(sys.argv[1]))
    link.recv()
    what = link.recv_bytes().decode()
    if what == "ends":
        print("I0000 00:00 port.cc:153] small talk", file=sys.stderr)
        print("out of luck", file=sys.stderr)
        print("W0000 00:00 port.cc:153] more of it", file=sys.stderr, flush=True)
        raise SystemExit(3)
    if what == "finds no one":
        while True:
            link.send(("alive", None))
            time.sleep(0.1)
    link.send(("joined", None))
    if what == "finds something":
        link.send(("error", ("StoreError", "a data file is damaged")))
    if what == "works":
        link.send(("advance", (7, "epoch 1")))
        link.send(("result", {"rank": 0}))
    time.sleep(600)


if __name__ == "__main__":
    main()
