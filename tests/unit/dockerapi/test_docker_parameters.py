# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.dockerapi.http.errors import ApiError
from orchestrator.dockerapi.http.exchange import Request
from orchestrator.dockerapi.parameters import (
    Fields,
    boolean_filter,
    filters,
    has_labels,
    moment,
    rfc3339,
)


def request(**query: str) -> Request:
    body = io.BytesIO()
    values = {name: [value] for name, value in query.items()}
    return Request("GET", "/", (1, 45), {}, values, {}, body)


@pytest.mark.parametrize(
    "text", ['{"label":["a=1"]}', '{"label":{"a=1":true}}'], ids=["list", "object"]
)
def test_filters_of_both_forms(text: str) -> None:
    assert filters(request(filters=text), ["label"]) == {"label": ["a=1"]}


@pytest.mark.parametrize("text", ["{", "[]", '{"label":1}', '{"unknown":["x"]}'])
def test_bad_filters_are_refused(text: str) -> None:
    with pytest.raises(ApiError, match="invalid filter"):
        filters(request(filters=text), ["label"])


def test_a_boolean_filter() -> None:
    assert boolean_filter({"dangling": ["1"]}, "dangling", default=False)
    assert boolean_filter({}, "dangling", default=True)
    with pytest.raises(ApiError, match="invalid filter"):
        boolean_filter({"dangling": ["maybe"]}, "dangling", default=True)


def test_labels_match_all_of_the_wanted() -> None:
    assert has_labels({"a": "1", "b": ""}, ["a=1", "b"])
    assert not has_labels({"a": "1"}, ["a=2"])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", 0.0),
        ("0", 0.0),
        ("1700000000", 1700000000.0),
        ("1700000000.250000000", 1700000000.25),
        ("1h30m", 1000000.0 - 5400),
        ("10s", 1000000.0 - 10),
        ("1970-01-01T00:00:10Z", 10.0),
        ("1970-01-01", 0.0),
    ],
)
def test_moments(text: str, seconds: float) -> None:
    assert moment(text, "since", 1000000.0) == seconds


def test_a_bad_moment_names_its_parameter() -> None:
    with pytest.raises(ApiError, match="since"):
        moment("yesterday", "since", 0.0)


def test_times_have_nine_digits() -> None:
    assert rfc3339(1.5) == "1970-01-01T00:00:01.500000000Z"
    assert rfc3339(0) == "0001-01-01T00:00:00Z"


def test_fields_ignore_case_as_go_does() -> None:
    assert Fields({"hostname": "x"}).text("Hostname") == "x"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_value_is_read_or_refused(value: Any) -> None:
    fields = Fields({"x": value})
    for read in (
        *(fields.text, fields.flag, fields.number, fields.real, fields.texts),
        *(fields.items, fields.object, fields.mapping, fields.labels),
    ):
        with suppress(ApiError):
            read("x")
