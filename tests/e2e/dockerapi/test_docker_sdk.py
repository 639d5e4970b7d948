# SPDX-License-Identifier: Apache-2.0
"""docker-py, and the status codes and words of refusals."""

from __future__ import annotations

import http.client
import io
import json
import socket
import tarfile
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import docker as sdk
import pytest
from devcluster import Cluster, eventually
from dockerclient import Docker, Run, gateway

pytestmark = [pytest.mark.root, pytest.mark.e2e]


@pytest.fixture
def client(docker: Docker) -> Iterator[sdk.DockerClient]:
    with docker.sdk() as found:
        yield found


def test_version_is_negotiated(docker: Docker) -> None:
    for version in ("1.40", "1.45", "auto"):
        with docker.sdk(version=version) as client:
            assert client.ping()
            assert client.containers.list() == []
    with docker.sdk(version="1.99") as client, pytest.raises(sdk.errors.APIError, match="too new"):
        client.containers.list()


def test_dev_cluster_has_a_gateway(cluster: Cluster, docker: Docker, run: Run) -> None:
    container = run("seen", "sleep 600")
    url = f"unix:///var/lib/orc-dev/{cluster.name}/docker.sock"
    own = Docker(url, {**docker.env, "DOCKER_HOST": url})
    assert container in own.lines("ps", "--quiet", "--no-trunc")


def test_container_is_run_and_its_output_and_status_returned(
    client: sdk.DockerClient, box: str
) -> None:
    assert client.containers.run(box, ["echo", "out"], remove=True) == b"out\n"
    with pytest.raises(sdk.errors.ContainerError) as caught:
        client.containers.run(box, ["sh", "-c", "echo why >&2; exit 4"], remove=True)
    assert (caught.value.exit_status, caught.value.stderr) == (4, b"why\n")
    with pytest.raises(sdk.errors.ImageNotFound):
        client.api.create_container("nosuch:1")
    assert client.containers.list(all=True) == []


def test_container_of_a_client_library(client: sdk.DockerClient, box: str) -> None:
    made = client.containers.run(
        box,
        ["sh", "-c", "while :; do echo tick; sleep 0.1; done"],
        detach=True,
        name="main",
        labels={"a": "b"},
        environment={"A": "1"},
        stop_signal="SIGKILL",
    )
    assert made.status == "created"
    made.reload()
    assert (made.status, made.name, made.labels["a"]) == ("running", "main", "b")
    stream = made.logs(stream=True, follow=True)
    assert b"tick" in next(stream)
    stream.close()
    code, (out, err) = made.exec_run(["sh", "-c", "echo $A; echo e >&2; exit 2"], demux=True)
    assert (code, out, err) == (2, b"1\n", b"e\n")
    stats = made.stats(stream=False)
    assert stats["memory_stats"]["usage"] > 0
    assert stats["cpu_stats"]["cpu_usage"]["total_usage"] > 0
    made.put_archive("/", _tar("file", b"content"))
    chunks, info = made.get_archive("/file")
    assert info["size"] == 7
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as members:
        content = members.extractfile("file")
        assert content is not None
        assert content.read() == b"content"
    assert {row["Path"]: row["Kind"] for row in made.diff()}["/file"] == 1
    made.stop(timeout=1)
    assert made.wait() == {"StatusCode": 137}
    made.remove()
    with pytest.raises(sdk.errors.NotFound, match="No such container"):
        client.containers.get("main")


def _tar(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as members:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        members.addfile(info, io.BytesIO(content))
    return file.getvalue()


def test_attached_socket_carries_stdin_and_stdout(client: sdk.DockerClient, box: str) -> None:
    made = client.containers.create(box, ["cat"], stdin_open=True, name="main")
    attached = made.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
    made.start()
    attached._sock.sendall(b"to and fro")
    attached._sock.shutdown(socket.SHUT_WR)
    received = b""
    while data := attached._sock.recv(1 << 16):
        received += data
    assert received == b"\1\0\0\0\0\0\0\x0ato and fro"
    assert made.wait()["StatusCode"] == 0


def test_attached_client_gets_the_output_so_far(client: sdk.DockerClient, box: str) -> None:
    script = "echo early; read word; echo $word"
    made = client.containers.run(box, ["sh", "-c", script], stdin_open=True, detach=True)
    eventually(lambda: made.logs() == b"early\n")
    assert made.attach(logs=True) == b"early\n"
    attached = made.attach_socket(params={"logs": 1, "stdin": 1, "stdout": 1, "stream": 1})
    attached._sock.sendall(b"late\n")
    received = b""
    while data := attached._sock.recv(1 << 16):
        received += data
    assert received == b"\1\0\0\0\0\0\0\x06early\n\1\0\0\0\0\0\0\x05late\n"
    assert made.attach(logs=True) == b"early\nlate\n"


def test_image_is_built_from_an_archive(client: sdk.DockerClient, box: str) -> None:
    file = io.BytesIO(f"FROM {box}\nCMD echo built\n".encode())
    image, lines = client.images.build(fileobj=file, tag="built:1", rm=True)
    try:
        assert "built:1" in image.tags
        assert any("Successfully built" in line.get("stream", "") for line in lines)
        assert client.containers.run("built:1", remove=True) == b"built\n"
        with pytest.raises(sdk.errors.BuildError, match="RUN false"):
            client.images.build(fileobj=io.BytesIO(f"FROM {box}\nRUN false\n".encode()))
    finally:
        client.images.remove("built:1", force=True)


def test_events_follow_a_container(client: sdk.DockerClient, box: str) -> None:
    events = client.events(decode=True, filters={"type": "container", "label": "of=sdk"})
    found: list[dict[str, Any]] = []

    def listen() -> None:
        for event in events:
            found.append(event)
            if event["Action"] == "destroy":
                return

    listener = threading.Thread(target=listen)
    listener.start()
    client.containers.run(box, ["true"], labels={"of": "sdk"}, name="short", remove=True)
    listener.join(60)
    events.close()
    actions = [event["Action"] for event in found]
    assert [each for each in actions if each in ("create", "start", "die", "destroy")] == [
        *("create", "start", "die", "destroy")
    ]
    assert {event["Actor"]["Attributes"]["name"] for event in found} == {"short"}
    assert all(event["id"] == event["Actor"]["ID"] for event in found)


FILTER = quote('{"no":["x"]}')


def _request(docker: Docker, method: str, path: str, body: Any = None) -> tuple[int, str]:
    """The status of an answer and its `message`."""
    connection = http.client.HTTPConnection("docker")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(docker.url.removeprefix("unix://"))
    try:
        text = body if isinstance(body, str) else json.dumps(body) if body is not None else None
        connection.request(method, path, text, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"{}").get("message", "")
    finally:
        connection.close()


def test_refusals_have_dockers_status_and_words(docker: Docker, run: Run, box: str) -> None:
    id = run("main", "sleep 1000")
    for method, path, body, status, words in (
        ("GET", "/containers/nosuch/json", None, 404, "No such container: nosuch"),
        ("GET", "/images/nosuch/json", None, 404, "No such image: nosuch:latest"),
        ("GET", "/networks/nosuch", None, 404, "network nosuch not found"),
        ("GET", "/volumes/nosuch", None, 404, "nosuch"),
        ("GET", "/services/nosuch", None, 404, "service nosuch not found"),
        ("GET", "/tasks/nosuch", None, 404, "task nosuch not found"),
        ("GET", "/exec/nosuch/json", None, 404, "No such exec instance: nosuch"),
        ("GET", "/nosuch", None, 404, "page not found"),
        ("POST", "/containers/create", {"Image": "nosuch:1"}, 404, "No such image: nosuch:1"),
        ("POST", "/containers/create?name=main", {"Image": box}, 409, "is already in use"),
        ("DELETE", "/containers/main", None, 409, "stop the container before removing"),
        ("POST", "/containers/main/rename?name=", None, 400, "may be empty"),
        ("POST", "/containers/create", "{", 400, "invalid JSON"),
        ("POST", "/containers/create", {"Image": 1}, 400, "Image must be a string"),
        ("POST", "/containers/main/exec", {}, 400, "No exec command specified"),
        ("GET", f"/containers/json?filters={FILTER}", None, 400, "invalid filter 'no'"),
        ("GET", "/containers/json?limit=x", None, 400, "limit"),
        ("POST", "/containers/main/wait?condition=never", None, 400, 'invalid condition: "never"'),
        ("POST", "/containers/main/start", None, 304, ""),
        ("POST", "/swarm/init", {}, 503, "already part of a swarm"),
        ("POST", "/session", None, 501, "DOCKER_BUILDKIT=0"),
        ("GET", "/v1.99/info", None, 400, "is too new"),
    ):  # fmt: skip
        got = _request(docker, method, path, body)
        assert got[0] == status, (method, path, got)
        assert words in got[1], (method, path, got)
    assert docker.inspect(id)["State"]["Running"] is True


def test_two_gateways_give_the_same_answers(
    docker: Docker, cluster: Cluster, run: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run("main", "sleep 1000")
    with gateway(cluster, tmp_path_factory.mktemp("other")) as other:
        assert other.inspect("main") == docker.inspect("main")
        assert other("ps", "-aq", "--no-trunc") == docker("ps", "-aq", "--no-trunc")
        with docker.sdk() as here, other.sdk() as there:
            id = here.api.exec_create("main", ["echo", "by another"])["Id"]
            assert there.api.exec_start(id) == b"by another\n"

            def state(client: sdk.DockerClient) -> tuple[bool, int | None]:
                found = client.api.exec_inspect(id)
                return found["Running"], found["ExitCode"]

            id = here.api.exec_create("main", ["sh", "-c", "exit 3"])["Id"]
            assert (state(here), state(there)) == ((False, None), (False, None))
            here.api.exec_start(id)
            assert (state(here), state(there)) == ((False, 3), (False, 3))
            id = here.api.exec_create("main", ["sh", "-c", "read word; exit 5"], stdin=True)["Id"]
            attached = here.api.exec_start(id, socket=True)
            eventually(lambda: state(there) == (True, None))
            attached._sock.shutdown(socket.SHUT_RDWR)
            eventually(lambda: (state(here), state(there)) == ((False, 5), (False, 5)))
            id = here.api.exec_create("main", ["/nosuch"])["Id"]
            here.api.exec_start(id)
            assert (state(here), state(there)) == ((False, 126), (False, 126))
