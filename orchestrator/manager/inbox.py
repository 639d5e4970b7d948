"""What agents said since the leader last looked, newest word of each winning.

Whatever an agent repeats takes the place of what it said before, so reports that wait take no more
room than one of each kind a node.

The dispatcher fills it, the leader's loop empties it: that is how a thousand reports become one
transaction. Nothing here is acknowledged to an agent before the loop has committed it.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, field, fields

from orchestrator.model.nodes import NodeDescription, TunnelKey
from orchestrator.model.objects import Image
from orchestrator.model.tasks import TaskStatus


@dataclass(frozen=True, slots=True)
class NetworkPlugins:
    """What other people's networks can be had by on a node; see `NodeDescription`."""

    cni: tuple[str, ...]
    drivers: dict[str, str]
    ipam: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Hello:
    """What a node claims when its session begins."""

    description: NodeDescription
    boot_id: str
    """Of its host."""
    peer: str = ""
    """The IP address that the session came from; empty: not known."""


@dataclass(slots=True)
class Reports:
    """One loop's worth of reports, by node id."""

    hellos: dict[str, Hello] = field(default_factory=dict)
    """By node id."""
    statuses: dict[str, dict[str, TaskStatus]] = field(default_factory=dict)
    """Node id → task id → newest status."""
    inventories: dict[str, tuple[Image, ...]] = field(default_factory=dict)
    """Node id → all images it has."""
    drivers: dict[str, dict[str, str]] = field(default_factory=dict)
    """Node id → its volume plugins and their scopes."""
    path_mtus: dict[str, int] = field(default_factory=dict)
    """Node id → bytes of the largest packet that gets to each other node."""
    troubles: dict[str, str] = field(default_factory=dict)
    """Node id → what is wrong with the host; empty for nothing."""
    keys: dict[str, tuple[TunnelKey, ...]] = field(default_factory=dict)
    """Node id → its keys for encrypted networks."""
    network_plugins: dict[str, NetworkPlugins] = field(default_factory=dict)
    """By node id."""
    acknowledgements: dict[str, Callable[[], None]] = field(default_factory=dict)
    """Node id → what acknowledges its newest statuses, and with them all that came before."""

    @property
    def acknowledge(self) -> tuple[Callable[[], None], ...]:
        """Called once the reports are committed."""
        return tuple(self.acknowledgements.values())

    def followed_by(self, later: Reports) -> Reports:
        """Both in one, `later` winning."""
        statuses = {node: dict(told) for node, told in self.statuses.items()}
        for node, told in later.statuses.items():
            statuses.setdefault(node, {}).update(told)
        return Reports(
            hellos=self.hellos | later.hellos,
            statuses=statuses,
            inventories=self.inventories | later.inventories,
            drivers=self.drivers | later.drivers,
            path_mtus=self.path_mtus | later.path_mtus,
            troubles=self.troubles | later.troubles,
            keys=self.keys | later.keys,
            network_plugins=self.network_plugins | later.network_plugins,
            acknowledgements=self.acknowledgements | later.acknowledgements,
        )

    def of(self, nodes: Set[str]) -> Reports:
        """The reports of these nodes."""
        found = Reports()
        for each in fields(Reports):
            reports = getattr(self, each.name)
            setattr(found, each.name, {id: reports[id] for id in reports if id in nodes})
        return found


class Inbox:
    """Reports under collection, and when each node was last heard of (in memory only: a new
    leader gives every node a fresh grace)."""

    def __init__(
        self, now: Callable[[], float], listening: Callable[[], float] | None = None
    ) -> None:
        """`now` is a monotonic clock; `listening` the one by which silence is measured, if it is
        another (see `ListeningClock`)."""
        self._now = now
        self._listening = listening or now
        self._reports = Reports()
        self._taken = Reports()
        """What was taken last; it may not have been committed."""
        self._heard: dict[str, float] = {}
        """Node id → when its agent last said anything, by the listening clock."""
        self.on_report: Callable[[], None] = lambda: None
        """Called at each report; the loop's alarm clock."""

    @property
    def waiting(self) -> int:
        """How many words of agents are yet to be taken."""
        told = self._reports
        of_nodes = len(told.hellos) + len(told.inventories) + len(told.drivers)
        return of_nodes + len(told.statuses)

    @property
    def heard(self) -> dict[str, float]:
        """Node id → when its agent last said anything, by the monotonic clock; later by the time in
        which nobody could be heard."""
        now, listening = self._now(), self._listening()
        return {node_id: now - (listening - heard) for node_id, heard in self._heard.items()}

    def hear(self, node_id: str) -> None:
        """Any sign of life."""
        self._heard[node_id] = self._listening()

    def hello(self, node_id: str, hello: Hello) -> None:
        """A session began."""
        self.hear(node_id)
        self._reports.hellos[node_id] = hello
        self.on_report()

    def statuses(
        self, node_id: str, statuses: dict[str, TaskStatus], acknowledge: Callable[[], None]
    ) -> None:
        """Statuses of tasks; `acknowledge` is called when they are in the store."""
        self.hear(node_id)
        self._reports.statuses.setdefault(node_id, {}).update(statuses)
        self._reports.acknowledgements[node_id] = acknowledge
        self.on_report()

    def inventory(self, node_id: str, images: tuple[Image, ...]) -> None:
        """All images that the node has."""
        self.hear(node_id)
        self._reports.inventories[node_id] = images
        self.on_report()

    def volume_drivers(self, node_id: str, scopes: dict[str, str]) -> None:
        """All volume plugins that answer on the node."""
        self.hear(node_id)
        self._reports.drivers[node_id] = scopes
        self.on_report()

    def path_mtu(self, node_id: str, size: int) -> None:
        """Bytes of the largest packet that gets from the node to each other one."""
        self.hear(node_id)
        self._reports.path_mtus[node_id] = size
        self.on_report()

    def trouble(self, node_id: str, words: str) -> None:
        """What is wrong with the node's host; empty for nothing."""
        self.hear(node_id)
        self._reports.troubles[node_id] = words
        self.on_report()

    def tunnel_keys(self, node_id: str, keys: tuple[TunnelKey, ...]) -> None:
        """All keys that the node has for encrypted networks."""
        self.hear(node_id)
        self._reports.keys[node_id] = keys
        self.on_report()

    def network_plugins(self, node_id: str, plugins: NetworkPlugins) -> None:
        """All that other people's networks can be had by on the node."""
        self.hear(node_id)
        self._reports.network_plugins[node_id] = plugins
        self.on_report()

    def take(self) -> Reports:
        """All reports so far; the inbox is empty after it."""
        self._taken, self._reports = self._reports, Reports()
        return self._taken

    def give_back(self, reports: Reports) -> None:
        """Put back what was taken and could not be committed; newer reports replace it."""
        self._reports = reports.followed_by(self._reports)
        self._taken = Reports()

    def begin_term(self) -> None:
        """Another term begins: it gets what the one before has not committed, since sessions go on
        and agents do not repeat themselves, and gives each node a fresh grace period."""
        self._reports = self._taken.followed_by(self._reports)
        self._taken = Reports()
        self._heard = {}
