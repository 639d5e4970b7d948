# SPDX-License-Identifier: Apache-2.0
"""Secrets and configs as their user sees them: who gets them, what a new version does, and that a
secret is nowhere but in the containers that name it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from devcluster import Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

VALUE = "correct-horse-battery-41"
IDLE = "trap 'exit 0' TERM; while :; do sleep 0.1; done"
TELL = "trap 'exit 0' TERM; trap 'cat /app.conf' HUP; cat /app.conf; while :; do sleep 0.1; done"

Put = Callable[..., str]


@pytest.fixture
def put(cluster: Cluster, tmp_path: Path) -> Iterator[Put]:
    """Creates or updates a secret or config; what a test leaves is removed."""

    def act(verb: str, kind: str, name: str, data: str, *flags: str, status: int = 0) -> str:
        file = tmp_path / "data"
        file.write_text(data)
        done = cluster.orc(kind, verb, *flags, name, str(file), ok=False)
        assert done.returncode == status, done.stderr
        return done.stderr

    yield act
    for service in cluster.json("service", "ls"):
        cluster.orc("service", "rm", "-d", service["name"])

    def gone() -> bool:
        for kind in ("secret", "config"):
            for row in cluster.json(kind, "ls"):
                cluster.orc(kind, "rm", row["name"])
        return True

    eventually(gone)


def read(cluster: Cluster, task: dict[str, Any], path: str) -> str:
    return cluster.in_task(task, "/bin/busybox", "cat", path).stdout


def ids(tasks: list[dict[str, Any]]) -> set[str]:
    return {task["id"] for task in tasks}


def holds(folder: Path, text: str) -> list[str]:
    """The files below a folder that hold a text."""
    done = subprocess.run(
        ["grep", "-rlaF", text, str(folder)], capture_output=True, text=True, check=False
    )
    return done.stdout.split()


def test_a_secret_is_only_in_the_containers_that_name_it(
    cluster: Cluster, hello: str, put: Put
) -> None:
    put("create", "secret", "db", VALUE)
    tasks = cluster.script("api", hello, IDLE, "--secret", "db", "--replicas", "2")
    assert len({task["node"] for task in tasks}) == 2
    for task in tasks:
        assert read(cluster, task, "/run/secrets/db") == VALUE
    cluster.orc("service", "update", "--env-add", "A=1", "api")
    home = Path("/var/lib/orc-dev", cluster.name)
    # Folders of nodes and of the manager with its etcd, logs included.
    assert holds(home, "api"), "grep sees what there is"
    assert holds(home, VALUE) == []
    shown = [
        cluster.orc("secret", "inspect", "db").stdout,
        cluster.orc("service", "inspect", "api").stdout,
        cluster.orc("inspect", "api.1").stdout,
        cluster.orc("plan", "service", "scale", "api=3").stdout,
        cluster.orc("events", "--since", "10m", "--until", "0s").stdout,
    ]
    assert "secret create" in shown[-1]
    assert not [text for text in shown if VALUE in text]
    running = {task["node"] for task in cluster.running("api")}
    for node in {"node1", "node2", "node3"}:
        there = memory(cluster, node)
        assert (VALUE in there) == (node in running)
    tar = Path(cluster.data("node1").parents[1], "api.tar")
    cluster.orc("export", "-o", str(tar), "api.1")
    assert holds(home, VALUE) == [], "not in an export either"
    tar.unlink()
    cluster.orc("service", "rm", "-d", "api")
    eventually(lambda: not any(VALUE in memory(cluster, node) for node in running))


def memory(cluster: Cluster, node: str) -> str:
    """What a node keeps of secrets, as its agent sees it."""
    pid = cluster.status()[node]["daemon_pid"]
    script = f"nsenter -t {pid} -m -- sh -c 'cat /run/orc/documents/data/* 2>/dev/null; true'"
    return cluster.exec(node, "sh", "-c", script).stdout


def test_owner_mode_and_place_of_a_file(cluster: Cluster, hello: str, put: Put) -> None:
    put("create", "secret", "key", "k")
    put("create", "config", "app.conf", "c")
    for users in ((), ("--userns", "private")):
        (task,) = cluster.script(
            "one", hello, IDLE, *users, "--read-only", "--config", "app.conf",
            "--secret", "source=key,target=/etc/ssl/own.key,uid=1000,gid=1001,mode=0440",
        )  # fmt: skip
        look = ("/bin/busybox", "stat", "-c", "%n %u %g %a")
        seen = cluster.in_task(task, *look, "/etc/ssl/own.key", "/app.conf").stdout
        assert seen.splitlines() == ["/etc/ssl/own.key 1000 1001 440", "/app.conf 0 0 444"]
        for attempt in ("echo x > /app.conf", "rm /app.conf", "mv /etc/ssl/own.key /etc/ssl/a"):
            done = cluster.in_task(task, "/bin/busybox", "sh", "-c", attempt, ok=False)
            assert done.returncode != 0
        cluster.orc("service", "rm", "-d", "one")
        eventually(lambda: not cluster.json("service", "ls"))


def test_new_version_rolls_only_services_that_reference_it(
    cluster: Cluster, hello: str, put: Put
) -> None:
    put("create", "secret", "db", "one")
    before = ids(cluster.script("api", hello, IDLE, "--secret", "db", "--replicas", "2"))
    others = ids(cluster.script("web", hello, IDLE, "--replicas", "2"))
    assert "service api is updated" in put("update", "secret", "db", "two")

    tasks = cluster.running("api")
    assert len(tasks) == 2
    assert not ids(tasks) & before
    assert [read(cluster, task, "/run/secrets/db") for task in tasks] == ["two"] * 2
    assert ids(cluster.running("web")) == others
    assert "the data is unchanged" in put("update", "secret", "db", "two")
    cluster.orc("service", "rollback", "api")
    for task in cluster.await_running("api", 2):
        assert read(cluster, task, "/run/secrets/db") == "one"
    after = ids(cluster.running("api"))
    cluster.orc("service", "update", "--label-add", "a=b", "api")
    assert ids(cluster.running("api")) == after


def test_killed_manager_loses_no_update(cluster: Cluster, hello: str, put: Put) -> None:
    put("create", "secret", "db", "one")
    cluster.script("api", hello, IDLE, "--secret", "db", "--replicas", "3")
    put("update", "secret", "db", "two", "--detach")
    cluster.kill9("manager1", "daemon")

    def rolled() -> bool:
        tasks = cluster.await_running("api", 3)
        return all(read(cluster, task, "/run/secrets/db") == "two" for task in tasks)

    assert eventually(rolled)


def test_a_version_that_does_not_work_is_rolled_back(
    cluster: Cluster, hello: str, put: Put
) -> None:
    put("create", "config", "mode", "good")
    script = f"/bin/busybox grep -q good /mode || exit 3; {IDLE}"
    (task,) = cluster.script(
        "api", hello, script, "--config", "mode", "--update-failure-action", "rollback",
        "--update-monitor", "1s",
    )  # fmt: skip
    said = put("update", "config", "mode", "bad", status=4)
    assert "service 'api' was rolled back: 1 of 1 failed" in said
    assert "exit status 3" in said
    (again,) = cluster.await_running("api", 1)
    assert again["id"] != task["id"]
    assert read(cluster, again, "/mode") == "good"
    put("update", "config", "mode", "good, too")
    (last,) = cluster.running("api")
    assert read(cluster, last, "/mode") == "good, too"


def test_a_new_version_by_signal(cluster: Cluster, hello: str, put: Put) -> None:
    put("create", "config", "app.conf", "version 1\n")
    (task,) = cluster.script(
        "api", hello, TELL, "--config", "source=app.conf,on-update=signal", "--userns", "private"
    )
    # It listens for the signal before it says that.
    eventually(lambda: "version 1" in cluster.orc("service", "logs", "api").stdout)
    cluster.kill9(task["node"], "daemon")
    assert "service api is signalled" in put("update", "config", "app.conf", "version 2\n")

    def told() -> bool:
        lines = cluster.orc("service", "logs", "api").stdout.splitlines()
        texts = [line.partition("| ")[2] for line in lines]
        return texts[:1] == ["version 1"] and texts[-1] == "version 2"

    assert eventually(told)
    assert ids(cluster.running("api")) == {task["id"]}
    mounts = cluster.in_task(task, "/bin/busybox", "cat", "/proc/1/mountinfo").stdout
    assert mounts.count(" /app.conf ") == 1


def test_files_that_are_filled_in(cluster: Cluster, hello: str, put: Put) -> None:
    put("create", "secret", "db", "pw")
    put("create", "config", "plain", "p")
    text = '{{.Service.Name}} {{.Task.Slot}} {{ .Node.Hostname }} {{env "X"}} {{secret "db"}}'
    put("create", "config", "app.conf", text, "--template-driver", "golang")
    (task,) = cluster.script(
        "api", hello, IDLE, "--config", "app.conf", "--secret", "db", "--env", "X=y"
    )
    assert read(cluster, task, "/app.conf") == f"api 1 {task['node']} y pw"


def test_a_container_of_its_own(cluster: Cluster, hello: str, put: Put) -> None:
    put("create", "secret", "db", "one")
    run = ("run", "-d", "--name", "cc", "--secret", "db", "--entrypoint", "/bin/busybox", hello)
    cluster.orc(*run, "sh", "-c", "cat /run/secrets/db; echo")
    eventually(lambda: cluster.orc("logs", "cc").stdout.split() == ["one"])
    assert "container cc gets it with its next update or start" in put(
        "update", "secret", "db", "two"
    )
    assert "in use by container cc" in cluster.refused("secret", "rm", "db")
    cluster.orc("start", "cc")
    eventually(lambda: cluster.orc("logs", "cc").stdout.split() == ["one", "two"])
    cluster.orc("rm", "-f", "cc")
    cluster.orc("secret", "rm", "db")


def test_a_node_that_boots_without_a_manager_waits_for_the_secret(
    cluster: Cluster, hello: str, put: Put
) -> None:
    put("create", "secret", "db", VALUE)
    (task,) = cluster.script("api", hello, IDLE, "--secret", "db")
    node = task["node"]
    cluster.stop("manager1")
    try:
        # Restarted, the agent leaves what runs as it is.
        cluster.kill9(node, "daemon")
        assert read(cluster, task, "/run/secrets/db") == VALUE
        cluster.power_off(node)
        cluster.start(node)
        log = Path("/var/lib/orc-dev", cluster.name, node, "log")
        eventually(lambda: holds(log, "waits for secret db"))
    finally:
        cluster.start("manager1")

    def again() -> bool:
        (found,) = cluster.running("api")
        assert found["pid"] != task["pid"]
        return read(cluster, found, "/run/secrets/db") == VALUE

    assert eventually(again)


def test_invalid_secrets_are_refused(
    cluster: Cluster, hello: str, put: Put, tmp_path: Path
) -> None:
    put("create", "secret", "db", "x")
    service = ("service", "create", "--name", "api")
    for arguments, words in (
        (("secret", "create", "db", str(tmp_path / "data")), "secret 'db' already exists"),
        (("secret", "create", "d b", str(tmp_path / "data")), "name 'd b' is not valid"),
        (("secret", "inspect", "dbb"), "no secret 'dbb'; did you mean 'db'?"),
        (("config", "rm", "db"), "no config 'db'; see 'orc config ls'"),
        ((*service, "--secret", "dbx", hello), "no secret 'dbx'; did you mean 'db'?"),
    ):
        assert words in cluster.refused(*arguments)
    assert cluster.json("service", "ls") == []
