"""Which rows an address or a user agent gives away as a machine's. Neither is kept."""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline.events.flags import LISTED_ADDRESS, LISTED_AGENT, PRIVACY_AGENT
from pipeline.events.schema import numpy_of
from pipeline.options import Quality


def listed(address: Any | None, agent: Any | None, quality: Quality) -> np.ndarray | None:
    """The bits of flags.py for each row; None where none is listed.

    Args:
        address, agent: Arrow dictionary arrays[n] of text, None where the log has none.
    Returns:
        int32[n].
    """
    found: np.ndarray | None = None
    agents = [name.casefold() for name in quality.machine_agents]
    privacy = set(quality.privacy_agents)
    tests: list[tuple[Any, int, Callable[[str], bool]]] = []
    if address is not None and quality.machine_addresses:
        tests.append((address, LISTED_ADDRESS, within(quality.machine_addresses)))
    if agent is not None:
        tests.append((agent, LISTED_AGENT, lambda name: any(part in name.casefold() for part in agents)))
        tests.append((agent, PRIVACY_AGENT, lambda name: name in privacy))
    for column, bit, test in tests:
        chosen = np.array([*(v is not None and test(v) for v in column.dictionary.to_pylist()), False])
        if chosen.any():
            found = np.zeros(len(column), dtype=np.int32) if found is None else found
            found |= np.where(chosen[numpy_of(column.indices, -1)], bit, 0).astype(np.int32)
    return found


def within(networks: Sequence[str]) -> Callable[[str], bool]:
    """A test of whether an address, as text, lies in any of the networks; what is no address does not."""
    ranges: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
    collapsed = [ipaddress.ip_network(n) for n in networks]
    for version in (4, 6):
        same: Any = [n for n in collapsed if n.version == version]
        for network in ipaddress.collapse_addresses(same):  # disjoint and ascending
            ranges[version].append((int(network.network_address), int(network.broadcast_address)))
    firsts = {version: [first for first, _ in some] for version, some in ranges.items()}

    def test(text: str) -> bool:
        try:
            one = ipaddress.ip_address(text.strip())
        except ValueError:
            return False
        if one.version == 6 and one.ipv4_mapped is not None:
            one = one.ipv4_mapped
        at = bisect_right(firsts[one.version], int(one)) - 1
        return at >= 0 and int(one) <= ranges[one.version][at][1]

    return test
