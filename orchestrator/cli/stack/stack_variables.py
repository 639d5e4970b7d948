# SPDX-License-Identifier: Apache-2.0
"""Variables of compose files with values from the cluster.

For stacks that monitor the cluster:

    ORC_MANAGER        HOST:PORT of a manager's HTTPS server (metrics, service discovery)
    ORC_CA             the certificate of the cluster's CA, PEM
    ORC_SCRAPE_TOKEN   what Prometheus shows to managers and agents
    ORC_CLUSTER        the cluster's id

They are queried when a file first uses one; other definitions of the name take precedence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

NAMES = ("ORC_MANAGER", "ORC_CA", "ORC_SCRAPE_TOKEN", "ORC_CLUSTER")


class Values(Mapping[str, str]):
    """The values of variables: those given, then the cluster's."""

    def __init__(self, given: Mapping[str, str], ask: Callable[[], Mapping[str, str]]) -> None:
        """`ask` returns the cluster's, by name; it is called at most once."""
        self._given = given
        self._ask = ask
        self._told: Mapping[str, str] | None = None

    def __getitem__(self, name: str) -> str:
        if name in self._given or name not in NAMES:
            return self._given[name]
        if self._told is None:
            self._told = self._ask()
        return self._told[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._given
        yield from (name for name in NAMES if name not in self._given)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def placeholders() -> dict[str, str]:
    """Placeholders without a cluster: their own names."""
    return {name: f"({name} of the cluster)" for name in NAMES}
