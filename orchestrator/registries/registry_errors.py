# SPDX-License-Identifier: Apache-2.0
"""Errors of registries: skopeo's messages, classified and in the user's words."""

from __future__ import annotations

import re

_FATAL = re.compile(r'level=(?:fatal|error) msg="((?:[^"\\]|\\.)*)"')
_PROXY = re.compile(r"proxyconnect tcp: (?:dial tcp )?(.*)")
_NOT_FOUND = re.compile(r"\b404\b")
"""The status; three digits of a digest are none."""


class ImageError(Exception):
    """The image cannot be used, stored or found; the text is one line for the user."""


class RegistryError(ImageError):
    """A registry did not give or take an image; the text says whose matter it is."""


class AccessDenied(RegistryError):
    """The registry wants other credentials."""


class NotThere(RegistryError):
    """The registry has no such image."""


class TooMany(RegistryError):
    """The registry limits how often it is asked."""


class NotTrusted(RegistryError):
    """TLS with the registry failed."""


class Unreachable(RegistryError):
    """The registry does not answer."""


class Damaged(RegistryError):
    """The registry sends other bytes than it was asked for."""


class Forbidden(RegistryError):
    """The host's own configuration rules the image out."""


def explain(registry: str, name: str, said: str, host: str = "node") -> RegistryError:
    """The error for what skopeo wrote to stderr, or its proxy answered; `host` names the host that
    asked: a node or a manager."""
    found = _FATAL.findall(said)
    words = " ".join((found[-1].replace('\\"', '"') if found else said).split())
    low = words.lower()

    def has(*parts: str) -> bool:
        return any(part in low for part in parts)

    settings = "manager.toml" if host == "manager" else "agent.toml"
    what = f"the image {name}" if name else "this login"
    if has("source image rejected", "policy"):
        return Forbidden(f"this {host}'s signature policy (policy.json) rejects {what}: {words}")
    if has("is blocked in"):
        return Forbidden(f"{registry} is blocked on this {host}, in registries.conf")
    if has("toomanyrequests", "too many requests", "rate limit"):
        return TooMany(
            f"{registry} limits how often images are pulled: wait, or 'orc login {registry}'"
        )
    if has("proxy authentication required"):
        return Unreachable(
            f"this {host}'s proxy wants a password: write it into http-proxy and https-proxy of "
            f"{settings}, as http://USER:PASSWORD@HOST:PORT"
        )
    if proxy := _PROXY.search(words):
        return Unreachable(
            f"{registry} cannot be reached: this {host}'s proxy does not answer ({proxy[1]}); see "
            f"http-proxy, https-proxy and no-proxy of {settings}"
        )
    if has("server gave http response"):
        return NotTrusted(
            f"{registry} does not speak TLS: start it with TLS, or name it as insecure in the "
            "registries.conf of managers and nodes"
        )
    if has("x509", "tls:", "certificate"):
        return NotTrusted(_tls(registry, words))
    if has("unauthorized", "authentication required", "denied", "forbidden", "invalid username"):
        missing = " or it does not exist" if name and not has("authentication required") else ""
        return AccessDenied(f"{registry} denies access to {what}{missing}: 'orc login {registry}'")
    absent = has("manifest unknown", "name unknown", "not found", "unknown to registry")
    if absent or _NOT_FOUND.search(words):
        return NotThere(f"{registry} has no image {name}")
    if has("corrupted blob", "did not match expected digest", "digest mismatch"):
        return Damaged(f"{registry} sends damaged content for {what}: push it there again")
    for mark, reason in _UNREACHABLE:
        if mark in low:
            return Unreachable(f"{registry} cannot be reached ({reason})")
    return RegistryError(f"{registry}: {words or 'skopeo failed and did not say why'}")


def _tls(registry: str, words: str) -> str:
    low = words.lower()
    reason = words[low.find("x509") :] if "x509" in low else words
    if "has expired or is not yet valid" in low:
        return (
            f"the TLS certificate of {registry} is not valid now ({reason}): renew it there, or "
            "set the clocks of managers and nodes"
        )
    if "certificate is valid for" in low or "doesn't contain any ip sans" in low:
        return (
            f"the TLS certificate of {registry} is for other names ({reason}): name the registry "
            "as its certificate does"
        )
    if "certificate required" in low or "bad certificate" in low:
        return (
            f"{registry} wants a certificate of who asks: put client.cert and client.key into "
            f"/etc/containers/certs.d/{registry} on managers and nodes"
        )
    return (
        f"the TLS certificate of {registry} is not trusted ({reason}): put its CA into "
        f"/etc/containers/certs.d/{registry}/ca.crt on managers and nodes"
    )


_UNREACHABLE = (
    ("no such host", "no such host"),
    ("server misbehaving", "its name cannot be looked up"),
    ("connection refused", "connection refused"),
    ("network is unreachable", "network is unreachable"),
    ("no route to host", "no route to host"),
    ("timeout", "no answer"),
    ("deadline exceeded", "no answer"),
    ("connection reset", "it broke the connection off"),
    ("unexpected eof", "it broke off in the middle"),
    ("eof", "it broke the connection off"),
)
