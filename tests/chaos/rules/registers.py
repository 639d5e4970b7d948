# SPDX-License-Identifier: Apache-2.0
"""Specs are linearizable registers, and no acknowledged write is lost.

Versions (the store's revisions) make the check simple: they are the order in which writes took
effect, so a history is linearizable if that order agrees with real time (Herlihy and Wing,
"Linearizability", 1990), and if each value was written by one call, once. A write with an unknown
outcome may be anywhere after its invocation, or nowhere. Managers write the object, too (the
progress of an update): such a version has the tag of the one before it.

Reads are answered from the cache of the manager that is asked, which has all that this manager has
acknowledged: two operations through one manager are ordered, and so are a client's own. A read
through another manager may be older; a write never is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.chaos.history import Call, History, Violation
from tests.chaos.rules.timeline import commits

RULE = "registers"


Stored = dict[str, dict[int, tuple[str, int]]]
"""Object → version → (tag, line of the commit), as the store had it."""


def check(history: History) -> Iterator[Violation]:
    """All of this module's rules, for each object."""
    by_target: dict[str, list[Call]] = defaultdict(list)
    for call in history.calls:
        by_target[call.target].append(call)
    stored, objects = _stored(history)
    yield from _created(history)
    for target, calls in by_target.items():
        own = {name: stored[name] for name in objects.get(target, set())}
        yield from _values(target, calls)
        yield from _versions(target, calls, own)
        yield from _once(target, calls, own)
        yield from _order(target, calls)
        yield from _removals(target, calls)


def _stored(history: History) -> tuple[Stored, dict[str, set[str]]]:
    """What the store had, and the ids of the objects that a target was."""
    found: Stored = defaultdict(dict)
    objects: dict[str, set[str]] = defaultdict(set)
    for commit in commits(history):
        for change in commit.changes:
            if "tag" in change.fields:
                found[change.id][commit.revision] = (change.fields["tag"], commit.line)
                objects[f"service/{change.fields['name']}"].add(change.id)
    return found, objects


_STORED_AS = {"network": "networks", "secret": "documents"}
"""Kind of a target → kind of its key."""


def _created(history: History) -> Iterator[Violation]:
    """Networks and secrets whose creation was acknowledged have been in the store."""
    if not history.commits:
        return
    names = {
        (change.kind, change.fields.get("name"))
        for commit in history.commits
        for change in commit.changes
        if change.kind in _STORED_AS.values() and not change.deleted
    }
    for call in history.calls:
        kind, _, name = call.target.partition("/")
        if call.outcome != "ok" or not call.method.startswith("Create") or kind not in _STORED_AS:
            continue
        if (_STORED_AS[kind], name) not in names:
            text = f"{call.method} of {call.target} was acknowledged, and it was never stored"
            yield Violation(RULE, text, (call.line,))


def _values(target: str, calls: list[Call]) -> Iterator[Violation]:
    """What is read was written, by a call that was not refused and had begun."""
    writers = {call.tag: call for call in calls if call.tag}
    for call in calls:
        if not call.value:
            continue
        writer = writers.get(call.value)
        if writer is None:
            text = f"{call.method} of {target} returned {call.value!r}, which no call wrote"
            yield Violation(RULE, text, (call.line,))
        elif writer.outcome == "refused":
            text = f"{call.method} of {target} returned {call.value!r}, whose write was refused"
            yield Violation(RULE, text, (writer.line, call.line))
        elif writer.began > call.ended:
            text = f"{call.method} of {target} returned {call.value!r} before it was written"
            yield Violation(RULE, text, (writer.line, call.line))


def _versions(target: str, calls: list[Call], stored: Stored) -> Iterator[Violation]:
    """One value per version; acknowledged writes are in the store, each on the version that it was
    based on."""
    seen: dict[tuple[str, int], Call] = {}
    for call in calls:
        if call.outcome != "ok" or not call.version:
            continue
        first = seen.setdefault((call.object, call.version), call)
        if first.value != call.value:
            text = f"version {call.version} of {target} is both {first.value!r} and {call.value!r}"
            yield Violation(RULE, text, (first.line, call.line))
        versions = stored.get(call.object)
        if versions is None or not call.tag:
            continue
        tag, line = versions.get(call.version, ("", 0))
        if tag != call.tag:
            text = (
                f"{call.method} of {target} was acknowledged as version {call.version}, but the "
                f"store never had {call.tag!r} there (it had {tag!r}): the write is lost"
            )
            yield Violation(RULE, text, (call.line, line) if line else (call.line,))
        if call.base not in versions:
            continue
        base = versions[call.base][0]
        for version, (other, at) in versions.items():
            if call.base < version < call.version and other != base:
                text = (
                    f"{call.method} of {target} was based on version {call.base} and became "
                    f"{call.version}, but {other!r} was written in between: that update is lost"
                )
                yield Violation(RULE, text, (call.line, at))


def _once(target: str, calls: list[Call], stored: Stored) -> Iterator[Violation]:
    """A write takes effect at most once; one that was acknowledged, once."""
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for versions in stored.values():
        last = None
        for version, (tag, line) in sorted(versions.items()):
            if tag != last:
                places[tag].append((version, line))
            last = tag
    for call in calls:
        if not call.tag or not stored:
            continue
        found = places.get(call.tag, [])
        if len(found) > 1:
            text = f"{call.tag!r} of {target} was applied twice: versions {[v for v, _ in found]}"
            yield Violation(RULE, text, (call.line, *(line for _, line in found)))
        if not found and call.outcome == "ok" and not call.version:
            text = f"{call.method} of {target} was acknowledged, and {call.tag!r} was never stored"
            yield Violation(RULE, text, (call.line,))
        if found and call.outcome == "refused":
            text = f"{call.method} of {target} was refused, and {call.tag!r} was stored"
            yield Violation(RULE, text, (call.line, found[0][1]))


def _order(target: str, calls: list[Call]) -> Iterator[Violation]:
    """Versions agree with real time."""
    done = [call for call in calls if call.outcome == "ok" and call.version]
    done.sort(key=lambda call: call.began)
    for later in done:
        for earlier in done:
            if earlier.ended >= later.began or earlier.object != later.object:
                continue
            if not _is_ordered(earlier, later):
                continue
            least = earlier.version if later.is_read else earlier.version + 1
            if later.version < least:
                text = (
                    f"{later.method} of {target} returned version {later.version} after "
                    f"{earlier.method} had returned {earlier.version}"
                )
                yield Violation(RULE, text, (earlier.line, later.line))
                return


def _is_ordered(earlier: Call, later: Call) -> bool:
    """Whether the later call must see the effect of the earlier one."""
    if not later.is_read:
        return True
    return earlier.manager == later.manager


def _removals(target: str, calls: list[Call]) -> Iterator[Violation]:
    """An acknowledged object stays until it is removed, and does not come back."""
    removals = [call for call in calls if call.method.startswith("Remove")]
    for created in calls:
        if not created.method.startswith("Create") or created.outcome != "ok":
            continue
        for read in calls:
            if not read.is_read or read.outcome != "ok" or read.manager != created.manager:
                continue
            if read.began <= created.ended:
                continue
            if not read.version and not any(
                call.outcome != "refused" and call.began < read.ended for call in removals
            ):
                text = f"{target} was created, nothing removed it, and it is not found"
                yield Violation(RULE, text, (created.line, read.line))
                break
    for removed in removals:
        if removed.outcome != "ok" or not removed.object:
            continue
        for read in calls:
            ordered = read.is_read and read.manager == removed.manager
            if ordered and read.began > removed.ended and read.object == removed.object:
                text = f"{target} was removed, and is returned as version {read.version}"
                yield Violation(RULE, text, (removed.line, read.line))
                break
