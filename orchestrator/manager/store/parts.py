"""The plans of one round as parts that can be written, and fail, one without the other.

Plans that change the same object are one part. A part *needs* another one if it has read what that
one changes, or takes room on a node that it frees: it is written with it or after it, or not at
all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.manager.planning.plan import Change, Decision
from orchestrator.manager.planning.resources import occupies
from orchestrator.manager.store.commit import Encoded, encoded
from orchestrator.manager.store.keys import object_key
from orchestrator.model.objects import Object
from orchestrator.model.tasks import Task

_TASKS = object_key(Task(id=""))

Attribute = Callable[[Mapping[str, Change]], Iterable[Change]]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Changes that belong together, in the order in which they may be cut."""

    changes: Sequence[Change]
    encoded: Sequence[Encoded]
    reads: Mapping[str, int]
    """Key → revision of what all of them have read."""
    owners: frozenset[str]
    """Ids of the services and standalone containers that it is about."""
    needs: set[Part] = field(default_factory=set)


@dataclass(slots=True)
class _Draft:
    order: int
    changes: dict[str, Change] = field(default_factory=dict)
    reads: dict[str, Object] = field(default_factory=dict)
    own_reads: dict[str, Sequence[Object]] = field(default_factory=dict)
    owners: set[str] = field(default_factory=set)

    def take(self, other: _Draft) -> None:
        """Add what was decided after it."""
        for key, change in other.changes.items():
            earlier = self.changes.pop(key, None)
            if earlier is None:
                self.changes[key] = change
            elif earlier.before is not None or change.after is not None:
                self.changes[key] = Change(earlier.before, change.after)
        for key, item in other.reads.items():
            self.reads.setdefault(key, item)
        self.own_reads.update(other.own_reads)
        self.owners |= other.owners


def _as_they_are(changes: Mapping[str, Change]) -> Iterable[Change]:
    return changes.values()


def parts(plans: Iterable[Decision], attribute: Attribute = _as_they_are) -> list[Part]:
    """The parts of these plans, in an order in which they may be written.

    Of an object that several plans change, the first `before` and the last `after` count.
    `attribute` completes all changes of the round, by key, before they are encoded.
    """
    drafts: dict[int, _Draft] = {}
    holder: dict[str, _Draft] = {}
    for number, plan in enumerate(plans):
        draft = _draft(number, plan)
        # By order, not by key: the same plans give the same parts.
        same = {id(each): each for key in draft.changes if (each := holder.get(key))}
        merged = _Draft(number)
        for each in sorted(same.values(), key=lambda each: each.order):
            del drafts[each.order]
            merged.take(each)
        merged.take(draft)
        drafts[number] = merged
        for key in merged.changes:
            holder[key] = merged
    folded = {key: change for draft in drafts.values() for key, change in draft.changes.items()}
    final = {object_key(change.subject): change for change in attribute(folded)}
    made = [_part(draft, final) for draft in drafts.values() if draft.changes]
    _relate(made)
    return _sorted(made)


def _draft(number: int, plan: Decision) -> _Draft:
    return _Draft(
        number,
        {object_key(change.subject): change for change in plan.changes},
        {object_key(item): item for item in plan.requires},
        {_TASKS + id: read for id, read in plan.reads.items()},
        {plan.owner} if plan.owner else set(),
    )


def _part(draft: _Draft, final: Mapping[str, Change]) -> Part:
    changes = [final[key] for key in draft.changes]
    return Part(
        changes,
        [
            encoded(change, draft.own_reads.get(key, ()))
            for key, change in zip(draft.changes, changes, strict=True)
        ],
        {key: item.revision for key, item in draft.reads.items()},
        frozenset(draft.owners),
    )


def _relate(made: Sequence[Part]) -> None:
    """Note which part needs which."""
    changer = {each.key: part for part in made for each in part.encoded}
    frees: dict[str, list[Part]] = {}
    for part in made:
        for node_id in {_freed(change) for change in part.changes}:
            frees.setdefault(node_id, []).append(part)
    for part in made:
        read = [*part.reads, *(key for each in part.encoded for key in each.reads)]
        part.needs.update(changer[key] for key in read if key in changer)
        for node_id in {_taken(change) for change in part.changes} - {""}:
            part.needs.update(frees.get(node_id, ()))
        part.needs.discard(part)


def _freed(change: Change) -> str:
    """Id of the node on which the change makes room."""
    before, after = change.before, change.after
    if isinstance(before, Task) and occupies(before):
        return before.node_id if not (isinstance(after, Task) and occupies(after)) else ""
    return ""


def _taken(change: Change) -> str:
    """Id of the node on which the change takes room."""
    before, after = change.before, change.after
    if isinstance(after, Task) and occupies(after):
        return after.node_id if not (isinstance(before, Task) and occupies(before)) else ""
    return ""


def _sorted(made: Sequence[Part]) -> list[Part]:
    """What is needed before what needs it; else, and in circles, as they were decided."""
    done: dict[int, Part] = {}
    begun: set[int] = set()
    number = {id(part): place for place, part in enumerate(made)}
    for first in made:
        stack = [first]
        while stack:
            part = stack[-1]
            if id(part) in done:
                stack.pop()
                continue
            begun.add(id(part))
            left = [each for each in part.needs if id(each) not in begun]
            if left:
                stack.append(min(left, key=lambda each: number[id(each)]))
            else:
                done[id(stack.pop())] = part
    return list(done.values())
