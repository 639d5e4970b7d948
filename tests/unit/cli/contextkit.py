# SPDX-License-Identifier: Apache-2.0
"""Contexts that name no real cluster."""

from __future__ import annotations

from orchestrator.cli.app.contexts import Context


def a_context(name: str = "one", endpoint: str = "10.0.0.1:7420") -> Context:
    return Context(name, (endpoint,), "CA", "CERT", "KEY")
