# SPDX-License-Identifier: Apache-2.0
"""Answers of the name server a second, on one core, beside those of aardvark-dns and unbound where
they are installed, in a network namespace that stands for a host. dnsperf asks, on another core."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.agent.network.endpoint_table import Change
from orchestrator.agent.network.name_server import NameServerProcess
from orchestrator.pb import dispatch_pb2
from tests.bench.cluster import BenchError
from tests.bench.processes import run_number
from tests.bench.tables import Table, median, seconds

ROUNDS = 5
SECONDS = 2
SERVICES, TASKS = 1000, 10
CHANGES = 1000
ASKED = ("svc1", "svc500", "svc999", "tasks.svc7")
GATEWAY = "10.128.7.1"
_AARDVARK = Path("/usr/lib/podman/aardvark-dns")
_OURS, _SERVER_CORE, _ASKER_CORE = "orc", "0", "1"


@dataclass(slots=True)
class Names:
    """Answers a second by server, of each round; seconds of the rest."""

    rates: dict[str, list[float]] = field(default_factory=dict)
    whole: float = 0.0
    """Until names are answered by a table of all services that a new server was told."""
    changes: list[float] = field(default_factory=list)
    """Until they are by a change of one service."""


async def measure(folder: Path) -> Names:
    """Measure by turns. Raises BenchError when there is nothing to ask with."""
    if shutil.which("dnsperf") is None:
        raise BenchError("dnsperf is not installed: apt-get install dnsperf")
    result = Names()
    folder = folder / "names"
    folder.mkdir()
    questions = folder / "questions"
    questions.write_text("".join(f"{name} A\n" for name in ASKED))
    host = f"orc-bench-{run_number()}-n"
    with _namespace(host):
        inside = ("ip", "netns", "exec", host)
        pinned = (*inside, "taskset", "-c", _SERVER_CORE)
        command = (*pinned, sys.executable, "-m", "orchestrator.nameserver")
        async with NameServerProcess(folder, lambda: None, command=command) as ours:
            try:
                await _tell(ours, result)
                for _ in range(ROUNDS):
                    _ask(inside, questions, _OURS, 53, result)
                    with _aardvark(folder, pinned):
                        _ask(inside, questions, "aardvark-dns", 5301, result)
                    with _unbound(folder, pinned):
                        _ask(inside, questions, "unbound", 5302, result)
            finally:
                with suppress(OSError, ValueError):
                    os.kill(int((folder / "names.lock").read_text()), signal.SIGTERM)
    return result


async def _tell(ours: NameServerProcess, result: Names) -> None:
    network = dispatch_pb2.AssignedNetwork(
        id="n", name="default", subnet="10.128.7.0/24", cluster_cidr="10.128.0.0/14"
    )
    entries = tuple(_service(number) for number in range(SERVICES))

    def whole() -> Change:
        return Change(1, None, entries, (), (network,))

    began = time.monotonic()
    await ours.follow(whole(), whole)
    result.whole = time.monotonic() - began
    for number in range(CHANGES):
        change = Change(number + 2, number + 1, (entries[number % SERVICES],))
        began = time.monotonic()
        await ours.follow(change, whole)
        result.changes.append(time.monotonic() - began)


def _service(number: int) -> dispatch_pb2.ServiceEndpoints:
    return dispatch_pb2.ServiceEndpoints(
        id=f"s{number}",
        name=f"svc{number}",
        network_id="n",
        vip=_address(number),
        endpoints=[
            dispatch_pb2.Endpoint(
                task_id=f"t{number}x{slot}",
                slot=slot,
                name=f"svc{number}.{slot}",
                address=_address(SERVICES + number * TASKS + slot),
                ready=True,
            )
            for slot in range(1, TASKS + 1)
        ],
    )


def _address(number: int) -> str:
    return f"10.129.{number // 250}.{number % 250 + 1}"


def _ask(inside: Sequence[str], questions: Path, server: str, port: int, result: Names) -> None:
    if server != _OURS and server not in _others():
        return
    done = subprocess.run(
        [*inside, "taskset", "-c", _ASKER_CORE, "dnsperf", "-s", GATEWAY, "-p", str(port),
         "-d", str(questions), "-l", str(SECONDS), "-c", "20"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    rate = re.search(r"Queries per second: +([0-9.]+)", done.stdout)
    if rate is None or "NOERROR" not in done.stdout:
        raise BenchError(f"{server} was not measured: {done.stderr or done.stdout}")
    result.rates.setdefault(server, []).append(float(rate[1]))


def _others() -> list[str]:
    found = ["aardvark-dns"] if _AARDVARK.exists() else []
    return found + (["unbound"] if shutil.which("unbound") else [])


@contextmanager
def _aardvark(folder: Path, pinned: Sequence[str]) -> Iterator[None]:
    """It answers names of containers, from a file a network."""
    networks = folder / "aardvark"
    networks.mkdir(exist_ok=True)
    lines = [GATEWAY]
    for number in range(SERVICES):
        lines.append(f"s{number} {_address(number)}  svc{number}")
        lines += [
            f"t{number}x{slot} {_address(SERVICES + number * TASKS + slot)}  tasks.svc{number}"
            for slot in range(1, TASKS + 1)
        ]
    (networks / "default").write_text("\n".join(lines) + "\n")
    with _daemon(
        [*pinned, str(_AARDVARK), "--config", str(networks), "-p", "5301", "run"],
        wanted="aardvark-dns" in _others(),
        pid=networks / "aardvark.pid",
    ):
        yield


@contextmanager
def _unbound(folder: Path, pinned: Sequence[str]) -> Iterator[None]:
    """A resolver with the same names as local data."""
    lines = [
        "server:", "do-daemonize: no", "port: 5302", f"interface: {GATEWAY}", 'username: ""',
        'chroot: ""', "use-syslog: no", "num-threads: 1", 'pidfile: ""',
        "access-control: 0.0.0.0/0 allow",
    ]  # fmt: skip
    for number in range(SERVICES):
        lines.append(f'local-data: "svc{number}. 1 IN A {_address(number)}"')
        lines += [
            f'local-data: "tasks.svc{number}. 1 IN A {_address(SERVICES + number * TASKS + slot)}"'
            for slot in range(1, TASKS + 1)
        ]
    config = folder / "unbound.conf"
    config.write_text("\n".join(lines) + "\n")
    with _daemon([*pinned, "unbound", "-c", str(config)], wanted="unbound" in _others()):
        yield


@contextmanager
def _daemon(command: Sequence[str], *, wanted: bool, pid: Path | None = None) -> Iterator[None]:
    if not wanted:
        yield
        return
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        time.sleep(1.0)  # neither tells when it is ready
        try:
            yield
        finally:
            process.terminate()
            if pid is not None and pid.exists():  # it has gone into the background
                os.kill(int(pid.read_text()), signal.SIGTERM)


@contextmanager
def _namespace(name: str) -> Iterator[None]:
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for command in ("link set lo up", f"address add {GATEWAY}/24 dev lo"):
            subprocess.run(["ip", "-n", name, *command.split()], check=True)
        yield
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def report(names: Names) -> Table:
    """The table of the figures."""
    rows = [
        (f"answers a second, {server}", f"{median(rates):,.0f}")
        for server, rates in names.rates.items()
    ]
    rows.append((f"a new server is told {SERVICES * TASKS:,} tasks", seconds(names.whole)))
    rows.append(("a change of one service", seconds(median(names.changes))))
    return Table(
        "Names",
        ("what", "median"),
        tuple(rows),
        (
            f"one core serves, another asks; {SERVICES:,} services of {TASKS} tasks; A of"
            f" {', '.join(ASKED)}; {ROUNDS} rounds of {SECONDS} s by turns",
        ),
    )
