# SPDX-License-Identifier: Apache-2.0
"""Validation of labels."""

from __future__ import annotations

import pytest

from orchestrator.cli.output.listings import labels_text
from orchestrator.model.validation.service_specs import check_labels


@pytest.mark.parametrize("labels", [{"a b": "c d"}, {"ü": "ö"}, {"x": "one\ntwo"}, {"a=b": ""}])
def test_valid_labels_are_accepted(labels: dict[str, str]) -> None:
    check_labels(labels)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({" ": "x"}, "has no name"),
        ({"a\nb": "x"}, "cannot be shown"),
        ({"\x1b[1m": "x"}, "cannot be shown"),
        ({"a": "x\0"}, "NUL"),
    ],
)
def test_invalid_labels_are_refused(labels: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_labels(labels)


def test_labels_with_control_characters_are_escaped_on_one_line() -> None:
    assert labels_text({"b": "1\x1b[31m", "a": "x\ny"}) == "a=x\\ny, b=1\\x1b[31m"
