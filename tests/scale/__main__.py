# SPDX-License-Identifier: Apache-2.0
"""`make scale ARGS="--nodes 500 --tasks 5000"`: how a manager bears many nodes and tasks."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from tests.bench.tables import MIB, Table, render
from tests.scale.scenario import Outcome, Scenario, run


def main() -> None:
    parser = argparse.ArgumentParser(prog="make scale", description=__doc__)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--services", type=int, default=20, help="that the tasks belong to")
    parser.add_argument("--seconds", type=float, default=300.0, help="that each phase may take")
    parser.add_argument("--burn", action="store_true", help="other processes use all cores")
    parser.add_argument("--reconnect", action="store_true", help="break all sessions at once")
    parser.add_argument("--external-etcd", action="store_true", help="with its default limits")
    parser.add_argument("--folder", type=Path, help="keep the manager's log and data there")
    given = parser.parse_args()
    scenario = Scenario(**vars(given))
    print(render(_table(scenario, asyncio.run(run(scenario)))))


def _table(scenario: Scenario, outcome: Outcome) -> Table:
    def seconds(value: float | None) -> str:
        return "not in time" if value is None else f"{value:.1f} s"

    answers = sorted(outcome.answers) or [0.0]
    late = f"{answers[len(answers) * 99 // 100]:.2f} s / {answers[-1]:.2f} s"
    rows = [
        ("nodes in session after", seconds(outcome.joined)),
        ("all tasks running after", seconds(outcome.converged)),
        ("sessions at the end", str(outcome.sessions)),
        ("sessions lost", str(outcome.lost)),
        ("attempts that failed", str(outcome.failed)),
        ("leadership changes", str(max(0, outcome.elections - 1))),
        ("nodes called down", str(outcome.down)),
        ("tasks replaced", str(outcome.replaced)),
        ("running tasks stopped", str(outcome.stopped)),
        ("running at the end", f"{outcome.running} of {scenario.tasks}"),
        ("manager's CPU", f"{outcome.cpu:.1f} s"),
        ("manager's memory", f"{outcome.memory / MIB:.0f} MiB"),
        ("API answers, 99% / slowest", late),
        ("sent to agents", f"{outcome.received / MIB:.1f} MiB"),
    ]
    if scenario.reconnect:
        rows.insert(2, ("all back after a reconnect of all", seconds(outcome.reconnected)))
    with_ = [
        word
        for word, given in (
            ("other processes on all cores", scenario.burn),
            ("an external etcd", scenario.external_etcd),
        )
        if given
    ]
    title = f"{scenario.nodes} nodes, {scenario.tasks} tasks of {scenario.services} services"
    notes = [f"load of the machine before: {outcome.load:.1f}"]
    notes.append("messages: " + _counts(outcome.messages))
    if outcome.reasons:
        notes.append("ends of sessions: " + _counts(outcome.reasons))
    return Table(", ".join([title, *with_]), ("what", "outcome"), tuple(rows), tuple(notes))


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))


main()
