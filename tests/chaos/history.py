# SPDX-License-Identifier: Apache-2.0
"""The history of a run: what was recorded, as lines of JSON and as dataclasses.

Times are seconds since the run began, on the machine's monotonic clock: steps of the wall clock do
not reorder the history. Each record knows its line, so that a violation can name its evidence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["ok", "refused", "unknown"]
"""A refused call certainly had no effect; one with an unknown outcome may have had it, or may have
it later."""

FOREVER = math.inf


@dataclass(frozen=True, slots=True)
class Run:
    """How the run was started. `node_timeout` in seconds: silence after which a node is down."""

    seed: int
    minutes: float
    managers: int
    nodes: int
    node_timeout: float
    line: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the API, by one client to one manager.

    `target` is the object, such as `service/web`. A write stores a `tag` that no other call uses;
    a read, or the reply to a write, has the `version` and the tag (`value`) of what is stored.
    `base` is the version on which a guarded write is based, 0: unguarded.
    """

    client: str
    manager: str
    method: str
    target: str
    began: float
    ended: float
    outcome: Outcome
    tag: str = ""
    base: int = 0
    object: str = ""
    version: int = 0
    value: str = ""
    error: str = ""
    line: int = 0

    @property
    def is_read(self) -> bool:
        return self.method.startswith(("List", "Get"))


@dataclass(frozen=True, slots=True)
class Change:
    """A key written or deleted (`deleted`) by a commit, with the fields that rules read.

    `kind` is the store's: `tasks`, `services`, `nodes`, `leader`, `sequence`, ...
    """

    kind: str
    id: str
    deleted: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Commit:
    """All changes of one revision, as the etcd member beside `manager` delivered them."""

    at: float
    manager: str
    revision: int
    changes: tuple[Change, ...]
    line: int = 0


@dataclass(frozen=True, slots=True)
class Container:
    """The first process of a container on a host, from its start to its end. `ended` is FOREVER for
    one that still runs."""

    host: str
    task: str
    name: str
    pid: int
    began: float
    ended: float
    line: int = 0


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault from its injection to its end (`ended`: when the cause was removed).

    `kills` are hosts on which it may end containers, `cuts` those whose agent may be silent,
    `slows` those that may lose packets of containers or requests. All three are empty for a fault
    of managers only.
    """

    name: str
    targets: tuple[str, ...]
    began: float
    ended: float
    kills: tuple[str, ...] = ()
    cuts: tuple[str, ...] = ()
    slows: tuple[str, ...] = ()
    detail: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """A request to a service from outside (`via` a host's published port) or through its VIP."""

    service: str
    via: str
    began: float
    ended: float
    ok: bool
    error: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a followed log, as one command (`reading`) printed it."""

    at: float
    reading: str
    text: str
    line: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """An event that the cluster reported."""

    at: float
    type: str
    action: str
    id: str
    name: str
    node: str
    line: int = 0


@dataclass(frozen=True, slots=True)
class Converged:
    """How long after the last fault, in seconds, the cluster had what its users declared; `missing`
    says what it still lacked when the harness gave up (empty: nothing)."""

    seconds: float
    missing: tuple[str, ...] = ()
    line: int = 0


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something on a host, or in the store, that no object accounts for after the run."""

    host: str
    kind: str
    name: str
    line: int = 0


@dataclass(frozen=True, slots=True)
class Crash:
    """An error that ended a daemon and that it had not expected, as its log has it."""

    host: str
    log: str
    text: str
    line: int = 0


Record = (
    Run | Call | Commit | Container | Fault | Request | Line | Event | Converged | Leftover | Crash
)

_KINDS: dict[str, type[Any]] = {
    kind.__name__.lower(): kind
    for kind in (
        *(Run, Call, Commit, Container, Fault, Request, Line, Event, Converged, Leftover, Crash),
    )
}


@dataclass(frozen=True, slots=True)
class History:
    """All records, by kind, in the order of their lines."""

    run: Run
    calls: tuple[Call, ...] = ()
    commits: tuple[Commit, ...] = ()
    containers: tuple[Container, ...] = ()
    faults: tuple[Fault, ...] = ()
    requests: tuple[Request, ...] = ()
    lines: tuple[Line, ...] = ()
    events: tuple[Event, ...] = ()
    converged: tuple[Converged, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    crashes: tuple[Crash, ...] = ()


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that does not hold, with the lines of the history that show it."""

    rule: str
    text: str
    lines: tuple[int, ...]


def dump(record: Record) -> str:
    """One line of JSON."""
    document = {"record": type(record).__name__.lower(), **asdict(record)}
    del document["line"]
    return json.dumps(_finite(document), separators=(",", ":"))


def _finite(document: dict[str, Any]) -> dict[str, Any]:
    return {key: None if value == FOREVER else value for key, value in document.items()}


def _parse(text: str, line: int) -> Record:
    document = json.loads(text)
    kind = _KINDS[document.pop("record")]
    if "changes" in document:
        document["changes"] = tuple(Change(**change) for change in document["changes"])
    for each in fields(kind):
        value = document.get(each.name)
        if isinstance(value, list):
            document[each.name] = tuple(value)
        elif value is None and each.name == "ended":
            document[each.name] = FOREVER
    record: Record = kind(**document, line=line)
    return record


def history_of(records: Iterable[Record]) -> History:
    """Group records by kind. Raises ValueError without a `Run`."""
    found: dict[type[Any], list[Any]] = {}
    for record in records:
        found.setdefault(type(record), []).append(record)
    runs: Sequence[Run] = found.get(Run, [])
    if len(runs) != 1:
        raise ValueError(f"a history has one record 'run', not {len(runs)}")

    def all_of(kind: type[Any]) -> tuple[Any, ...]:
        return tuple(found.get(kind, ()))

    return History(
        runs[0],
        all_of(Call),
        all_of(Commit),
        all_of(Container),
        all_of(Fault),
        all_of(Request),
        all_of(Line),
        all_of(Event),
        all_of(Converged),
        all_of(Leftover),
        all_of(Crash),
    )


def numbered(records: Iterable[Record]) -> Iterator[Record]:
    """The same records with the lines that they have in a file."""
    for number, record in enumerate(records, start=1):
        yield _parse(dump(record), number)


def read(path: Path) -> History:
    """The history in a file. Raises ValueError for a line that is no record."""
    with path.open() as file:
        return history_of(_parse(text, number) for number, text in enumerate(file, start=1))
