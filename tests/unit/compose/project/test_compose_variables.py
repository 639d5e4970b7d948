# SPDX-License-Identifier: Apache-2.0
"""Variables in values, and env files: by the specification's tables."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.compose.project.variables import interpolate, parse_env
from orchestrator.compose.tree import ComposeError

VALUES = {"SET": "value", "EMPTY": "", "OTHER": "other"}


def filled(text: str) -> str:
    return interpolate(text, VALUES, lambda name: f"<{name}>")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("$SET", "value"),
        ("${SET}", "value"),
        ("a$SET-b", "avalue-b"),
        ("${SET}_x", "value_x"),
        ("$UNSET|${UNSET}", "<UNSET>|<UNSET>"),
        ("$EMPTY|${EMPTY}", "|"),
        ("${SET:-d}|${EMPTY:-d}|${UNSET:-d}", "value|d|d"),
        ("${SET-d}|${EMPTY-d}|${UNSET-d}", "value||d"),
        ("${SET:+r}|${EMPTY:+r}|${UNSET:+r}", "r||"),
        ("${SET+r}|${EMPTY+r}|${UNSET+r}", "r|r|"),
        ("${SET:?words}|${SET?words}|${EMPTY?words}", "value|value|"),
        ("${UNSET:-}", ""),
        ("${UNSET:-${OTHER}}", "other"),
        ("${UNSET:-${UNSET:-${SET}}}", "value"),
        ("${UNSET:-a}b}", "ab}"),
        ("${UNSET:-http://x:80/?a=b}", "http://x:80/?a=b"),
        ("${UNSET:-a:-b}", "a:-b"),
        ("$$", "$"),
        ("$$SET ${UNSET:-$$SET}", "$SET $SET"),
        ("$$$SET", "$value"),
    ],
)
def test_forms_of_variables(text: str, expected: str) -> None:
    assert filled(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("${UNSET:?it is needed}", "variable UNSET must be set: it is needed"),
        ("${EMPTY:?}", "variable EMPTY must be set"),
        ("${UNSET?for $SET}", "variable UNSET must be set: for value"),
        ("${", "has no closing brace"),
        ("${SET", "has no closing brace"),
        ("${UNSET:-${SET}", "has no closing brace"),
        ("${}", "is not a variable"),
        ("${1}", "is not a variable"),
        ("${SET:}", "is not a variable"),
        ("${SET!x}", "is not a variable"),
    ],
)
def test_invalid_variable_is_an_error(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        filled(text)


@pytest.mark.parametrize("text", ["cost: 5$", "$1", "$(pwd)", "$@ $", "a$ b"])
def test_dollar_sign_without_a_name_is_literal(text: str) -> None:
    assert filled(text) == text


@given(st.text())
def test_escaped_text_round_trips(text: str) -> None:
    assert filled(text.replace("$", "$$")) == text


@given(st.text(alphabet="${}:-?+SETa "))
def test_any_text_is_interpolated_or_an_error(text: str) -> None:
    with suppress(ValueError):
        assert isinstance(filled(text), str)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A=1", {"A": "1"}),
        ("# a comment\n\n  A=1  \nexport B=2", {"A": "1", "B": "2"}),
        ("A = 1", {"A": "1"}),
        ("A=", {"A": ""}),
        ("A", {"A": None}),
        ("A=x # comment", {"A": "x"}),
        ("A=x#y", {"A": "x#y"}),
        ("A='x # $SET \\n'", {"A": "x # $SET \\n"}),
        ('A="x # $SET\\ty"', {"A": "x # value\ty"}),
        ('A="say \\"hi\\""', {"A": 'say "hi"'}),
        ('A="one\ntwo"\nB=3', {"A": "one\ntwo", "B": "3"}),
        ("A=$SET", {"A": "value"}),
        ("A=1\nB=${A}2", {"A": "1", "B": "12"}),
        ("A=a=b", {"A": "a=b"}),
        ("A=$$x", {"A": "$x"}),
        ("a.b-c=1", {"a.b-c": "1"}),
    ],
)
def test_env_files(text: str, expected: dict[str, str | None]) -> None:
    assert parse_env(text, ".env", VALUES) == expected


def test_raw_env_file_is_literal() -> None:
    assert parse_env("A='$SET' # x", ".env", VALUES, raw=True) == {"A": "'$SET' # x"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A=1\n=2", ".env:2: '=2' is not of the form NAME=value"),
        ("A=1\n\nB='x", ".env:3: B: the quote ' is not closed"),
        ("A=${B:?no}", ".env:1: A: variable B must be set: no"),
    ],
)
def test_env_file_error_has_file_and_line(text: str, words: str) -> None:
    with pytest.raises(ComposeError) as caught:
        parse_env(text, ".env", VALUES)
    assert str(caught.value) == words
