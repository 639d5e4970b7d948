# SPDX-License-Identifier: Apache-2.0
"""Leadership terms do not overlap in effect, and the members of etcd agree.

Every transaction of a leader writes a mark with its term (the create revision of the election key)
and a count. So a plan that a deposed leader committed shows: its mark names a term that is not the
one whose key is in the store.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.history import Commit, History, Violation
from tests.chaos.rules.timeline import replay

RULE = "terms"


def check(history: History) -> Iterator[Violation]:
    """All of this module's rules."""
    yield from _terms(history)
    yield from _members(history)


def _terms(history: History) -> Iterator[Violation]:
    """A write of a term comes while its key is there, and after those of earlier terms."""
    leader, elected = 0, 0
    newest, count, seen = 0, 0, 0
    for commit, change, _, _ in replay(history):
        if change.kind == "leader":
            leader = 0 if change.deleted else int(change.fields["term"])
            elected = commit.line
        if change.kind != "sequence" or change.deleted:
            continue
        term, number = int(change.fields["term"]), int(change.fields["count"])
        if term != leader and elected:
            text = f"term {term} wrote while the leader was of term {leader}"
            yield Violation(RULE, text, (elected, commit.line))
        if term < newest:
            text = f"term {term} wrote after term {newest}"
            yield Violation(RULE, text, (seen, commit.line))
        elif term == newest and number <= count:
            text = f"write {number} of term {term} took effect after its write {count}"
            yield Violation(RULE, text, (seen, commit.line))
        if term >= newest:
            newest, count, seen = term, number, commit.line


def _members(history: History) -> Iterator[Violation]:
    """A revision has the same content at every member."""
    first: dict[int, Commit] = {}
    for commit in history.commits:
        other = first.setdefault(commit.revision, commit)
        if other.changes != commit.changes:
            text = (
                f"revision {commit.revision} differs between the etcd members of {other.manager} "
                f"and {commit.manager}"
            )
            yield Violation(RULE, text, (other.line, commit.line))
