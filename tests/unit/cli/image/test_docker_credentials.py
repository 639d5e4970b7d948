# SPDX-License-Identifier: Apache-2.0
"""What this user's Docker has for registries, and what is done with it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import Result
from scripted_manager import Refusal

from orchestrator.cli.app.errors import CliError
from orchestrator.cli.image.docker_credentials import stored_login
from orchestrator.pb import control_pb2, images_pb2, types_pb2

HELPER = """#!/bin/sh
read -r key
test "$1" = get || exit 2
case "$key" in
reg.example) echo '{"ServerURL": "reg.example", "Username": "me", "Secret": "fresh"}' ;;
token.example) echo '{"Username": "<token>", "Secret": "t0ken"}' ;;
https://index.docker.io/v1/) echo '{"Username": "hub", "Secret": "h"}' ;;
broken.example) echo 'the keychain is locked'; exit 1 ;;
odd.example) echo hello ;;
*) echo 'credentials not found in native keychain'; exit 1 ;;
esac
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Writes Docker's config.json; one helper, `keys`, is in the PATH."""
    program = tmp_path / "bin" / "docker-credential-keys"
    program.parent.mkdir()
    program.write_text(HELPER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))

    def write(**document: Any) -> None:
        (tmp_path / "config.json").write_text(json.dumps(document))

    return write


def basic(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_no_credentials(docker: Callable[..., None]) -> None:
    assert stored_login("reg.example") is None
    docker(credsStore="keys")
    assert stored_login("unknown.example") is None


def test_a_helper_for_all_and_one_for_a_registry(docker: Callable[..., None]) -> None:
    docker(credsStore="keys", auths={"kept.example": {"auth": basic("a:b:c")}})
    found = stored_login("reg.example")
    assert found is not None
    assert (found.username, found.password) == ("me", "fresh")
    assert found.source == "docker-credential-keys"
    hub = stored_login("docker.io")
    assert hub is not None
    assert hub.username == "hub"
    token = stored_login("token.example")
    assert token is not None
    assert (token.username, token.identity_token) == ("", "t0ken")
    kept = stored_login("kept.example")
    assert kept is not None
    assert (kept.username, kept.password) == ("a", "b:c")
    docker(credHelpers={"reg.example": "keys"}, credsStore="lacking")
    assert stored_login("reg.example") is not None


@pytest.mark.parametrize(
    ("registry", "line"),
    [
        ("broken.example", "docker-credential-keys failed: the keychain is locked"),
        ("odd.example", "docker-credential-keys returned no credentials"),
        ("lacking.example", "docker-credential-lacking is named in "),
    ],
)
def test_failing_credential_helper(docker: Callable[..., None], registry: str, line: str) -> None:
    docker(credHelpers={"lacking.example": "lacking"}, credsStore="keys")
    with pytest.raises(CliError, match=line):
        stored_login(registry)


def test_invalid_docker_configuration(docker: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CliError, match="is not a Docker configuration"):
        stored_login("reg.example")


def test_login_pull_and_push_use_it(
    manager: Any, run: Callable[..., Result], docker: Callable[..., None]
) -> None:
    docker(credsStore="keys", credHelpers={"lacking.example": "lacking"})
    manager.script.answers["Login"] = images_pb2.LoginReply(registry="reg.example")
    result = run("login", "reg.example")
    assert result.stdout == "logged in to reg.example as me, by docker-credential-keys\n"
    request = manager.script.request("Login")
    assert (request.username, request.password) == ("me", "fresh")
    done = [control_pb2.ImageProgress(image={"id": "sha256:" + "ab" * 32})]
    for verb in ("Pull", "Push"):
        manager.script.answers[verb] = done
        run(verb.lower(), "reg.example/x:1")
        request = manager.script.request(verb)
        assert request.login == images_pb2.RegistryLogin(username="me", password="fresh")
    run("pull", "token.example/x:1")
    assert manager.script.request("Pull").login.identity_token == "t0ken"
    # A helper that is not there stops nobody: the registry may not ask.
    result = run("pull", "lacking.example/x:1")
    assert result.exit_code == 0
    assert "note: docker-credential-lacking is named in " in result.stderr


def test_run_of_a_missing_image_asks_the_credential_helper(
    manager: Any, run: Callable[..., Result], docker: Callable[..., None], tmp_path: Path
) -> None:
    docker(credsStore="keys")
    answers = manager.script.answers
    answers["CreateContainer"] = types_pb2.Task(id="t1")
    answers["Pull"] = [control_pb2.ImageProgress(image={"id": "sha256:" + "ab" * 32})]
    there = images_pb2.InspectImageReply()
    answers["Inspect"] = lambda request: there if "there" in request.image else MISSING

    def methods(*words: str) -> list[str]:
        before = len(manager.script.requests)
        run("create", *words)
        called = [name for name, _ in manager.script.requests[before:]]
        return called[: called.index("CreateContainer") + 1]

    assert methods("reg.example/x:1") == ["Inspect", "Pull", "CreateContainer"]
    assert manager.script.request("Pull").login.password == "fresh"
    assert methods("reg.example/there:1") == ["Inspect", "CreateContainer"]
    assert methods("unknown.example/x:1") == ["Inspect", "CreateContainer"]
    (tmp_path / "config.json").unlink()
    assert methods("reg.example/x:1") == ["CreateContainer"]


MISSING = Refusal(grpc.StatusCode.NOT_FOUND, "no such image")
