# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.dockerapi.ids import docker_id, own_id, own_swarm_id, swarm_id

IDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=24)


@given(IDS)
def test_a_whole_docker_id_names_its_object(id: str) -> None:
    assert re.fullmatch("[0-9a-f]{64}", docker_id(id))
    assert own_id(docker_id(id)) == id


@given(IDS)
def test_a_whole_swarm_id_names_its_object(id: str) -> None:
    assert re.fullmatch("[0-9a-z]{25}", swarm_id(id))
    assert own_swarm_id(swarm_id(id)) == id


def test_ids_that_begin_alike_differ_in_the_first_digits_of_docker_ids() -> None:
    assert docker_id("m51bfdcdw2lx")[:12] != docker_id("m51bfdcdw2ly")[:12]


@given(st.text("0123456789abcdef", max_size=64))
def test_other_digits_are_no_id(digits: str) -> None:
    assert own_id(digits) == "" or docker_id(own_id(digits)) == digits
