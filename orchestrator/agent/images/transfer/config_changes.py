# SPDX-License-Identifier: Apache-2.0
"""Changes of an image's config: `--change` with Dockerfile instructions, as of `docker commit` and
`docker import`, and the settings of a committed container."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from typing import Any

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.model.specs import ContainerSpec


def apply(config: dict[str, Any], changes: Iterable[str]) -> dict[str, Any]:
    """The config (OCI image-spec, config.md) after the instructions. Raises ImageError."""
    config = dict(config)
    for line in changes:
        word, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        match word.upper():
            case "CMD":
                config["Cmd"] = _command(rest)
            case "ENTRYPOINT":
                config["Entrypoint"] = _command(rest)
            case "ENV":
                config["Env"] = _environment(config.get("Env") or [], rest, line)
            case "LABEL":
                config["Labels"] = {**(config.get("Labels") or {}), **_pairs(rest, line)}
            case "EXPOSE":
                ports = [port if "/" in port else f"{port}/tcp" for port in rest.split()]
                before = config.get("ExposedPorts") or {}
                config["ExposedPorts"] = {**before, **{port: {} for port in ports}}
            case "VOLUME":
                names = _command(rest) if rest.startswith("[") else rest.split()
                config["Volumes"] = {**(config.get("Volumes") or {}), **{n: {} for n in names}}
            case "USER":
                config["User"] = rest
            case "WORKDIR":
                config["WorkingDir"] = rest
            case "STOPSIGNAL":
                config["StopSignal"] = rest
            case other:
                raise ImageError(
                    f"--change cannot do {other!r}: use CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, "
                    "STOPSIGNAL, USER, VOLUME or WORKDIR"
                )
    return config


def of_container(config: dict[str, Any], spec: ContainerSpec) -> dict[str, Any]:
    """The config of an image with the settings of a container of it, as Docker does."""
    config = dict(config)
    if spec.entrypoint:
        config["Entrypoint"], config["Cmd"] = [*filter(None, spec.entrypoint)], list(spec.command)
    elif spec.command:
        config["Cmd"] = list(spec.command)
    new = dict(entry.partition("=")[::2] for entry in spec.env)
    kept = [entry for entry in config.get("Env") or [] if entry.partition("=")[0] not in new]
    config["Env"] = [*kept, *spec.env]
    if spec.labels:
        config["Labels"] = {**(config.get("Labels") or {}), **spec.labels}
    for key, value in (
        ("User", spec.user),
        ("WorkingDir", spec.workdir),
        ("StopSignal", spec.stop_signal),
    ):
        if value:
            config[key] = value
    return config


def _command(text: str) -> list[str]:
    if text.startswith("["):
        try:
            words = json.loads(text)
            if all(isinstance(word, str) for word in words):
                return list(words)
        except ValueError:
            pass
        raise ImageError(f"--change has a command that is not a JSON list of strings: {text}")
    return ["/bin/sh", "-c", text]


def _environment(before: list[str], text: str, line: str) -> list[str]:
    new = _pairs(text, line)
    kept = [entry for entry in before if entry.partition("=")[0] not in new]
    return [*kept, *(f"{key}={value}" for key, value in new.items())]


def _pairs(text: str, line: str) -> dict[str, str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ImageError(f"--change {line!r}: {error}") from error
    if words and "=" not in words[0]:
        return {words[0]: text.partition(" ")[2].strip()}
    pairs = [word.partition("=") for word in words]
    if not words or not all(key and equals for key, equals, _ in pairs):
        raise ImageError(f"--change {line!r} is not of the form KEY=value")
    return {key: value for key, _, value in pairs}
