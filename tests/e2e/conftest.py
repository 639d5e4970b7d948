# SPDX-License-Identifier: Apache-2.0
"""A real dev cluster for the end-to-end tests: one per run, with a name and contexts of its own."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from devcluster import ORC, PATIENCE, Cluster, eventually
from packagedhost import HELLO, ROOT

CLUSTERS = Path("/var/lib/orc-dev")
LOCKS = Path("/run/orc-e2e")
"""A file for each run, locked while it lasts."""


def _environment(config: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ORC_", "XDG_"))}
    # Tests wait until tasks run; those of the monitor period ask for it.
    own = {"XDG_CONFIG_HOME": str(config), "HOME": str(config), "COLUMNS": "200"}
    return {**kept, **own, "ORC_MONITOR": "0s"}


def _remove_leftovers(env: Mapping[str, str]) -> None:
    """Take down clusters of runs that were killed: nobody holds their lock any more.

    Only those that are named after a process: another name is its giver's to remove.
    """
    for folder in CLUSTERS.glob("e2e-*"):
        run = re.match(r"e2e-\d+(-gw\d+)?(?=-|$)", folder.name)
        if run and (lock := _try_lock(run[0])) is not None:
            subprocess.run([ORC, "dev", "down", "--name", folder.name], env=env, check=True)
            (LOCKS / run[0]).unlink()
            os.close(lock)


def _try_lock(run: str) -> int | None:
    """The lock on a run's clusters, held until it is closed or this process ends; None if
    another process holds it."""
    LOCKS.mkdir(exist_ok=True)
    descriptor = os.open(LOCKS / run, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@pytest.fixture(scope="session", autouse=True)
def _locked_run() -> Iterator[None]:
    """Other runs leave this one's clusters alone."""
    lock = _try_lock(_name())
    assert lock is not None, f"another run uses the clusters {_name()}"
    yield
    (LOCKS / _name()).unlink()
    os.close(lock)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who waits patiently for several things is not hung yet."""
    for item in items:
        own = item.get_closest_marker("timeout") is not None
        if item.path.is_relative_to(Path(__file__).parent) and not own:
            item.add_marker(pytest.mark.timeout(6 * PATIENCE))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Be the only one of the runs beside each other who is at a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@pytest.fixture(scope="module")
def spare_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Cluster]]:
    """Makes further clusters, not up yet, for tests of a cluster's own life. All are removed after
    the tests of a file, so that they do not slow down those of other files."""
    env = _environment(tmp_path_factory.mktemp("config"))
    made: list[Cluster] = []

    def make(suffix: str) -> Cluster:
        made.append(Cluster(f"{_name()}-{suffix}", env))
        return made[-1]

    yield make
    for cluster in made:
        cluster.dev("down")


def _name() -> str:
    """Of this run, and of each that is beside it. CI gives one, so as to remove it when the run
    itself is killed."""
    name = os.environ.get("ORC_E2E_NAME", f"e2e-{os.getpid()}")
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    return f"{name}-{worker}" if worker else name


@pytest.fixture(scope="session")
def session_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster of this run: one manager, three nodes, up."""
    env = _environment(tmp_path_factory.mktemp("config"))
    _remove_leftovers(env)
    cluster = Cluster(_name(), env)
    cluster.dev("down")
    try:
        cluster.dev("up")
        yield cluster
    finally:
        cluster.dev("down")


@pytest.fixture
def cluster(session_cluster: Cluster) -> Iterator[Cluster]:
    """The run's cluster, healthy; afterwards without services, and healthy again."""
    yield session_cluster
    hosts = session_cluster.status()
    if any(row["partitioned"] for row in hosts.values()):
        session_cluster.heal()
    for host, row in hosts.items():
        if row["state"] == "off" or row["daemon_state"] != "running":
            session_cluster.start(host)
    # A manager that was just started may need a moment.
    services = eventually(lambda: [session_cluster.json("service", "ls")])[0]
    if services:
        session_cluster.orc("service", "rm", "-d", *(service["name"] for service in services))

    def without_containers() -> bool:
        # One that goes by itself may be gone before it is removed: then they are listed again.
        if own := [row["id"] for row in session_cluster.json("ps", "-a") if not row["service"]]:
            session_cluster.orc("rm", "-f", "-v", *own)
        return True

    eventually(without_containers)

    for host, node in session_cluster.nodes().items():
        if node["downs"]:  # the next test finds each as good as the others
            session_cluster.orc("node", "update", "--availability", "active", host)

    def idle() -> bool:
        """All nodes are ready, and the next test finds all of each free."""
        nodes = session_cluster.nodes().values()
        assert all(node["state"] == "ready" and not node["tasks"] for node in nodes), nodes
        return True

    eventually(idle)


@pytest.fixture(scope="session")
def hello(session_cluster: Cluster) -> str:
    """The demo's web image, built in the cluster; its name."""
    with _alone(HELLO):
        subprocess.run([HELLO / "prepare"], check=True)
    session_cluster.orc("build", "-t", "hello:1", str(HELLO))
    return "hello:1"


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The Debian packages, built once from what is committed and what is not yet."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all the runs beside each other
    place = folder / "packages"
    with _alone(folder):
        if not place.exists():
            built = subprocess.run(
                [ROOT / "scripts" / "deb"], capture_output=True, text=True, timeout=280, check=False
            )
            assert built.returncode == 0, built.stderr
            place.write_text(built.stdout)
    return [ROOT / path for path in place.read_text().split()]
