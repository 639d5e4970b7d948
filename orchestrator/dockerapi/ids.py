# SPDX-License-Identifier: Apache-2.0
"""Docker's ids: 64 hexadecimal digits, of which clients show the first 12.

An id of ours is a short word. Docker's id for it begins with a digest of the word and ends with the
word itself, so every gateway derives the same id, the first digits tell objects apart, and a whole
id names its object without a search.
"""

from __future__ import annotations

import hashlib
import re

_DIGITS = 64
_WHOLE = re.compile(r"[0-9a-f]{64}")
_SWARM = 25
_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"


def docker_id(id: str) -> str:
    """Docker's id of an object of ours; empty for an empty one."""
    if not id:
        return ""
    word = id.encode()
    if len(word) > 24:
        return hashlib.sha256(word).hexdigest()
    tail = f"{len(word):02x}{word.hex()}"
    return hashlib.sha256(word).hexdigest()[: _DIGITS - len(tail)] + tail


def own_id(docker: str) -> str:
    """Our id in a whole one of Docker's; empty if it is none."""
    if _WHOLE.fullmatch(docker) is None:
        return ""
    for length in range(1, 25):
        tail = docker[-2 * (length + 1) :]
        if tail.startswith(f"{length:02x}"):
            try:
                word = bytes.fromhex(tail[2:]).decode("ascii")
            except ValueError:
                continue
            if docker_id(word) == docker:
                return word
    return ""


def swarm_id(id: str) -> str:
    """The id of an object of Docker's Swarm API: 25 letters and digits that begin with ours, so
    that ours is a prefix that is found."""
    if not id:
        return ""
    number = int.from_bytes(hashlib.sha256(id.encode()).digest())
    digits = []
    for _ in range(_SWARM - min(len(id), _SWARM)):
        number, digit = divmod(number, len(_LETTERS))
        digits.append(_LETTERS[digit])
    return id + "".join(digits)


def own_swarm_id(docker: str) -> str:
    """Our id in a whole one of the Swarm API; empty if it is none."""
    for length in range(1, len(docker) if len(docker) == _SWARM else 0):
        if swarm_id(docker[:length]) == docker:
            return docker[:length]
    return ""
