# SPDX-License-Identifier: Apache-2.0
"""Each rule accepts what is right and refuses the broken history that it is there for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import leftovers
from tests.chaos.history import (
    FOREVER,
    Call,
    Change,
    Commit,
    Container,
    Converged,
    Fault,
    History,
    Leftover,
    Line,
    Record,
    Request,
    Run,
    Violation,
    history_of,
    numbered,
)
from tests.chaos.rules import (
    addresses,
    commands,
    crashes,
    ending,
    jobs,
    registers,
    restarts,
    slots,
    terms,
    traffic,
)
from tests.chaos.rules.all_rules import violations

Rule = Callable[[History], Iterable[Violation]]

ENDING = Converged(5.0)


def history(*records: Record) -> History:
    return history_of(numbered([Run(1, 1.0, 3, 3, 5.0), *records]))


def broken(rule: Rule, words: str, *records: Record) -> Violation:
    """The first violation, which must be the rule's own, with words and evidence of its own."""
    found = list(rule(history(*records)))
    assert found, "the rule accepts a broken history"
    assert words in found[0].text
    assert all(line > 1 for line in found[0].lines)
    # Nothing else is wrong with the history.
    others = [each for each in violations(history(*records, ENDING)) if each.rule != found[0].rule]
    assert not others
    return found[0]


def right(*records: Record) -> None:
    assert violations(history(*records, ENDING)) == []


def call(method: str, began: float, ended: float, outcome: Any = "ok", **fields: Any) -> Call:
    defaults = {"client": "ann", "manager": "m1", "target": "service/web"}
    return Call(
        **{**defaults, "method": method, "began": began, "ended": ended, "outcome": outcome}
        | fields
    )


def write(tag: str, version: int, began: float, ended: float, **fields: Any) -> Call:
    return call(
        "UpdateService", began, ended, tag=tag, object="s", version=version, value=tag, **fields
    )


def read(tag: str, version: int, began: float, ended: float, **fields: Any) -> Call:
    return call("ListServices", began, ended, object="s", version=version, value=tag, **fields)


def service(**fields: Any) -> Change:
    own = {
        "name": "web",
        "tag": "a",
        "version": 1,
        "documents": {},
        "mode": 0,
        "replicas": 3,
        "removed": False,
        "vips": {},
        "ports": [],
        "starts_first": False,
        "runs": [],
    }
    return Change("services", fields.pop("id", "s"), fields={**own, **fields})


def task(identity: str, **fields: Any) -> Change:
    own = {
        "service_id": "s",
        "service": "web",
        "slot": 1,
        "node": "n1",
        "desired": 512,
        "state": 512,
        "message": "",
        "exit_code": 0,
        "version": 1,
        "documents": {},
        "job_run": 0,
        "addresses": {},
        "ports": [],
    }
    return Change("tasks", identity, fields={**own, **fields})


def node(state: int = 1, hostname: str = "node1", **fields: Any) -> Change:
    own = {"hostname": hostname, "state": state, "availability": 0, "message": ""}
    return Change("nodes", fields.pop("id", "n1"), fields={**own, **fields})


class Store:
    """Commits, one a second."""

    def __init__(self) -> None:
        self.revision = 0

    def __call__(self, *changes: Change, at: float | None = None, manager: str = "m1") -> Commit:
        self.revision += 1
        return Commit(self.revision if at is None else at, manager, self.revision, changes)


# ---- registers


def test_versions_that_agree_with_real_time_are_right() -> None:
    store = Store()
    right(
        call("CreateService", 0.0, 1.0, tag="a", object="s", version=1, value="a"),
        write("b", 2, 1.0, 3.0, base=1),
        # Concurrent with the write: before or after it.
        read("a", 1, 1.5, 2.5),
        read("b", 2, 2.0, 2.6, client="ben"),
        # Another manager's cache may be behind.
        read("a", 1, 4.0, 4.1, manager="m2"),
        write("c", 3, 5.0, 9.0, outcome="unknown"),
        read("c", 3, 9.5, 9.6),
        store(service(tag="a", version=1)),
        store(service(tag="b", version=2)),
        store(service(tag="c", version=3)),
    )


@pytest.mark.parametrize(
    ("words", "records"),
    [
        ("which no call wrote", [read("phantom", 1, 1.0, 2.0)]),
        (
            "whose write was refused",
            [
                call("UpdateService", 0.0, 1.0, "refused", tag="b"),
                read("b", 2, 2.0, 3.0),
            ],
        ),
        ("before it was written", [write("a", 1, 5.0, 6.0), read("a", 1, 1.0, 2.0)]),
        (
            "is both 'a' and 'b'",
            [write("a", 1, 0.0, 1.0), write("b", 1, 0.0, 1.0)],
        ),
        (
            "returned version 1 after",
            [write("a", 1, 0.0, 1.0), write("b", 2, 2.0, 3.0), read("a", 1, 4.0, 5.0)],
        ),
        (
            "returned version 2 after",
            # A write through another manager that took effect in the past.
            [write("a", 3, 0.0, 1.0), write("b", 2, 2.0, 3.0, manager="m2")],
        ),
        (
            "nothing removed it",
            [
                call("CreateService", 0.0, 1.0, object="s", version=1),
                call("ListServices", 2.0, 3.0),
            ],
        ),
        (
            "was removed, and is returned",
            [
                write("a", 1, 0.0, 0.5),
                call("RemoveService", 1.0, 2.0, object="s"),
                read("a", 1, 3.0, 4.0),
            ],
        ),
    ],
)
def test_a_register_is_linearizable(words: str, records: list[Record]) -> None:
    broken(registers.check, words, *records)


def test_an_acknowledged_write_is_in_the_store() -> None:
    store = Store()
    lost = write("b", 2, 1.0, 2.0)
    broken(registers.check, "the write is lost", store(service(version=1)), lost)
    by_command = call("UpdateService", 1.0, 2.0, tag="b", manager="")
    broken(registers.check, "never stored", store(service(version=1)), by_command)


def test_an_acknowledged_object_is_in_the_store() -> None:
    store = Store()
    created = call("CreateNetwork", 1.0, 2.0, target="network/net")
    right(created, store(Change("networks", "n1", fields={"name": "net"})))
    broken(registers.check, "never stored", created, store(service()))


def test_a_write_takes_effect_once() -> None:
    store = Store()
    twice = [store(service(tag=tag)) for tag in "bcb"]
    unknown = call("UpdateService", 1.0, 2.0, "unknown", tag="b")
    broken(registers.check, "applied twice", *twice, unknown)
    refused = call("UpdateService", 1.0, 2.0, "refused", tag="b")
    broken(registers.check, "was refused", twice[0], refused)


def test_a_guarded_write_overwrites_no_other() -> None:
    store = Store()
    commits = [store(service(tag=tag, version=n)) for n, tag in enumerate("abc", start=1)]
    broken(registers.check, "that update is lost", *commits, write("c", 3, 1.0, 2.0, base=1))


# ---- slots


def test_one_task_of_a_slot_wants_to_run() -> None:
    store = Store()
    right(
        store(service(), node(), task("t1")),
        store(task("t1", state=832, desired=640), task("t2")),
    )
    broken(slots.check, "2 tasks of one slot", store(service(), task("t1")), store(task("t2")))
    # An update that starts first has two.
    right(store(service(starts_first=True), task("t1")), store(task("t2")))


def test_one_container_of_a_slot_runs() -> None:
    store = Store()
    commits = [
        store(service(), node(), task("t1"), at=0.0),
        store(task("t1", desired=640, state=832), task("t2", node="n2"), at=10.0),
    ]
    first = Container("node1", "t1", "web.1", 10, 1.0, 30.0)
    second = Container("node2", "t2", "web.1", 11, 11.0, FOREVER)
    broken(slots.check, "ran twice", *commits, first, second)
    cut = Fault("isolate", ("node1",), 4.0, 20.0, cuts=("node1",))
    right(*commits, first, second, cut)


# ---- addresses


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (task("t1", addresses={"n": "10.0.0.2"}), task("t2", slot=2, addresses={"n": "10.0.0.2"})),
        (service(vips={"n": "10.0.0.9"}), service(id="s2", vips={"n": "10.0.0.9"})),
        (service(ports=[[80, 0, 0]]), service(id="s2", ports=[[80, 0, 0]])),
        (task("t1", ports=[[80, 0, 1]]), task("t2", slot=2, ports=[[80, 0, 1]])),
    ],
)
def test_addresses_and_ports_have_one_holder(one: Change, two: Change) -> None:
    store = Store()
    broken(addresses.check, "at once", store(one), store(two))
    ended = {**one.fields, "state": 640, "removed": True}
    right(store(one), store(Change(one.kind, one.id, fields=ended)), store(two))


# ---- jobs


def run(completed: str, state: int = 0) -> dict[str, Any]:
    return {"number": 1, "state": state, "completed": completed}


def job(completed: str, state: int = 0) -> Change:
    return service(mode=2, replicas=2, runs=[run(completed, state)])


def complete(identity: str, slot: int) -> Change:
    return task(identity, slot=slot, job_run=1, state=576)


def test_completions_count_once() -> None:
    store = Store()
    good = [store(job("")), store(complete("t1", 1)), store(job("1"), complete("t2", 2))]
    right(*good, store(job("1-2", state=1)))
    broken(jobs.check, "which no task completed", store(job("2")))
    broken(jobs.check, "no longer counts", *good, store(job("")))
    broken(jobs.check, "with 1 of 2", *good, store(job("1", state=1)))
    broken(jobs.check, "completed by t1, t3", *good, store(complete("t3", 1)))
    container = Container("node1", "t9", "job.1", 7, 0.0, 1.0)
    broken(jobs.check, "no host ran it", *good, container)


# ---- restarts


def test_a_container_ends_for_a_reason() -> None:
    store = Store()
    born = store(service(), node(), task("t1"), at=0.0)
    ended = Container("node1", "t1", "web.1", 10, 1.0, 50.0)
    broken(restarts.check, "nothing had stopped it", born, ended)
    right(born, ended, store(service(version=2), task("t1", desired=640), at=49.0))
    right(born, ended, Fault("kill container", ("node1",), 49.0, 49.1, kills=("node1",)))
    right(born, Container("node1", "t1", "web.1", 10, 1.0, FOREVER))
    # Commits that are delivered late are judged by their order.
    stop, end = task("t1", desired=640), task("t1", desired=640, state=640)
    right(born, ended, store(service(version=3), stop, at=90.0), store(end, at=91.0))
    failed, replaced = task("t1", state=704), task("t1", desired=640, state=704)
    late = (store(failed, at=90.0), store(service(version=4), replaced, at=91.0))
    broken(restarts.check, "nothing had stopped it", born, ended, *late)
    # A fault of another host, or of a manager, is no reason.
    other = Fault("kill container", ("node2",), 49.0, 49.1, kills=("node2",))
    broken(restarts.check, "nothing had stopped it", born, ended, other)


def test_a_task_is_stopped_for_a_reason() -> None:
    store = Store()
    tasks = [task(f"t{slot}", slot=slot) for slot in (1, 2, 3)]
    born = store(service(), node(), *tasks)
    stop = store(task("t1", desired=640))
    broken(restarts.check, "was ordered to stop", born, stop)
    right(born, store(service(replicas=0, version=2)), store(task("t1", desired=640)))


def test_a_node_is_called_down_for_a_reason() -> None:
    store = Store()
    up, down = store(node(), at=1.0), store(node(state=2), at=60.0)
    manager = Fault("kill manager", ("manager1",), 55.0, 58.0)
    broken(restarts.check, "no fault had cut it off", up, down, manager)
    right(up, down, Fault("isolate", ("node1",), 50.0, 58.0, cuts=("node1",)))


# ---- terms


def leader(term: int) -> Change:
    return Change("leader", "", fields={"term": term, "holder": "m"})


def sequence(term: int, count: int) -> Change:
    return Change("sequence", "", fields={"term": term, "count": count})


def test_terms_do_not_overlap() -> None:
    store = Store()
    begin = [store(leader(1)), store(sequence(1, 1)), store(sequence(1, 2))]
    right(
        *begin, store(Change("leader", "", deleted=True)), store(leader(5)), store(sequence(5, 1))
    )
    broken(terms.check, "wrote while", *begin, store(leader(9)), store(sequence(1, 3)))
    broken(terms.check, "took effect after", *begin, store(sequence(1, 2)))


def test_members_of_etcd_agree() -> None:
    one = Commit(1.0, "m1", 1, (leader(1),))
    right(one, Commit(1.1, "m2", 1, (leader(1),)))
    broken(terms.check, "differs between", one, Commit(1.1, "m2", 1, (leader(2),)))


# ---- traffic, ending


def test_requests_fail_only_for_faults_of_nodes() -> None:
    failed = Request("web", "node1", 50.0, 53.0, False, "refused")
    manager = Fault("power", ("manager1",), 49.0, 52.0)
    broken(traffic.check, "no fault touched a node", failed, manager)
    right(failed, Fault("power", ("node2",), 49.0, 52.0, kills=("node2",)))


def test_time_without_a_leader_does_not_count_for_what_a_leader_repairs() -> None:
    store = Store()
    fault = Fault("power", ("node2",), 5.0, 10.0, kills=("node2",))
    failed = Request("web", "node1", 50.0, 53.0, False, "refused")
    lost = Change("leader", "", deleted=True)
    broken(traffic.check, "no fault touched a node", fault, failed, store(leader(1), at=0.0))
    right(fault, failed, store(leader(1), at=0.0), store(lost, at=12.0))
    again = [store(leader(9), at=0.0), store(lost, at=12.0), store(leader(12), at=40.0)]
    right(fault, failed, *again)
    late = replace(failed, began=60.0, ended=61.0)
    broken(traffic.check, "no fault touched a node", fault, late, *again)


def test_commands_fail_in_words() -> None:
    failed = call("Run node ls", 1.0, 2.0, "unknown", manager="", target="", error="orc: no quorum")
    right(failed)
    crash = "Traceback (most recent call last)\nKeyError: 1"
    broken(commands.check, "with a traceback", replace(failed, error=crash))
    broken(commands.check, "without a word", replace(failed, error=""))


def test_daemons_end_only_with_a_reason(tmp_path: Path) -> None:
    log = tmp_path / "manager.log"
    log.write_text("time=1 msg=serving\norc: it is damaged\ntime=2 msg=serving\n")
    right(*leftovers.crashes("manager1", log))
    with log.open("a") as file:
        # What a library logs of a call, and what ends the program.
        file.write("Traceback\n  in stream\nOSError: a\ntime=3 msg=a\n")
    right(*leftovers.crashes("manager1", log))
    with log.open("a") as file:
        file.write('  | File "orc", line 8, in <module>\n  | KeyError: 1\n  +---\ntime=4 msg=a\n')
    broken(crashes.check, "unexpected error: KeyError: 1", *leftovers.crashes("manager1", log))
    # With ORC_DEBUG a refusal has its traceback, too.
    refused = "orchestrator.cli.app.errors.CliError: no quorum"
    log.write_text(f'Traceback\n  File "orc", line 8, in <module>\n{refused}\ntime=5 msg=a\n')
    right(*leftovers.crashes("manager1", log))


def test_followed_logs_have_each_line_once() -> None:
    def lines(*texts: str) -> list[Record]:
        return [Line(1.0, "gus/1", text) for text in texts]

    right(*lines("counter.1 | 4", "counter.2 | 9", "counter.1 | 5", "lost node1", "counter.1 | 0"))
    broken(commands.check, "lacks lines", *lines("counter.1 | 4", "counter.1 | 6"))
    broken(commands.check, "repeats lines", *lines("counter.1 | 4", "counter.1 | 4"))
    gap = lines("counter.1@node1 | 4", "counter.1@node1 | 6")
    right(Fault("disk", ("node1",), 0.0, 0.5), *gap)
    broken(commands.check, "lacks lines", Fault("disk", ("node2",), 0.0, 0.5), *gap)


@pytest.mark.parametrize(
    ("words", "records"),
    [
        ("no record", []),
        ("not converged", [Converged(120.0, ("web runs 2 of 3",))]),
        ("converged only", [Converged(61.0)]),
        ("2 left on node1", [Leftover("node1", "mount", place) for place in "ab"] + [ENDING]),
    ],
)
def test_the_end_is_clean(words: str, records: list[Record]) -> None:
    found = list(ending.check(history(*records)))
    assert len(found) == 1
    assert words in found[0].text
