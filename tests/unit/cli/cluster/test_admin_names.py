# SPDX-License-Identifier: Apache-2.0
"""`orc cluster admin` gives each admin's certificate a name."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.x509.oid import NameOID

from orchestrator.cli.app.contexts import load_context
from orchestrator.cli.main import orc
from orchestrator.identity.bootstrap import init_cluster


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    init_cluster(tmp_path / "manager", "10.0.0.1", 7420, "10.128.0.0/14")
    return tmp_path / "manager"


@pytest.mark.parametrize(
    ("flags", "context", "name"),
    [
        ([], "default", "admin"),
        (["--context", "anna"], "anna", "anna"),
        (["--context", "Prod"], "Prod", "prod"),
        (["--context", "prod", "--name", "anna.b-c_d"], "prod", "anna.b-c_d"),
    ],
)
def test_the_certificate_has_the_name(
    folder: Path, flags: list[str], context: str, name: str
) -> None:
    done = CliRunner().invoke(orc, ["cluster", "admin", "--data-dir", str(folder), *flags])
    assert done.exit_code == 0, done.output
    certificate = x509.load_pem_x509_certificate(load_context(context).certificate.encode())
    [found] = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert found.value == name
    assert repr(name) in done.output


@pytest.mark.parametrize("name", ["", "Anna", "a b", "a,O=worker", "a--b", ".a", "x" * 64, "é"])
def test_other_names_are_refused(folder: Path, name: str) -> None:
    arguments = ["cluster", "admin", "--data-dir", str(folder), "--context=x", f"--name={name}"]
    done = CliRunner().invoke(orc, arguments)
    if name:
        assert done.exit_code == 1
        assert "cannot be an admin's name" in done.output
    else:
        assert done.exit_code == 0  # as if it was not given
