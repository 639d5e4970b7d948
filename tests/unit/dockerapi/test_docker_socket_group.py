# SPDX-License-Identifier: Apache-2.0
"""The group of the gateway's socket."""

from __future__ import annotations

import grp

import click
import pytest

from orchestrator.dockerapi.command import group_id


def test_group_of_this_host() -> None:
    assert group_id("root") == grp.getgrnam("root").gr_gid


def test_missing_group_is_refused() -> None:
    with pytest.raises(click.BadParameter, match="there is no group 'dokcer' on this host"):
        group_id("dokcer")
