# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.chaos.judge FILE`: the verdict on a recorded history, with its evidence."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from tests.chaos.history import History, Violation, read
from tests.chaos.rules.all_rules import violations

SHOWN = 4
"""Lines of evidence shown with a violation."""

SHOWN_VIOLATIONS = 12

WIDTH = 240


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


def judge(path: Path) -> int:
    """Print the verdict; the number of violations."""
    history = read(path)
    found = violations(history)
    print(summary(history))
    if found:
        print(report(path, list(islice(found, SHOWN_VIOLATIONS))))
    print(f"{len(found)} violations")
    return len(found)


if __name__ == "__main__":
    sys.exit(1 if judge(Path(sys.argv[1])) else 0)
