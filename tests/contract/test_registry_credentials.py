# SPDX-License-Identifier: Apache-2.0
"""Credential helpers for a real registry whose password rotates."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from imageregistry import layout_of, registry_in, take_insecure
from managerhost import manager_in

from orchestrator.agent.images.store import ImageStore
from orchestrator.agent.images.transfer.registry import Registry
from orchestrator.identity.certificates import KeyPair
from orchestrator.model.convert import to_proto
from orchestrator.model.nodes import REGISTRY_CREDENTIALS, NodeDescription
from orchestrator.model.specs import ContainerSpec, ServiceSpec, TaskSpec
from orchestrator.pb import control_pb2, control_pb2_grpc, dispatch_pb2, dispatch_pb2_grpc
from orchestrator.registries.credsstore import has_credentials
from orchestrator.registries.registry_errors import AccessDenied, RegistryError

pytestmark = pytest.mark.root


class Vault:
    """Where the password of a registry is; it changes, and a helper knows it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "htpasswd"
        self.asked = folder / "asked"
        self._version = 0
        self.rotate()
        helper = folder / "bin" / "docker-credential-vault"
        helper.parent.mkdir()
        helper.write_text(
            f'#!/bin/sh\ncat >>{self.asked}; echo >>{self.asked}\n[ "$1" = get ] || exit 1\n'
            f'[ -e {folder}/broken ] && {{ echo "the vault is sealed"; exit 1; }}\n'
            f'printf \'{{"Username": "orc", "Secret": "%s"}}\' "$(cat {folder}/password)"\n'
        )
        helper.chmod(0o755)

    def rotate(self) -> None:
        """Have another password, from now on the only one."""
        self._version += 1
        password = f"secret-{self._version}"
        program = "print crypt($ARGV[0], $ARGV[1])"
        salt = "$2y$05$abcdefghijklmnopqrstuu"
        made = subprocess.run(
            ["perl", "-e", program, password, salt], check=True, capture_output=True, text=True
        )
        self.file.write_text(f"orc:{made.stdout}\n")
        # The registry reads the file again when its time has changed.
        os.utime(self.file, (self._version * 100, self._version * 100))
        (self.folder / "password").write_text(password)


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vault:
    vault = Vault(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return vault


@pytest.fixture
def name(tmp_path: Path, vault: Vault) -> Iterator[str]:
    """The name of an image in the registry."""
    with registry_in(tmp_path, htpasswd=vault.file) as (name, _):
        yield name


def _by_registries_conf(home: Path, registry: str) -> None:
    file = home / ".config/containers/registries.conf"
    file.write_text(f'credential-helpers = ["vault"]\n{file.read_text()}')


def _by_auth_json(home: Path, registry: str) -> None:
    file = home / ".config/containers/auth.json"
    file.write_text(json.dumps({"credHelpers": {registry: "vault"}}))


def _by_docker_helpers(home: Path, registry: str) -> None:
    (home / ".docker").mkdir()
    (home / ".docker/config.json").write_text(json.dumps({"credHelpers": {registry: "vault"}}))


def _by_docker_store(home: Path, registry: str) -> None:
    (home / ".docker").mkdir()
    (home / ".docker/config.json").write_text(json.dumps({"credsStore": "vault"}))


def _by_auth_json_store(home: Path, registry: str) -> None:
    file = home / ".config/containers/auth.json"
    file.write_text(json.dumps({"credsStore": "vault"}))


CONFIGURED = [
    _by_registries_conf,
    _by_auth_json,
    _by_docker_helpers,
    _by_docker_store,
    _by_auth_json_store,
]


@pytest.mark.parametrize("configure", CONFIGURED)
async def test_a_helper_is_called_at_each_pull_so_a_rotated_password_needs_no_login(
    tmp_path: Path, vault: Vault, name: str, configure: Callable[[Path, str], None]
) -> None:
    registry = Registry(tmp_path)
    with pytest.raises(AccessDenied):
        await registry.resolve(name)
    configure(tmp_path / "home", name.partition("/")[0])
    layout = layout_of(tmp_path, 1000)
    digest = await registry.push(layout, name, b"", lambda *news: None)
    for number in range(2):
        vault.rotate()
        vault.asked.unlink()
        assert await registry.resolve(name) == digest
        async with (
            ImageStore(tmp_path / f"store-{number}") as store,
            registry.source(name, digest) as fetch,
        ):
            await store.ensure(digest, fetch, name)
        assert name.partition("/")[0] in vault.asked.read_text()


async def test_a_helper_that_fails_is_named(tmp_path: Path, vault: Vault, name: str) -> None:
    _by_registries_conf(tmp_path / "home", name.partition("/")[0])
    (tmp_path / "broken").touch()
    with pytest.raises(RegistryError, match="the vault is sealed"):
        await Registry(tmp_path).resolve(name)


@pytest.mark.parametrize("configure", CONFIGURED)
def test_a_host_reports_whether_it_has_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configure: Callable[[Path, str], None]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    take_insecure(tmp_path / "home", "r.test")
    assert not has_credentials()
    configure(tmp_path / "home", "r.test")
    assert has_credentials()


async def test_managers_leave_registries_that_only_nodes_can_use_to_them(
    tmp_path: Path, vault: Vault, name: str
) -> None:
    spec = ServiceSpec(name="web", task=TaskSpec(container=ContainerSpec(image=name)))
    request = control_pb2.CreateServiceRequest(spec=to_proto(spec))
    async with (
        manager_in(tmp_path / "manager") as running,
        running.channel(running.admin) as admin,
    ):
        control = control_pb2_grpc.ControlStub(admin)
        with pytest.raises(grpc.aio.AioRpcError, match="denies access"):
            await control.CreateService(request)
        joined = await running.join(running.token, "n1")
        async with running.channel(KeyPair(joined.certificate, joined.key)) as channel:
            call = dispatch_pb2_grpc.DispatchStub(channel).Session()
            description = NodeDescription(
                hostname="n1", address="127.0.0.1", features=(REGISTRY_CREDENTIALS,)
            )
            hello = dispatch_pb2.Hello(description=to_proto(description))
            await call.write(dispatch_pb2.AgentMessage(hello=hello))
            await call.read()
            service = await control.CreateService(request)
            call.cancel()
    assert service.image_digest == ""
