# SPDX-License-Identifier: Apache-2.0
"""A context's certificate that a manager will not renew does not cost each command its time."""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.app.contexts import Context, load_context, save_context
from orchestrator.cli.app.errors import CliError, ManagerLost, Refused
from orchestrator.cli.rpc.certificate_renewal import renew_if_due
from orchestrator.identity import ca


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A context whose certificate is half through its life."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    begun = dt.datetime.now(dt.UTC) - dt.timedelta(days=50)
    authority = ca.new_ca("c1", begun)
    pair = ca.issue(authority, common_name="admin", role="admin", cluster_id="c1", now=begun)
    save_context(Context("a", ("127.0.0.1:1",), authority.certificate, pair.certificate, pair.key))
    return load_context("a")


@pytest.mark.parametrize(
    ("error", "asked"), [(Refused("renewed for a year"), 1), (ManagerLost("away"), 3)]
)
def test_refused_renewal_is_retried_after_a_day(old: Context, error: CliError, asked: int) -> None:
    calls = []

    def call(method: str, request: Any, timeout: float) -> Any:
        calls.append(method)
        raise error

    for _ in range(3):
        renew_if_due(load_context("a"), call)
    assert calls == ["Certificates.Renew"] * asked
    kept = load_context("a")
    assert kept.certificate == old.certificate
    assert (kept.renew_at > time.time()) is (asked == 1)
