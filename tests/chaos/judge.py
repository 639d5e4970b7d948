# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.chaos.judge FILE`: the verdict on a recorded history, with its evidence."""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from tests.chaos.history import History, Violation, read
from tests.chaos.rules.all_rules import violations
from tests.chaos.rules.timeline import commits

SHOWN = 4
"""Lines of evidence shown with a violation."""

SHOWN_VIOLATIONS = 12

WIDTH = 240

RECENT = 2.0
"""Seconds before a leader's last decision in which the fault that ended its term may have begun."""


def report(path: Path, found: Sequence[Violation]) -> str:
    """The violations, each with the first lines of the history that show it."""
    wanted = {line for each in found for line in each.lines[:SHOWN]}
    with path.open() as file:
        lines = {
            number: text.rstrip()[:WIDTH]
            for number, text in enumerate(file, start=1)
            if number in wanted
        }
    blocks = []
    for each in found:
        evidence = [f"    {path}:{line}: {lines.get(line, '')}" for line in each.lines[:SHOWN]]
        blocks.append("\n".join([f"{each.rule}: {each.text}", *evidence]))
    return "\n".join(blocks)


def summary(history: History) -> str:
    """What the history holds, in one line."""
    outcomes = Counter(call.outcome for call in history.calls)
    failed = sum(not request.ok for request in history.requests)
    return (
        f"seed {history.run.seed}: {len(history.faults)} faults, {len(history.calls)} calls "
        f"({outcomes['refused']} refused, {outcomes['unknown']} unknown), "
        f"{len({commit.revision for commit in history.commits})} commits, "
        f"{len(history.containers)} containers, {len(history.requests)} requests ({failed} failed)"
    )


def failovers(history: History) -> tuple[list[float], int]:
    """For each change of the leader that a manager's fault preceded: seconds from the fault to the
    new leader's first decision, sorted. And the number of changes without such a fault."""
    faults = [each.began for each in history.faults if each.targets[0].startswith("manager")]
    found: list[float] = []
    others, term, last = 0, 0, 0.0
    for commit in commits(history):
        for change in commit.changes:
            if change.kind != "sequence" or change.deleted:
                continue
            if change.fields["term"] != term:
                recent = [began for began in faults if last - RECENT <= began <= commit.at]
                if recent:
                    found.append(commit.at - min(recent))
                elif term:
                    others += 1
            term, last = change.fields["term"], commit.at
    return sorted(found), others


def judge(path: Path) -> int:
    """Print the verdict; the number of violations."""
    history = read(path)
    found = violations(history)
    print(summary(history))
    times, others = failovers(history)
    if times:
        print(
            f"{len(times)} new leaders after faults of managers, first decision after "
            f"{statistics.median(times):.1f} s (median), {times[-1]:.1f} s (worst); "
            f"{others} new leaders without a fault"
        )
    if found:
        print(report(path, list(islice(found, SHOWN_VIOLATIONS))))
    print(f"{len(found)} violations")
    return len(found)


if __name__ == "__main__":
    sys.exit(1 if judge(Path(sys.argv[1])) else 0)
