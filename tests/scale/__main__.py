# SPDX-License-Identifier: Apache-2.0
"""`make scale ARGS="--nodes 500 --tasks 5000"`: how a manager bears many nodes and tasks."""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from tests.bench.tables import MIB, Table, render
from tests.scale.growth import draw, grow, table_of
from tests.scale.scenario import CHANGED_TASKS, Outcome, Scenario, run

LAST_RUNS = Path(__file__).parents[2] / "build" / "scale.json"
"""The previous outcome of each scenario."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="make scale", description=__doc__)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--services", type=int, default=20, help="that the tasks belong to")
    parser.add_argument("--seconds", type=float, default=300.0, help="that each phase may take")
    parser.add_argument("--burn", action="store_true", help="other processes use all cores")
    parser.add_argument("--reconnect", action="store_true", help="break all sessions at once")
    parser.add_argument("--fail", type=float, default=0.0, help="per cent of the nodes, at the end")
    parser.add_argument("--update", action="store_true", help="all services, once they run")
    parser.add_argument("--external-etcd", action="store_true", help="with its default limits")
    parser.add_argument("--folder", type=Path, help="keep the manager's log and data there")
    parser.add_argument(
        "--growth", type=Path, help="try 100 to --tasks tasks, and draw curves into this SVG file"
    )
    given = parser.parse_args()
    growth: Path | None = vars(given).pop("growth")
    if growth is not None and find_spec("matplotlib") is None:
        parser.error("--growth needs matplotlib: run 'scripts/docs --install' first")
    scenario = Scenario(**vars(given))
    if growth is not None:
        sizes = asyncio.run(grow(scenario))
        print(render(table_of(sizes)))
        growth.write_text(draw(sizes))
        return
    table = _table(scenario, asyncio.run(run(scenario)))
    print(render(beside_previous(table, LAST_RUNS)))


def beside_previous(table: Table, file: Path) -> Table:
    """The table with a column of the previous run of the same scenario, and kept for the next."""
    known = json.loads(file.read_text()) if file.exists() else {}
    before = known.get(table.title, {})
    known[table.title] = dict(table.rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(known, indent=1))
    rows = tuple((*row, before.get(row[0], "")) for row in table.rows)
    return replace(table, columns=(*table.columns, "previous run"), rows=rows)


def _table(scenario: Scenario, outcome: Outcome) -> Table:
    def seconds(value: float | None) -> str:
        return "not in time" if value is None else f"{value:.1f} s"

    answers = sorted(outcome.answers) or [0.0]
    late = " / ".join(
        f"{answer:.2f} s"
        for answer in (
            answers[len(answers) // 2],
            answers[len(answers) * 99 // 100],
            answers[-1],
        )
    )
    changes = "none tried"
    if outcome.changes:
        changes = f"{median(outcome.changes):.3f} s / {max(outcome.changes):.3f} s"
    rate = scenario.nodes / outcome.joined if outcome.joined else 0.0
    rows = [
        ("nodes in session after", seconds(outcome.joined)),
        ("nodes joined per second", f"{rate:.1f}"),
        (
            "idle CPU of manager / etcd",
            f"{outcome.idle_cpu:.2f} / {outcome.idle_store_cpu:.2f} cores",
        ),
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
        ("etcd's CPU", f"{outcome.store_cpu:.1f} s"),
        ("etcd's memory", f"{outcome.store_memory / MIB:.0f} MiB"),
        ("API answers, 50% / 99% / slowest", late),
        (f"a new service of {CHANGED_TASKS} tasks assigned after, 50% / slowest", changes),
        ("sent to agents", f"{outcome.received / MIB:.1f} MiB"),
    ]
    if scenario.reconnect:
        rows.append(("all back after a reconnect of all", seconds(outcome.reconnected)))
    if scenario.update:
        rows.append(("everything updated after", seconds(outcome.updated)))
    if scenario.fail:
        rows.append(
            (
                f"{scenario.fail:g}% of nodes failed: tasks elsewhere after",
                seconds(outcome.recovered),
            )
        )
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


if __name__ == "__main__":
    main()
