# SPDX-License-Identifier: Apache-2.0
"""Conversion of seccomp profiles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.agent.runtime.interface import (
    RuntimeFailure,
)
from orchestrator.agent.runtime.spec.privileges import DEFAULT_CAPABILITIES
from orchestrator.agent.runtime.spec.seccomp import convert, load_profile

PROFILE = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "archMap": [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
    ],
    "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": None},
        {"names": ["admin"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {
            "names": ["admin"],
            "action": "SCMP_ACT_ERRNO",
            "excludes": {"caps": ["CAP_SYS_ADMIN"]},
            "errnoRet": 1,
            "errno": "EPERM",
            "comment": "no",
        },
        {"names": ["x86"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "x32"]}},
        {"names": ["not86"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64"]}},
        {"names": ["new"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "5.10"}},
        {"names": ["old"], "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "5.10"}},
    ],
}


@pytest.mark.parametrize(
    ("capabilities", "architecture", "kernel", "kept"),
    [
        (set(), "amd64", (6, 12), ["read", "admin:deny", "x86", "new"]),
        ({"CAP_SYS_ADMIN"}, "amd64", (5, 10), ["read", "admin", "x86", "new"]),
        (set(), "arm64", (5, 9), ["read", "admin:deny", "not86", "old"]),
    ],
)
def test_rules_by_capability_architecture_and_kernel(
    capabilities: set[str], architecture: str, kernel: tuple[int, int], kept: list[str]
) -> None:
    found = convert(PROFILE, frozenset(capabilities), architecture, kernel)
    names = [
        rule["names"][0] + (":deny" if rule["action"] == "SCMP_ACT_ERRNO" else "")
        for rule in found["syscalls"]
    ]
    assert names == kept
    assert found["defaultErrnoRet"] == 38


def test_unknown_fields_of_a_rule_are_dropped() -> None:
    found = convert(PROFILE, frozenset(), "amd64", (6, 1))
    assert found["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert found["syscalls"][0] == {"names": ["read"], "action": "SCMP_ACT_ALLOW"}
    assert found["syscalls"][1].keys() == {"names", "action", "errnoRet"}


def test_reading_valid_and_invalid_profiles(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    capabilities = frozenset(DEFAULT_CAPABILITIES)
    with pytest.raises(RuntimeFailure, match="no seccomp profile"):
        load_profile(path, capabilities, "amd64", (6, 1))
    path.write_text("{}")
    with pytest.raises(RuntimeFailure, match="cannot be read"):
        load_profile(path, capabilities, "amd64", (6, 1))
    path.write_text(json.dumps(PROFILE))
    assert json.loads(load_profile(path, capabilities, "amd64", (6, 1)).text)["syscalls"]
