# SPDX-License-Identifier: Apache-2.0
"""DNS messages, compared with dnspython."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.nameserver.dnswire import (
    MalformedQuery,
    Record,
    ResponseCode,
    Service,
    Type,
    error_response,
    read_question,
    service_data,
    write_answer,
)

LABELS = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=20)
NAMES = st.lists(LABELS, max_size=6).map(".".join)
TYPES = st.sampled_from(["A", "AAAA", "SRV", "PTR", "TXT", "MX", "ANY"])


def asked(name: str, kind: str = "A", **more: object) -> bytes:
    query: dns.message.Message = dns.message.make_query(name + ".", kind, **more)  # type: ignore[arg-type]
    return query.to_wire()


def answered(
    query: bytes, *records: Record, limit: int = 512, code: ResponseCode = ResponseCode.NOERROR
) -> bytes:
    answer = write_answer(read_question(query), code, records, ttl=1, limit=limit)
    return query[:2] + answer


@given(NAMES, TYPES, st.one_of(st.none(), st.integers(0, 9000)))
def test_a_query_of_dnspython_is_decoded(name: str, kind: str, size: int | None) -> None:
    extended: dict[str, object] = {} if size is None else {"use_edns": 0, "payload": size}
    question = read_question(asked(name.upper(), kind, **extended))
    assert question.name == name
    assert question.type == dns.rdatatype.from_text(kind)
    assert question.extended is (size is not None)
    assert question.size == min(max(size or 512, 512), 1232)


@given(st.binary(max_size=80), st.integers(0, 60))
def test_any_bytes_are_a_query_or_malformed(noise: bytes, at: int) -> None:
    query = asked("a.web")
    for message in (noise, query[:at], query[:at] + noise):
        try:
            read_question(message)
        except MalformedQuery as error:
            reply = error_response(message, error.code)
            assert reply == b"" or reply[:2] == message[:2]


@given(
    NAMES,
    st.lists(st.binary(min_size=4, max_size=4), max_size=80, unique=True),
    st.booleans(),
    st.integers(512, 1232),
)
def test_an_answer_is_decoded_by_dnspython(
    name: str, addresses: list[bytes], edns: bool, limit: int
) -> None:
    query = asked(name, use_edns=0 if edns else -1)
    wire = answered(query, *(Record(Type.A, each) for each in addresses), limit=limit)
    assert len(wire) <= limit
    answer = dns.message.from_wire(wire)
    assert dns.message.from_wire(query).is_response(answer)
    assert answer.flags & dns.flags.AA
    assert answer.flags & dns.flags.RA
    assert (answer.edns >= 0) is edns
    found = [each.to_wire() for rrset in answer.answer for each in rrset]
    assert found == addresses[: len(found)]
    assert bool(answer.flags & dns.flags.TC) is (len(found) < len(addresses))


def test_a_service_record_and_the_address_of_its_target() -> None:
    query = asked("_80._tcp.web", "SRV")
    data = service_data(Service(80, "web.1"))
    wire = write_answer(
        read_question(query),
        ResponseCode.NOERROR,
        [Record(Type.SRV, data)],
        [Record(Type.A, bytes([10, 0, 0, 2]), "web.1")],
        ttl=1,
        limit=512,
    )
    answer = dns.message.from_wire(query[:2] + wire)
    assert str(answer.answer[0]) == "_80._tcp.web. 1 IN SRV 0 0 80 web.1."
    assert str(answer.additional[0]) == "web.1. 1 IN A 10.0.0.2"


def test_unsupported_messages_get_an_error_response() -> None:
    notify = bytearray(asked("web"))
    notify[2] = 0x20  # opcode 4
    answer = dns.message.from_wire(error_response(bytes(notify), ResponseCode.NOTIMP))
    assert answer.rcode() == dns.rcode.NOTIMP
    with pytest.raises(MalformedQuery) as refused:
        read_question(bytes(notify))
    assert refused.value.code is ResponseCode.NOTIMP
    # An answer is never answered: two servers would talk forever.
    assert error_response(answered(asked("web")), ResponseCode.FORMERR) == b""


def test_a_name_with_a_loop_or_a_pointer_ends() -> None:
    query = asked("web")
    for name in (b"\xc0\x0c", b"\x3f" * 300, b"\x01a" * 200 + b"\0"):
        with pytest.raises(MalformedQuery):
            read_question(query[:12] + name + query[-4:])
