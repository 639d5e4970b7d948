"""The endpoint table's way into the kernel of this node, and what comes back from there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.agent.network.helper import HelperProcess, NetworkError
from orchestrator.cni.balancing.endpointtable import Table, document

TRY_AGAIN_LATER = 11


@dataclass(frozen=True, slots=True)
class Connections:
    """What the kernel tracks: `count` connections of at most `limit`.

    `refused` counts those for which there was no room since the host started: each of them is a
    client that got no answer.
    """

    count: int
    limit: int
    refused: int

    @property
    def full(self) -> bool:
        """Whether new connections are refused, or soon will be."""
        return self.limit > 0 and self.count >= self.limit * 0.95


async def balance(helper: HelperProcess, change: Table, whole: Callable[[], Table]) -> None:
    """Have VIPs, published ports and policies follow the table; returns when the kernel does.

    `change` may be a difference. `whole` gives the complete table, and is called when the helper
    does not hold the one that `change` applies to, because it is new. A change of nothing (`base`
    equal to `revision`) mends what a hand changed in the kernel. Raises `NetworkError`.
    """
    try:
        await helper.request("balance", {"table": document(change)})
    except NetworkError as error:
        if error.code != TRY_AGAIN_LATER or change.base is None:
            raise
        await helper.request("balance", {"table": document(whole())})


async def connections(helper: HelperProcess) -> Connections:
    """How many connections the kernel of this node tracks. Raises `NetworkError`."""
    found = await helper.request("connections", {})
    return Connections(found["count"], found["limit"], found["refused"])
