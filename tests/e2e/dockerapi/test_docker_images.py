# SPDX-License-Identifier: Apache-2.0
"""Images by the docker CLI."""

from __future__ import annotations

import base64
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from devcluster import Cluster
from dockerclient import Docker, Run
from registryhost import RegistryHost, allow_insecure, home, registry, trust

pytestmark = [pytest.mark.root, pytest.mark.e2e]


HOSTS = ("node1", "node2", "node3", "manager1")


@pytest.fixture
def plain_registry(cluster: Cluster, tmp_path: Path) -> Iterator[RegistryHost]:
    """A registry without TLS, which all hosts know as insecure."""
    with registry(cluster, tmp_path) as host:
        allow_insecure(cluster, host.name, *HOSTS)
        yield host
        for each in HOSTS:
            (home(cluster, each) / "registries.conf").unlink()


@pytest.fixture
def mine(docker: Docker, box: str, tmp_path: Path) -> Iterator[str]:
    """An image of this test's own, built from a folder with a `.dockerignore`."""
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(
        f"FROM {box}\nARG WORD=none\nCOPY . /context\nRUN echo $WORD > /word\n"
    )
    (folder / ".dockerignore").write_text("hidden\n")
    (folder / "hidden").write_text("hidden")
    (folder / "shown").write_text("shown")
    output = docker(
        "build", "-t", "mine:1", "--build-arg", "WORD=built", "--label", "of=me", str(folder)
    )
    assert "RUN echo $WORD" in output
    assert "Successfully tagged mine:1" in output
    yield "mine:1"
    for name in docker.lines("images", "mine", "--format", "{{.Repository}}:{{.Tag}}"):
        docker("rmi", "-f", name)


def test_built_image_has_its_context_arguments_and_labels(docker: Docker, mine: str) -> None:
    words = ("run", "--rm", mine, "sh", "-c", "cat /word; ls -A /context")
    assert docker.lines(*words) == ["built", ".dockerignore", "Dockerfile", "shown"]
    found = docker.inspect(mine, "image")
    assert found["Config"]["Labels"]["of"] == "me"
    assert "mine:1" in found["RepoTags"]
    assert found["Id"] == docker("images", "-q", "--no-trunc", "mine:1")


def test_quiet_build_prints_the_id(docker: Docker, box: str) -> None:
    id = docker("build", "-q", "-", stdin=f"FROM {box}\nLABEL a=quiet\n")
    assert docker.inspect(id, "image")["Id"] == id
    docker("rmi", id)


def test_failed_build_names_the_step_and_leaves_no_image(docker: Docker, box: str) -> None:
    before = docker.lines("images", "-q")
    done = docker.run("build", "-t", "mine:no", "-", stdin=f"FROM {box}\nRUN false\n", ok=False)
    assert done.returncode == 1
    assert "RUN false" in done.stderr
    assert docker.lines("images", "-q") == before
    done = docker.run("build", "-", stdin="NONSENSE\n", ok=False)
    assert done.returncode == 1
    assert "no FROM" in done.stderr


def test_tag_and_remove(docker: Docker, mine: str) -> None:
    docker("tag", mine, "mine:2")
    rows = docker.lines("images", "--filter", "reference=mine", "--format", "{{.Tag}} {{.ID}}")
    assert {row.split()[0] for row in rows} == {"1", "2"}
    assert len({row.split()[1] for row in rows}) == 1
    assert docker("rmi", "mine:2") == "Untagged: mine:2"
    assert "Deleted: sha256:" in docker("rmi", mine)
    assert docker.refused("rmi", mine) == ("Error response from daemon: No such image: mine:1")
    assert docker("images", "-q", "mine") == ""


def test_image_in_use_is_kept(docker: Docker, mine: str) -> None:
    docker("run", "-d", "--name", "user", "--stop-timeout", "0", mine, "sleep", "1000")
    assert "conflict" in docker.refused("rmi", mine).lower()
    assert docker("images", "-q", "mine") != ""


def test_saved_image_is_loaded_again(docker: Docker, mine: str, tmp_path: Path) -> None:
    archive = tmp_path / "archive.tar"
    id = docker.inspect(mine, "image")["Id"]
    docker("save", "-o", str(archive), mine)
    with tarfile.open(archive) as members:
        manifest = members.extractfile("manifest.json")
        assert manifest is not None
        assert json.load(manifest)[0]["RepoTags"] == ["mine:1"]
    docker("rmi", mine)
    assert docker("load", "-i", str(archive)) == "Loaded image: mine:1"
    assert docker.inspect(mine, "image")["Id"] == id
    assert docker("run", "--rm", mine, "cat", "/word") == "built"


def test_commit_export_and_import(docker: Docker, run: Run, tmp_path: Path, mine: str) -> None:
    run("main", "echo kept > /kept; sleep 1000")
    id = docker("commit", "-c", 'CMD ["cat", "/kept"]', "-m", "note", "main", "mine:committed")
    assert docker("run", "--rm", "mine:committed") == "kept"
    rows = [json.loads(row) for row in docker.lines("history", "--format", "json", id)]
    assert rows[0]["Comment"] == "note"
    archive = tmp_path / "files.tar"
    docker("export", "-o", str(archive), "main")
    with tarfile.open(archive) as members:
        assert members.getmember("kept").size == 5
    docker("import", "-c", "ENV PATH=/bin", str(archive), "mine:imported")
    assert docker("run", "--rm", "mine:imported", "cat", "/kept") == "kept"


def test_pushed_image_is_pulled(docker: Docker, mine: str, plain_registry: RegistryHost) -> None:
    name = f"{plain_registry.name}/mine:1"
    docker("tag", mine, name)
    output = docker("push", name)
    assert f"The push refers to repository [{plain_registry.name}/mine]" in output
    assert "digest: sha256:" in output
    docker("rmi", "-f", name, mine)
    assert docker("run", "--rm", name, "cat", "/word") == "built"
    digest = docker.inspect(name, "image")["RepoDigests"][0]
    assert digest.startswith(f"{plain_registry.name}/mine@sha256:")
    assert "Status: " in docker("pull", name)
    docker("rmi", "-f", name)
    line = docker.refused("pull", f"{plain_registry.name}/nosuch:1")
    assert "nosuch" in line


def test_service_is_pulled_with_the_users_credentials(
    cluster: Cluster, docker: Docker, mine: str, tmp_path: Path
) -> None:
    with registry(cluster, tmp_path, port=5002, tls=True, password="open-sesame") as host:
        trust(cluster, host.name, tmp_path / "tls.crt", *HOSTS)
        name = f"{host.name}/mine:1"
        config = tmp_path / "docker"
        config.mkdir()
        auth = base64.b64encode(b"orc:open-sesame").decode()
        (config / "config.json").write_text(json.dumps({"auths": {host.name: {"auth": auth}}}))
        user = replace(docker, env={**docker.env, "DOCKER_CONFIG": str(config)})
        docker("tag", mine, name)
        user("push", name)
        docker("rmi", "-f", name, mine)
        create = ("service", "create", "--name", "web", "--stop-grace-period", "100ms")
        words = (name, "sleep", "3600")
        assert "denies access" in user.refused(*create, *words)
        user(*create, "--with-registry-auth", *words)
        assert len(cluster.running("web")) == 1
        docker("service", "rm", "web")
        cluster.orc("logout", host.name)
        (tmp_path / "stack.yaml").write_text(
            f"services: {{db: {{image: '{name}', command: sleep 3600, stop_grace_period: 100ms}}}}"
        )
        deploy = ("stack", "deploy", "-c", str(tmp_path / "stack.yaml"))
        user(*deploy, "--with-registry-auth", "shop")
        cluster.await_running("shop_db", 1)
        docker("stack", "rm", "shop")
        cluster.orc("logout", host.name)


def test_missing_image_is_reported_in_dockers_words(docker: Docker) -> None:
    line = docker.refused("image", "inspect", "nosuch")
    assert line == "Error response from daemon: No such image: nosuch:latest"
    assert "invalid reference format" in docker.refused("pull", "No:such:name")
