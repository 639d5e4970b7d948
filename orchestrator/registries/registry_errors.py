# SPDX-License-Identifier: Apache-2.0
"""Errors of registries: skopeo's messages, classified and reworded for users."""

from __future__ import annotations

import re

_FATAL = re.compile(r'level=(?:fatal|error) msg="((?:[^"\\]|\\.)*)"')
_PROXY = re.compile(r"proxyconnect tcp: (?:dial tcp )?(.*)")
_NOT_FOUND = re.compile(r"\b404\b")
"""The HTTP status, which must not match digits of a digest."""


class ImageError(Exception):
    """The image cannot be used, stored or found; the text is one line for the user."""


class RegistryError(ImageError):
    """A transfer with a registry failed; the text says who can fix it."""


class AccessDenied(RegistryError):
    """The registry rejects the credentials."""


class ImageNotFound(RegistryError):
    """The registry has no such image."""


class RateLimited(RegistryError):
    """The registry's rate limit is exceeded."""


class TlsError(RegistryError):
    """TLS with the registry failed."""


class Unreachable(RegistryError):
    """The registry does not answer."""


class CorruptContent(RegistryError):
    """The registry's content does not match its digest."""


class BlockedByHost(RegistryError):
    """The host's own configuration blocks the image."""


def explain(registry: str, name: str, output: str, host: str = "node") -> RegistryError:
    """The error for skopeo's stderr, or for an answer of its proxy. `host` is the kind of host that
    made the request: a node or a manager."""
    found = _FATAL.findall(output)
    words = " ".join((found[-1].replace('\\"', '"') if found else output).split())
    low = words.lower()

    def has(*phrases: str) -> bool:
        return any(phrase in low for phrase in phrases)

    settings = "manager.toml" if host == "manager" else "agent.toml"
    what = f"the image {name}" if name else "this login"
    if has("source image rejected", "policy"):
        return BlockedByHost(
            f"this {host}'s signature policy (policy.json) rejects {what}: {words}"
        )
    if has("is blocked in"):
        return BlockedByHost(f"{registry} is blocked on this {host}, in registries.conf")
    if has("toomanyrequests", "too many requests", "rate limit"):
        return RateLimited(
            f"{registry} limits how often images are pulled: wait, or 'orc login {registry}'"
        )
    if has("proxy authentication required"):
        return Unreachable(
            f"this {host}'s proxy requires a password: set it in http-proxy and https-proxy of "
            f"{settings}, as http://USER:PASSWORD@HOST:PORT"
        )
    if proxy := _PROXY.search(words):
        return Unreachable(
            f"{registry} cannot be reached: this {host}'s proxy does not answer ({proxy[1]}); see "
            f"http-proxy, https-proxy and no-proxy of {settings}"
        )
    if has("server gave http response"):
        return TlsError(
            f"{registry} does not speak TLS: start it with TLS, or name it as insecure in the "
            "registries.conf of managers and nodes"
        )
    if has("x509", "tls:", "certificate"):
        return TlsError(_tls(registry, words))
    if has("unauthorized", "authentication required", "denied", "forbidden", "invalid username"):
        missing = " or it does not exist" if name and not has("authentication required") else ""
        return AccessDenied(f"{registry} denies access to {what}{missing}: 'orc login {registry}'")
    absent = has("manifest unknown", "name unknown", "not found", "unknown to registry")
    if absent or _NOT_FOUND.search(words):
        return ImageNotFound(f"{registry} has no image {name}")
    if has("corrupted blob", "did not match expected digest", "digest mismatch"):
        return CorruptContent(f"{registry} sends damaged content for {what}: push it there again")
    for mark, reason in _UNREACHABLE:
        if mark in low:
            return Unreachable(f"{registry} cannot be reached ({reason})")
    return RegistryError(f"{registry}: {words or 'skopeo failed without a message'}")


def _tls(registry: str, words: str) -> str:
    low = words.lower()
    reason = words[low.find("x509") :] if "x509" in low else words
    if "has expired or is not yet valid" in low:
        return (
            f"the TLS certificate of {registry} is not valid now ({reason}): renew it there, or "
            "correct the clocks of managers and nodes"
        )
    if "certificate is valid for" in low or "doesn't contain any ip sans" in low:
        return (
            f"the TLS certificate of {registry} is for other names ({reason}): name the registry "
            "as its certificate does"
        )
    if "certificate required" in low or "bad certificate" in low:
        return (
            f"{registry} requires a client certificate: put client.cert and client.key into "
            f"/etc/containers/certs.d/{registry} on managers and nodes"
        )
    return (
        f"the TLS certificate of {registry} is not trusted ({reason}): put its CA into "
        f"/etc/containers/certs.d/{registry}/ca.crt on managers and nodes"
    )


_UNREACHABLE = (
    ("no such host", "no such host"),
    ("server misbehaving", "DNS lookup failed"),
    ("connection refused", "connection refused"),
    ("network is unreachable", "network is unreachable"),
    ("no route to host", "no route to host"),
    ("timeout", "no answer"),
    ("deadline exceeded", "no answer"),
    ("connection reset", "connection reset"),
    ("unexpected eof", "connection closed during the transfer"),
    ("eof", "connection closed"),
)
