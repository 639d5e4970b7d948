# SPDX-License-Identifier: Apache-2.0
"""Hand-written encoding gives the same bytes as pyroute2's."""

from __future__ import annotations

import pytest

from tests.bench.encoding import MESSAGES, Message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: str(message.name))
def test_a_message_is_the_same_by_hand_and_by_pyroute2(message: Message) -> None:
    own, theirs = message.own(), message.theirs()
    assert own.body == theirs.body
    assert (own.kind, own.flags) == (theirs.kind, theirs.flags)
