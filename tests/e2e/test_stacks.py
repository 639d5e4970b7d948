# SPDX-License-Identifier: Apache-2.0
"""Stacks as a user has them: deployed, changed, planned, pruned, removed, refused."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from devcluster import ORC, Cluster, eventually
from packagedhost import HELLO

pytestmark = [pytest.mark.root, pytest.mark.e2e]

SHOP = """
name: shop
services:
  web:
    image: hello:1
    environment: {GREETING: "${GREETING:-hi}"}
    ports: ["8085:80"]
    stop_grace_period: 100ms
    depends_on:
      api: {condition: service_healthy}
    deploy: {replicas: 2}
  api:
    image: hello:1
    stop_grace_period: 100ms
    networks: {default: , back: {aliases: [inner]}}
    volumes: ["data:/data"]
    healthcheck: {test: [HTTP, 80/cgi-bin/index.cgi], interval: 1s}
    depends_on:
      setup: {condition: service_completed_successfully}
  setup:
    image: hello:1
    entrypoint: [/bin/busybox, "true"]
    networks: [back]
networks:
  back: {driver_opts: {com.docker.network.driver.mtu: "1300"}}
volumes:
  data: {driver_opts: {size: 10m}}
"""

SAMPLES = Path(__file__).parents[1] / "unit" / "compose" / "samples"

Write = Callable[..., str]


@pytest.fixture
def tidy(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, afterwards without stacks and volumes."""
    yield cluster
    if names := [row["name"] for row in cluster.json("stack", "ls")]:
        cluster.orc("stack", "rm", *names)
    cluster.orc("volume", "prune", "--all", "--force")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a compose file; its path."""

    def file(text: str, name: str = "compose.yaml") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return file


def ids(cluster: Cluster, stack: str) -> dict[str, str]:
    """The running tasks of a stack: name → id."""
    rows = cluster.json("stack", "ps", stack)
    return {row["name"]: row["id"] for row in rows if row["state"] == "running"}


def plan_json(cluster: Cluster, *arguments: str) -> dict[str, Any]:
    """What `orc plan stack …` says."""
    text = cluster.orc("plan", "--format", "json", "stack", *arguments).stdout
    document: dict[str, Any] = json.loads(text)
    return document


def test_a_stack_is_deployed_in_order_and_reached_by_its_names(
    tidy: Cluster, hello: str, write: Write
) -> None:
    cluster, file = tidy, write(SHOP)
    plan = plan_json(cluster, "deploy", "-c", file, "shop")
    assert [(step["action"], step["kind"], step["name"]) for step in plan["steps"]] == [
        ("create", "network", "shop_back"),
        ("create", "network", "shop_default"),
        ("create", "volume", "shop_data"),
        ("create", "service", "shop_setup"),
        ("create", "service", "shop_api"),
        ("create", "service", "shop_web"),
    ]
    assert cluster.json("stack", "ls") == []

    cluster.orc("stack", "deploy", "-c", file, "shop")
    (row,) = cluster.json("stack", "ls")
    assert (row["name"], row["services"], row["networks"]) == ("shop", 3, 2)
    services = {row["name"]: row for row in cluster.json("stack", "services", "shop")}
    assert {name: row["running"] for name, row in services.items()} == {
        "shop_api": 1,
        "shop_setup": 0,
        "shop_web": 2,
    }
    assert {row["labels"]["com.docker.stack.namespace"] for row in services.values()} == {"shop"}
    (volume,) = cluster.json("volume", "ls")
    assert (volume["name"], volume["options"]) == ("shop_data", {"size": "10m"})

    (first, *_) = cluster.running("shop_web")
    page = ("/bin/busybox", "wget", "-qO-", "-T", "2")
    for host in ("api", "API", "shop_api", "shop_api.1"):
        asked = ("exec", first["name"], *page, f"http://{host}/")
        eventually(lambda asked=asked: "Hello from shop_api.1" in cluster.orc(*asked).stdout)  # type: ignore[misc]
    # `inner` is a name on the other network only.
    assert cluster.orc("exec", first["name"], *page, "http://inner/", ok=False).returncode != 0
    published = (*page, "http://127.0.0.1:8085/")
    eventually(lambda: "Hello from shop_web" in cluster.exec("node1", *published).stdout)

    done = cluster.orc("stack", "rm", "shop")
    assert [line for line in done.stderr.splitlines() if line.startswith("removed service")] == [
        "removed service shop_web",
        "removed service shop_api",
        "removed service shop_setup",
    ]
    assert cluster.json("stack", "ls") == []
    assert {row["name"] for row in cluster.json("network", "ls")} == {"bridge", "default"}
    # As in Docker, data stays.
    assert [row["name"] for row in cluster.json("volume", "ls")] == ["shop_data"]


def test_only_changed_services_are_restarted_as_planned(
    tidy: Cluster, hello: str, write: Write
) -> None:
    cluster, file = tidy, write(SHOP)
    cluster.orc("stack", "deploy", "-c", file, "shop")
    before = ids(cluster, "shop")

    again = cluster.orc("stack", "deploy", "-c", file)  # which has the name
    assert "stack shop is up to date" in again.stderr
    assert ids(cluster, "shop") == before

    change = ("deploy", "-c", file, "--set", "GREETING=hello", "shop")
    plan = plan_json(cluster, *change)
    assert [(step["name"], step["changes"]) for step in plan["steps"]] == [("shop_web", ["env"])]
    assert {(task["action"], task["task"]) for task in plan["tasks"]} <= {
        (action, f"shop_web.{slot}") for action in ("replace", "move") for slot in (1, 2)
    }
    assert ids(cluster, "shop") == before

    shown = cluster.orc("stack", "deploy", "--dry-run", *change[1:]).stdout
    assert "change   service   shop_web   env" in shown
    assert ids(cluster, "shop") == before

    cluster.orc("stack", *change)
    after = ids(cluster, "shop")
    assert after["shop_api.1"] == before["shop_api.1"]
    assert not {after["shop_web.1"], after["shop_web.2"]} & set(before.values())

    # A later file changes what it names; labels of a service restart nothing.
    more = write("services: {api: {deploy: {labels: {team: blue}}}}", "more.yaml")
    cluster.orc("stack", "deploy", "-c", file, "-c", more, "--set", "GREETING=hello", "shop")
    assert ids(cluster, "shop") == after
    services = {row["name"]: row for row in cluster.json("stack", "services", "shop")}
    assert services["shop_api"]["labels"]["team"] == "blue"


def test_prune_removes_services_that_the_files_no_longer_have(
    tidy: Cluster, hello: str, write: Write
) -> None:
    cluster = tidy
    file = write("""
services:
  web: {image: hello:1, stop_grace_period: 100ms}
  old: {image: hello:1, stop_grace_period: 100ms, networks: [back], ports: ["8085:80"]}
networks: {back: }
""")
    cluster.orc("stack", "deploy", "-c", file, "shop")
    before = ids(cluster, "shop")
    file = write("""
services:
  web: {image: hello:1, stop_grace_period: 100ms}
  new: {image: hello:1, stop_grace_period: 100ms, ports: ["8085:80"]}
""")
    # Who leaves `old` there cannot have its port.
    line = cluster.refused("stack", "deploy", "-c", file, "shop")
    assert "port 8085/tcp is published by service 'shop_old'" in line
    assert ids(cluster, "shop") == before

    cluster.orc("stack", "deploy", "-c", file, "--prune", "shop")
    after = ids(cluster, "shop")
    assert set(after) == {"shop_web.1", "shop_new.1"}
    assert after["shop_web.1"] == before["shop_web.1"]
    assert "shop_back" not in {row["name"] for row in cluster.json("network", "ls")}


def test_conflicts_are_refused_before_anything_is_made(
    tidy: Cluster, hello: str, write: Write
) -> None:
    cluster = tidy
    one_text = "services: {web: {image: hello:1, ports: ['8085:80']}}"
    cluster.orc("stack", "deploy", "-c", write(one_text, "one.yaml"), "one")
    cluster.orc("service", "create", "--name", "two_db", hello)
    cluster.orc("network", "create", "two_back")

    def refused(text: str, *flags: str, name: str = "two") -> str:
        line = cluster.refused("stack", "deploy", "-c", write(text), *flags, name)
        assert [row["name"] for row in cluster.json("stack", "ls")] == ["one"]
        assert "two_default" not in {row["name"] for row in cluster.json("network", "ls")}
        assert cluster.json("volume", "ls") == []
        return line

    usual = "image: hello:1, volumes: ['data:/data']"
    tail = "\nvolumes: {data: }"
    assert "port 8085/tcp is published by service 'one_web'" in refused(
        f"services: {{api: {{{usual}}}, web: {{{usual}, ports: ['8085:80']}}}}{tail}"
    )
    assert "service 'two_db' exists already, and it is of no stack" in refused(
        f"services: {{db: {{{usual}}}}}{tail}"
    )
    assert "network 'two_back' exists already, and it is of no stack" in refused(
        f"services: {{web: {{{usual}, networks: [back]}}}}\nnetworks: {{back: }}{tail}"
    )
    assert "network 'nowhere' is external and does not exist" in refused(
        f"services: {{web: {{{usual}, networks: [b]}}}}"
        f"\nnetworks: {{b: {{external: true, name: nowhere}}}}{tail}"
    )
    assert "no image 'nowhere:1' in this cluster" in refused(
        f"services: {{web: {{{usual}}}, cache: {{image: nowhere:1}}}}{tail}"
    )
    assert "compose.yaml:1: build context" in refused(
        f"services: {{web: {{build: ./none, volumes: ['data:/data']}}}}{tail}"
    )
    assert "volume 'gone' is external and does not exist" in refused(
        "services: {web: {image: hello:1, volumes: ['gone:/d']}}\nvolumes: {gone: {external: true}}"
    )
    assert "compose.yaml:1: services.web.imag: unknown key of a service" in refused(
        "services: {web: {imag: hello:1}}"
    )
    assert "no stack 'on'; did you mean 'one'?" in cluster.refused("stack", "rm", "on")
    # A network cannot be changed under a stack's feet.
    text = one_text + "\nnetworks: {default: {internal: true}}"
    line = cluster.refused("stack", "deploy", "-c", write(text), "one")
    assert "network 'one_default' differs from the file in internal" in line


def test_exit_status_of_stack_deploy_shows_the_outcome(
    tidy: Cluster, hello: str, write: Write
) -> None:
    cluster = tidy
    text = """
services:
  web:
    image: hello:1
    entrypoint: [/bin/busybox, sleep, "${SECONDS:-1000}"]
    stop_grace_period: 100ms
    deploy: {update_config: {failure_action: rollback, monitor: 2s}}
"""
    cluster.orc("stack", "deploy", "-c", write(text), "shop")
    failing = ("stack", "deploy", "-c", write(text), "--set", "SECONDS=never", "shop")
    back = cluster.orc(*failing, ok=False)
    assert back.returncode == 4, back.stderr
    assert "service 'shop_web' was rolled back" in back.stderr
    assert set(ids(cluster, "shop")) == {"shop_web.1"}

    nowhere = write("""
services:
  web:
    image: hello:1
    deploy: {placement: {constraints: [node.hostname == nowhere]}}
""")
    late = cluster.orc("stack", "deploy", "-c", nowhere, "--timeout", "1s", "other", ok=False)
    assert late.returncode == 3, late.stderr
    assert "service 'other_web' has not converged in 1s" in late.stderr


def test_hooks_run_after_the_start_and_before_a_stop(
    tidy: Cluster, hello: str, write: Write
) -> None:
    cluster = tidy
    text = """
services:
  web:
    image: hello:1
    stop_signal: SIGKILL
    volumes: ["notes:/notes"]
    post_start: [{command: [/bin/busybox, sh, -c, "$CHECK; echo started >> /notes/all"]}]
    pre_stop:
      - command: [/bin/busybox, sh, -c, "echo $$WORD >> /notes/all"]
        environment: {WORD: stopping}
    deploy: {restart_policy: {condition: none}}
volumes: {notes: }
"""
    deploy = ("stack", "deploy", "-c", write(text), "shop")
    cluster.orc(*deploy, "--set", "CHECK=true")
    cluster.orc("service", "scale", "shop_web=0")
    cluster.orc("service", "scale", "shop_web=1")
    (id,) = ids(cluster, "shop").values()
    notes = cluster.orc("exec", id, "/bin/busybox", "cat", "/notes/all").stdout.split()
    assert notes == ["started", "stopping", "started"]
    shown = cluster.json("service", "inspect", "shop_web")[0]["spec"]["task"]["container"]
    assert shown["pre_stop"][0]["env"] == ["WORD=stopping"]

    cluster.orc(*deploy, "-d", "--set", "CHECK=echo no table >&2; exit 3")

    def errors() -> list[str]:
        rows = cluster.json("service", "ps", "shop_web")
        return [row["error"] for row in rows if row["state"] == "failed"]

    (error,) = eventually(errors)
    assert error.startswith("post_start hook 1 of 1 (/bin/busybox sh -c ")
    assert error.endswith(" failed: exit status 3: no table")


def test_changed_secrets_and_configs_roll_their_services(
    tidy: Cluster, hello: str, write: Write, tmp_path: Path
) -> None:
    cluster = tidy
    (tmp_path / "pw").write_text("first")
    file = write("""
services:
  web:
    image: hello:1
    stop_grace_period: 100ms
    secrets: [pw]
    configs: [{source: page, target: /etc/page, mode: 0440, uid: "5"}]
  other: {image: hello:1, stop_grace_period: 100ms, configs: [page]}
secrets: {pw: {file: pw}}
configs: {page: {content: "port ${PORT:-80}"}}
""")

    def read(name: str, path: str) -> str:
        return cluster.orc("exec", name, "/bin/busybox", "cat", path).stdout

    cluster.orc("stack", "deploy", "-c", file, "shop")
    assert read("shop_web.1", "/run/secrets/pw") == "first"
    assert read("shop_web.1", "/etc/page") == read("shop_other.1", "/page") == "port 80"
    look = ("exec", "shop_web.1", "/bin/busybox", "stat", "-c", "%a %u", "/etc/page")
    assert cluster.orc(*look).stdout.split() == ["440", "5"]
    assert [row["name"] for row in cluster.json("secret", "ls")] == ["shop_pw"]
    before = ids(cluster, "shop")
    cluster.orc("stack", "deploy", "-c", file, "shop")
    assert ids(cluster, "shop") == before

    (tmp_path / "pw").write_text("second")
    plan = plan_json(cluster, "deploy", "-c", file, "shop")
    assert [(step["name"], step["changes"]) for step in plan["steps"]] == [
        ("shop_pw", ["data"]),
        ("shop_web", ["secret shop_pw"]),
    ]
    assert {task["task"] for task in plan["tasks"]} == {"shop_web.1"}
    assert ids(cluster, "shop") == before
    cluster.orc("stack", "deploy", "-c", file, "shop")
    after = ids(cluster, "shop")
    assert read("shop_web.1", "/run/secrets/pw") == "second"
    assert after["shop_other.1"] == before["shop_other.1"]
    assert after["shop_web.1"] != before["shop_web.1"]

    # Without waiting, too, all of it goes; a deployment waits until it has.
    cluster.orc("stack", "rm", "-d", "shop")
    cluster.orc("stack", "deploy", "-c", file, "shop")
    assert not set(ids(cluster, "shop").values()) & set(after.values())
    assert read("shop_web.1", "/run/secrets/pw") == "second"
    cluster.orc("stack", "rm", "-d", "shop")
    eventually(lambda: cluster.json("secret", "ls") == cluster.json("config", "ls") == [])
    eventually(lambda: "shop_default" not in {row["name"] for row in cluster.json("network", "ls")})


def test_sample_stacks_can_be_planned(tidy: Cluster) -> None:
    # No registry is asked: which image a name stands for is left to the nodes.
    environment = {"GRAFANA_PASSWORD": "hush", "MARIADB_ROOT_PASSWORD": "hush"}
    settings = [word for key, value in environment.items() for word in ("--set", f"{key}={value}")]
    for sample in sorted(SAMPLES.glob("*.yaml")):
        if sample.stem == "common":
            continue
        flags = ("--resolve-image", "never", *settings, "-c", str(sample), sample.stem)
        plan = plan_json(tidy, "deploy", *flags)
        made = {step["name"] for step in plan["steps"] if step["kind"] == "service"}
        assert made, sample
        assert {task["service"] for task in plan["tasks"]} <= made
        assert {task["action"] for task in plan["tasks"]} <= {"start", "wait"}
    assert tidy.json("stack", "ls") == []


def test_a_chart_is_built_and_deployed_with_its_values(tidy: Cluster, hello: str) -> None:
    cluster = tidy
    values = ("--set", "port=8086", "--set", "replicas=2", "--set", "tag=chart")
    plan = plan_json(cluster, "deploy", *values, str(HELLO), "hello")
    assert [(step["action"], step["name"]) for step in plan["steps"]] == [
        ("build", "hello:chart"),
        ("create", "hello_default"),
        ("create", "hello_web"),
    ]
    cluster.orc("stack", "deploy", *values, str(HELLO), "hello")
    (service,) = cluster.json("stack", "services", "hello")
    assert (service["image"], service["running"]) == ("hello:chart", 2)
    assert service["ports"][0]["published"] == 8086
    before = ids(cluster, "hello")
    # Files that are only written again make no other image.
    (HELLO / "busybox").touch()
    again = cluster.orc("stack", "deploy", *values, str(HELLO), "hello")
    assert "building" not in again.stderr
    assert ids(cluster, "hello") == before


def test_deployment_matches_its_plan(tidy: Cluster, hello: str, write: Write) -> None:
    cluster, file = tidy, write(SHOP)
    plan = plan_json(cluster, "deploy", "-c", file, "shop")
    cluster.orc("stack", "deploy", "-c", file, "shop")
    rows = cluster.json("stack", "ps", "shop")
    assert {task["task"]: task["to"] for task in plan["tasks"]} == {
        row["name"]: row["node"] for row in rows
    }


def test_a_deployment_that_was_cut_off_goes_on(tidy: Cluster, hello: str, write: Write) -> None:
    cluster, names = tidy, [f"s{number}" for number in range(8)]
    body = "image: hello:1, stop_grace_period: 100ms"
    file = write("services:\n" + "".join(f"  {name}: {{{body}}}\n" for name in names))
    command = [ORC, "stack", "deploy", "-c", file, "shop"]
    with subprocess.Popen(command, env=cluster.env, stderr=subprocess.PIPE, text=True) as cut:
        assert cut.stderr is not None
        assert any(line.startswith("created service") for line in cut.stderr)
        cut.kill()
    made = {row["id"] for row in cluster.json("stack", "services", "shop")}
    cluster.orc("stack", "deploy", "-c", file, "shop")
    services = {row["id"]: row["name"] for row in cluster.json("stack", "services", "shop")}
    assert sorted(services.values()) == [f"shop_{name}" for name in names]
    assert made <= services.keys()
