"""Facts on their way from a host, deflated."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from orchestrator.pb import support_pb2
from orchestrator.support.hostfacts import Fact
from orchestrator.support.redact import cleaned


def document(name: str, value: Any, known: Iterable[str] = ()) -> Fact:
    """A document as a file of JSON, without secrets."""
    return Fact(name, json.dumps(cleaned(value, known), indent=2, ensure_ascii=False) + "\n")


def packed(facts: Iterable[Fact]) -> support_pb2.SupportFacts:
    """As a message."""
    return support_pb2.SupportFacts(
        files=[
            support_pb2.SupportFile(name=fact.name, data=zlib.compress(fact.text.encode()))
            for fact in facts
        ]
    )


def unpacked(facts: support_pb2.SupportFacts) -> Iterator[Fact]:
    """From a message; what is no such file is left out."""
    for file in facts.files:
        try:
            yield Fact(file.name, zlib.decompress(file.data).decode(errors="replace"))
        except zlib.error as error:
            yield Fact(file.name, f"it arrived broken: {error}\n")
