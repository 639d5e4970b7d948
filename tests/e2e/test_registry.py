# SPDX-License-Identifier: Apache-2.0
"""Registries, for real: pull, push, who may, what breaks, and how often a registry is asked."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from devcluster import Cluster, eventually
from forwardproxy import forward_proxy
from registryhost import RegistryHost, allow_insecure, home, registry, trust

pytestmark = [pytest.mark.root, pytest.mark.e2e]

NODES = ("node1", "node2", "node3")
MANAGER = "manager1"
"""It asks registries what names stand for, so it is configured as nodes are."""


@pytest.fixture
def plain(cluster: Cluster, tmp_path: Path) -> Iterator[RegistryHost]:
    """A registry without TLS, which all nodes know as insecure."""
    with registry(cluster, tmp_path) as host:
        allow_insecure(cluster, host.name, *NODES, MANAGER)
        yield host
        for node in (*NODES, MANAGER):
            (home(cluster, node) / "registries.conf").unlink()


@pytest.fixture
def pushed(cluster: Cluster, hello: str, plain: RegistryHost) -> Iterator[str]:
    """An image that only the registry has."""
    yield from _pushed(cluster, plain)


def _pushed(cluster: Cluster, host: RegistryHost) -> Iterator[str]:
    name = f"{host.name}/web:1"
    source = home(cluster, "node1").parent / "src"
    source.mkdir(parents=True, exist_ok=True)
    (source / "Dockerfile").write_text(
        f"FROM hello:1\nLABEL of={host.name} at={host.log.parent.name}\n"
    )
    cluster.orc("build", "-q", "-t", name, str(source))
    cluster.orc("push", name)
    cluster.orc("rmi", name)
    assert name not in _names(cluster)
    yield name
    services = [s["name"] for s in cluster.json("service", "ls")]
    if services:
        cluster.orc("service", "rm", "-d", *services)
    cluster.orc("rmi", "-f", name, ok=False)


def _names(cluster: Cluster) -> set[str]:
    return {f"{i['repository']}:{i['tag']}" for i in cluster.json("images")}


def test_an_image_comes_back_as_it_was_pushed(cluster: Cluster, pushed: str) -> None:
    done = cluster.orc("pull", "--node", "node2", pushed)
    assert "digest: sha256:" in done.stderr
    (image,) = [i for i in cluster.json("images") if f"{i['repository']}:{i['tag']}" == pushed]
    assert image["nodes"] == ["node2"]
    assert image["digest"] in done.stderr


def test_replicas_on_all_nodes_run_the_same_and_the_registry_serves_it_once(
    cluster: Cluster, pushed: str, plain: RegistryHost
) -> None:
    before = plain.requests("GET", "/blobs/")
    cluster.orc("service", "create", "--name", "web", "--mode", "global", pushed)
    assert len(cluster.running("web")) == len(NODES)
    fetched = plain.requests("GET", "/blobs/")[len(before) :]
    assert len(fetched) == len(set(fetched)) >= 1, fetched


def test_a_missing_image_is_refused_with_the_registrys_message(
    cluster: Cluster, hello: str, plain: RegistryHost
) -> None:
    line = cluster.refused("service", "create", "--name", "bad", f"{plain.name}/nosuch:1")
    assert f"no image '{plain.name}/nosuch:1' in this cluster, and" in line
    assert f"{plain.name} has no image" in line
    line = cluster.refused("pull", f"{plain.name}/nosuch:1")
    assert f"{plain.name} has no image {plain.name}/nosuch:1" in line
    address = plain.name.partition(":")[0]
    assert "cannot be reached (connection refused)" in cluster.refused("pull", f"{address}:1/x:1")


def test_tls_and_passwords(cluster: Cluster, hello: str, tmp_path: Path) -> None:
    with registry(cluster, tmp_path, port=5001, tls=True, password="open-sesame") as host:
        name = f"{host.name}/web:1"
        cluster.orc("tag", hello, name)
        line = _last_line(cluster, "push", name)
        assert "certificate" in line
        assert f"certs.d/{host.name}/ca.crt" in line
        trust(cluster, host.name, tmp_path / "tls.crt", *NODES, MANAGER)
        line = _last_line(cluster, "push", name)
        assert f"denies access to the image {name}" in line
        assert f"orc login {host.name}" in line
        login = ["login", "-u", "orc", "--password-stdin", host.name]
        assert "denies access" in _with_stdin(cluster, "wrong\n", *login).stderr
        assert _with_stdin(cluster, "open-sesame\n", *login).returncode == 0
        done = cluster.orc("push", name).stderr
        assert ": pushed " in done
        (pushed,) = [line.split()[1] for line in done.splitlines() if line.startswith("digest: ")]
        assert ": already exists" in cluster.orc("push", name).stderr
        cluster.orc("pull", "--node", "node3", name)
        for node in NODES:
            kept = cluster.exec(node, "grep", "-rlaF", "open-sesame", "/var/lib/orc-dev", ok=False)
            assert kept.stdout.replace(str(tmp_path), "") == ""
        cluster.orc("logout", host.name)
        assert "not logged in" in cluster.refused("logout", host.name)
        assert "denies access" in cluster.refused("pull", name)
        cluster.orc("rmi", name)
        mine = _with_helper(cluster, tmp_path, host.name)
        assert f"digest: {pushed}" in mine.orc("pull", "--node", "node3", name).stderr
        cluster.orc("rmi", name)
        # Nodes pull for a service by themselves, with what the cluster has then.
        assert "denies access" in mine.refused("service", "create", "--name", "web", name)
        mine.orc("service", "create", "--name", "web", "--with-registry-auth", name)
        assert len(cluster.running("web")) == 1
        cluster.orc("service", "rm", "-d", "web")
        cluster.orc("logout", host.name)
        # A stack likewise; without it nothing is made.
        (tmp_path / "compose.yaml").write_text(f"services: {{web: {{image: {name}}}}}")
        deploy = ("stack", "deploy", "-c", str(tmp_path / "compose.yaml"))
        assert "denies access" in mine.refused(*deploy, "shop")
        assert cluster.json("stack", "ls") == []
        mine.orc(*deploy, "--with-registry-auth", "shop")
        assert len(cluster.running("shop_web")) == 1
        cluster.orc("stack", "rm", "shop")
        # And for a build, as long as it goes on.
        (tmp_path / "Dockerfile").write_text(f"FROM {name}\nENV A=1\n")
        build = ("build", "--node", "node2", "-t", "above:1", str(tmp_path))
        assert f"{name}: resolving at its registry" in cluster.orc(*build).stderr
        cluster.orc("rmi", "above:1")
        cluster.orc("logout", host.name)
        assert "denies access" in cluster.orc(*build, ok=False).stderr
        assert "by docker-credential-test" in mine.orc("login", host.name).stdout
        cluster.orc("logout", host.name)


def _with_helper(cluster: Cluster, folder: Path, registry: str) -> Cluster:
    """The same cluster for a user whose Docker has a credential helper."""
    program = folder / "bin" / "docker-credential-test"
    program.parent.mkdir()
    answer = json.dumps({"ServerURL": registry, "Username": "orc", "Secret": "open-sesame"})
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(0o755)
    config = {"credHelpers": {registry: "test"}}
    (folder / "config.json").write_text(json.dumps(config))
    path = f"{program.parent}:{cluster.env['PATH']}"
    return Cluster(cluster.name, {**cluster.env, "DOCKER_CONFIG": str(folder), "PATH": path})


def test_a_tag_that_each_node_looks_up_may_come_later(
    cluster: Cluster, hello: str, plain: RegistryHost
) -> None:
    name = f"{plain.name}/late:1"
    cluster.orc(
        "service", "create", "-d", "--name", "late", "--no-resolve-image",
        "--restart-delay", "500ms", name,
    )  # fmt: skip
    eventually(
        lambda: any(
            f"{plain.name} has no image" in task["error"] for task in cluster.tasks("late")
        ),
    )
    cluster.orc("tag", hello, name)
    cluster.orc("push", name)
    cluster.await_running("late", 1)
    cluster.orc("service", "rm", "-d", "late")
    cluster.orc("rmi", "-f", name)


def _last_line(cluster: Cluster, *arguments: str) -> str:
    done = cluster.orc(*arguments, ok=False)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def _with_stdin(cluster: Cluster, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    from devcluster import ORC

    return subprocess.run(
        [ORC, *arguments], env=cluster.env, input=text, capture_output=True, text=True, check=False
    )


def test_a_node_behind_a_proxy(cluster: Cluster, pushed: str, plain: RegistryHost) -> None:
    """A registry by a name that only the proxy can look up; builds see the proxy, too."""
    gateway = plain.name.rpartition(".")[0] + ".1"
    named = "registry.beyond.test:5000"
    with forward_proxy(gateway, {named: plain.name}) as proxy:
        cluster.stop(MANAGER)
        cluster.stop("node3")
        flags = ("--http-proxy", proxy.url, "--https-proxy", proxy.url, "--no-proxy", plain.name)
        cluster.dev("start", MANAGER, "--", *flags)
        cluster.dev("start", "node3", "--", *flags)
        cluster.await_ready("node3")
        try:
            allow_insecure(cluster, named, "node3", MANAGER)
            image = pushed.replace(plain.name, named)

            def pulled() -> subprocess.CompletedProcess[str]:
                done = cluster.orc("pull", "--node", "node3", image, ok=False)
                assert "is not connected" not in done.stderr, "its agent has just started"
                return done

            done = eventually(pulled)
            assert done.returncode == 0, done.stderr
            assert f"GET {named}" in proxy.asked
            asked = list(proxy.asked)
            allow_insecure(cluster, plain.name, "node3", MANAGER)
            cluster.orc("pull", "--node", "node3", pushed)
            assert proxy.asked == asked, "--no-proxy leads past it"
            source = home(cluster, "node3").parent / "proxied"
            source.mkdir()
            (source / "Dockerfile").write_text(
                'FROM hello:1\nRUN ["/bin/busybox", "sh", "-c", "echo by $HTTPS_PROXY"]\n'
            )
            built = cluster.orc("build", "--node", "node3", "-t", "proxied:1", str(source))
            assert f"by {proxy.url}" in built.stderr
        finally:
            for host in (MANAGER, "node3"):
                cluster.stop(host)
                cluster.start(host)
            cluster.orc("rmi", image, "proxied:1", ok=False)
