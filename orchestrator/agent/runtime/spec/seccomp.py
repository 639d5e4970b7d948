# SPDX-License-Identifier: Apache-2.0
"""Seccomp profiles: conversion from Docker's and Podman's format to the OCI runtime-spec's.

`seccomp.json` is the default profile: as in Docker's, system calls that can affect the host require
a capability or are denied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.agent.runtime.interface import RuntimeFailure

DEFAULT_PROFILE = Path(__file__).with_name("seccomp.json")

_GO_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
}
_NATIVE = {
    "amd64": "SCMP_ARCH_X86_64",
    "arm64": "SCMP_ARCH_AARCH64",
    "arm": "SCMP_ARCH_ARM",
    "ppc64le": "SCMP_ARCH_PPC64LE",
    "s390x": "SCMP_ARCH_S390X",
    "riscv64": "SCMP_ARCH_RISCV64",
}


@dataclass(frozen=True, slots=True)
class SeccompProfile:
    """A converted profile, rendered to JSON once since many containers use the same."""

    text: str


def go_architecture(machine: str) -> str:
    """Go's name of an architecture, as used in profiles, from that of uname(2)."""
    return _GO_ARCHITECTURES.get(machine, machine)


def convert(
    profile: Mapping[str, Any],
    capabilities: frozenset[str],
    architecture: str,
    kernel: tuple[int, int],
) -> dict[str, Any]:
    """The rules of a profile that apply to these capabilities, as runtime-spec's `linux.seccomp`.

    `architecture` is Go's name, such as `amd64`; `kernel` its version, such as (6, 12).
    """
    native = _NATIVE.get(architecture, "")
    architectures = list(profile.get("architectures") or ([native] if native else []))
    for entry in profile.get("archMap") or ():
        if entry["architecture"] == native:
            architectures += entry.get("subArchitectures") or ()
    syscalls: list[dict[str, Any]] = []
    for rule in profile.get("syscalls") or ():
        if not _applies(rule, capabilities, architecture, kernel):
            continue
        kept: dict[str, Any] = {"names": rule["names"], "action": rule["action"]}
        if rule.get("args"):
            kept["args"] = rule["args"]
        if "errnoRet" in rule:
            kept["errnoRet"] = rule["errnoRet"]
        syscalls.append(kept)
    result: dict[str, Any] = {"defaultAction": profile["defaultAction"], "syscalls": syscalls}
    if architectures:
        result["architectures"] = architectures
    if "defaultErrnoRet" in profile:
        result["defaultErrnoRet"] = profile["defaultErrnoRet"]
    return result


def _applies(
    rule: Mapping[str, Any],
    capabilities: frozenset[str],
    architecture: str,
    kernel: tuple[int, int],
) -> bool:
    includes: Mapping[str, Any] = rule.get("includes") or {}
    excludes: Mapping[str, Any] = rule.get("excludes") or {}
    if architecture in (excludes.get("arches") or ()):
        return False
    if capabilities.intersection(excludes.get("caps") or ()):
        return False
    if (least := excludes.get("minKernel")) and kernel >= _version(least):
        return False
    if (arches := includes.get("arches")) and architecture not in arches:
        return False
    if not capabilities.issuperset(includes.get("caps") or ()):
        return False
    return not ((least := includes.get("minKernel")) and kernel < _version(least))


def _version(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor or 0)


def own_profile(
    text: str, capabilities: frozenset[str], architecture: str, kernel: tuple[int, int]
) -> SeccompProfile:
    """Convert a profile from a container's spec. Raises RuntimeFailure."""
    try:
        converted = convert(json.loads(text), capabilities, architecture, kernel)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RuntimeFailure(f"the seccomp profile cannot be read: {error}") from error
    return SeccompProfile(json.dumps(converted, separators=(",", ":")))


@cache
def load_profile(
    path: Path, capabilities: frozenset[str], architecture: str, kernel: tuple[int, int]
) -> SeccompProfile:
    """Read and convert a profile, cached per set of capabilities. Raises RuntimeFailure."""
    try:
        profile = json.loads(path.read_bytes())
        converted = convert(profile, capabilities, architecture, kernel)
    except FileNotFoundError as error:
        raise RuntimeFailure(f"there is no seccomp profile at {path}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RuntimeFailure(f"the seccomp profile {path} cannot be read: {error}") from error
    return SeccompProfile(json.dumps(converted, separators=(",", ":")))
