# SPDX-License-Identifier: Apache-2.0
"""Names of networks, their records, and the scope of clients."""

from __future__ import annotations

from ipaddress import ip_network

import dns.message
import dns.rcode
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.nameserver.answers import Scope, answer
from orchestrator.nameserver.dnswire import read_question
from orchestrator.nameserver.zones import Entry, Port, Records, Task

RANGES = (ip_network("10.128.0.0/14"), ip_network("fd00::/48"))


def task(slot: int, name: str = "web", *aliases: str) -> Task:
    return Task(
        id=f"{name}{slot}".ljust(20, "x"),
        slot=slot,
        name=f"{name}.{slot}",
        aliases=aliases,
        address=f"10.128.1.{slot}",
        address6=f"fd00::1:{slot}",
    )


def service(
    *tasks: Task,
    name: str = "web",
    network: str = "net",
    vip: str = "10.128.0.9",
    ports: tuple[Port, ...] = (),
    aliases: tuple[str, ...] = (),
) -> Entry:
    vip6 = "fd00::9" if vip else ""
    return Entry(f"{name}-id", network, name, vip, vip6, False, aliases, ports, tasks)


def container(name: str, address: str, *aliases: str, network: str = "net") -> Entry:
    one = Task(f"{name}-id", 0, name, aliases, address, "")
    return Entry(one.id, network, name, "", "", True, aliases, (), (one,))


def records(*entries: Entry) -> Records:
    made = Records()
    made.replace(entries)
    return made


def ask(
    known: Records, name: str, kind: str = "A", networks: tuple[str, ...] = ("net",), turn: int = 0
) -> list[str] | str:
    """The data of the answer's records, or its response code."""
    query = dns.message.make_query(name + ".", kind).to_wire()
    found = answer(known, Scope(networks, RANGES, True), read_question(query), 1232)
    if not found:
        return "elsewhere"
    reply = dns.message.from_wire(query[:2] + found[turn % len(found)])
    if reply.rcode() != dns.rcode.NOERROR:
        return dns.rcode.to_text(reply.rcode())
    return [each.to_text() for rrset in reply.answer for each in rrset]


def test_a_service_with_a_vip() -> None:
    known = records(service(task(1), task(2)))
    assert ask(known, "web") == ["10.128.0.9"]
    assert ask(known, "WeB", "AAAA") == ["fd00::9"]
    assert ask(known, "tasks.web") == ["10.128.1.1", "10.128.1.2"]
    assert ask(known, "tasks.web", "AAAA") == ["fd00::1:1", "fd00::1:2"]
    assert ask(known, "2.web") == ask(known, "web.2") == ["10.128.1.2"]
    assert ask(known, task(2).id) == ask(known, task(2).id[:12]) == ["10.128.1.2"]
    # It has no other records, which is not the same as having no such name.
    assert ask(known, "web", "TXT") == []


def test_a_service_without_a_vip_resolves_to_its_tasks_in_turn() -> None:
    known = records(service(task(1), task(2), task(3), vip=""))
    turns = [ask(known, "web", turn=turn) for turn in range(4)]
    assert [turn[0] for turn in turns] == ["10.128.1.1", "10.128.1.2", "10.128.1.3", "10.128.1.1"]
    assert {tuple(sorted(turn)) for turn in turns} == {("10.128.1.1", "10.128.1.2", "10.128.1.3")}


def test_names_of_services_without_ready_tasks_are_not_forwarded() -> None:
    known = records(service())
    assert ask(known, "web") == ["10.128.0.9"]
    assert ask(known, "tasks.web") == []
    assert ask(known, "1.web") == "NXDOMAIN"
    assert ask(records(service(vip="")), "web") == []


def test_aliases() -> None:
    known = records(
        service(task(1), aliases=("www",)),
        service(task(7, "db"), name="db", vip="", aliases=("store",)),
        container("one", "10.128.1.20", "shared"),
        container("two", "10.128.1.21", "shared"),
    )
    assert ask(known, "www") == ["10.128.0.9"]
    assert ask(known, "store") == ["10.128.1.7"]
    assert ask(known, "shared") == ["10.128.1.20", "10.128.1.21"]
    assert ask(known, "two") == ["10.128.1.21"]


def test_service_records_have_targets_and_ports() -> None:
    ports = (Port("tcp", 8080, 80),)
    known = records(
        service(task(1), task(2), ports=ports),
        service(task(3, "db"), name="db", vip="", ports=ports),
    )
    assert ask(known, "_8080._tcp.web", "SRV") == ["0 0 80 web."]
    assert ask(known, "_80._tcp.web", "SRV") == ["0 0 80 web."]
    assert ask(known, "_80._tcp.tasks.web", "SRV") == ["0 0 80 web.1.", "0 0 80 web.2."]
    assert ask(known, "_80._tcp.db", "SRV") == ["0 0 80 db.3."]
    assert ask(known, "_81._tcp.web", "SRV") == "NXDOMAIN"
    query = dns.message.make_query("_80._tcp.tasks.web.", "SRV").to_wire()
    (found, _) = answer(known, Scope(("net",), RANGES, True), read_question(query), 1232)
    extra = dns.message.from_wire(query[:2] + found).additional
    assert [str(each) for each in extra] == [
        "web.1. 1 IN A 10.128.1.1",
        "web.1. 1 IN AAAA fd00::1:1",
        "web.2. 1 IN A 10.128.1.2",
        "web.2. 1 IN AAAA fd00::1:2",
    ]


def test_reverse_lookups() -> None:
    known = records(service(task(1)))
    assert ask(known, "1.1.128.10.in-addr.arpa", "PTR") == ["web.1."]
    assert ask(known, "9.0.128.10.in-addr.arpa", "PTR") == ["web."]
    # Nobody else can know an address of ours.
    assert ask(known, "77.1.128.10.in-addr.arpa", "PTR") == "NXDOMAIN"
    assert ask(known, "8.8.8.8.in-addr.arpa", "PTR") == "elsewhere"


def test_a_name_of_another_network_does_not_resolve() -> None:
    known = records(
        service(task(1), network="back", name="db"),
        service(task(2), network="front"),
        service(task(3), network="back", vip="10.128.0.50"),
    )
    assert ask(known, "db", networks=("front",)) == "NXDOMAIN"
    assert ask(known, "db", networks=("front", "back")) == ["10.128.0.9"]
    # The network that is asked first decides.
    assert ask(known, "web", networks=("front", "back")) == ["10.128.0.9"]
    assert ask(known, "web", networks=("back", "front")) == ["10.128.0.50"]


def test_names_of_a_service_are_never_forwarded() -> None:
    known = records(
        service(task(1), aliases=("api.example.com",)),
        service(task(2, "db"), network="back", name="db", aliases=("db.example.com",)),
    )
    for name in ("web.9", "9.web", "_81._tcp.web", "_80._tcp.tasks.web", "9.api.example.com"):
        assert ask(known, name) == "NXDOMAIN", name
    # A service of a network that the asker is not on.
    for name in ("db", "db.2", "db.9", "tasks.db", "2.db", "DB"):
        assert ask(known, name) == "NXDOMAIN", name
    # Somebody else may know these.
    for name in ("web.example", "example", "example.9", "db.example.com", "9.example"):
        assert ask(known, name) == "elsewhere", name


def test_unknown_names_are_forwarded_if_allowed() -> None:
    known = records(service(task(1)))
    assert ask(known, "example.com") == "elsewhere"
    query = dns.message.make_query("example.com.", "A").to_wire()
    (found,) = answer(known, Scope(("net",), RANGES, False), read_question(query), 512)
    assert dns.message.from_wire(query[:2] + found).rcode() == dns.rcode.NXDOMAIN


ENTRIES = st.builds(
    lambda name, network, slots, vip, aliases: service(
        *(task(slot, name) for slot in sorted(slots)),
        name=name,
        network=network,
        vip="10.128.0.9" if vip else "",
        aliases=tuple(sorted(aliases)),
    ),
    st.sampled_from(["web", "db", "cache"]),
    st.sampled_from(["front", "back"]),
    st.sets(st.integers(1, 4)),
    st.booleans(),
    st.sets(st.sampled_from(["www", "db", "1.web"])),
)


@given(st.lists(st.one_of(ENTRIES, ENTRIES.map(lambda entry: entry.key))))
def test_changes_lead_to_the_same_records_as_a_whole_table(
    steps: list[Entry | tuple[str, str]],
) -> None:
    followed = Records()
    entries: dict[tuple[str, str], Entry] = {}
    for step in steps:
        if isinstance(step, Entry):
            followed.put(step)
            entries[step.key] = step
        else:
            followed.remove(step)  # type: ignore[arg-type]
            entries.pop(step, None)
    fresh = records(*entries.values())
    for network in ("front", "back"):
        for name in ("web", "db", "cache", "www", "tasks.web", "1.web", "web.1", "4.db"):
            assert followed.find((network,), name) == fresh.find((network,), name)
