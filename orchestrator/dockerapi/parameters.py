# SPDX-License-Identifier: Apache-2.0
"""Values as Docker's API has them: filters, moments, times, labels."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.dockerapi.http.errors import ApiError, bad_parameter
from orchestrator.dockerapi.http.exchange import Request

Filters = Mapping[str, Sequence[str]]

ZERO_TIME = "0001-01-01T00:00:00Z"
"""Docker's time of what has not happened: Go's zero time."""

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")


def filters(request: Request, known: Iterable[str]) -> Filters:
    """The parameter `filters`: each key with its values. Raises ApiError for an unknown key."""
    text = request.text("filters")
    if not text:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise bad_parameter(f"invalid filter: {error}") from None
    if not isinstance(found, dict):
        raise bad_parameter("invalid filter: it is not an object")
    read: dict[str, Sequence[str]] = {}
    for key, values in found.items():
        if key not in set(known):
            raise bad_parameter(f"invalid filter '{key}'")
        # Either a list, or, since 1.22, an object whose keys are the values.
        if not isinstance(values, list | dict):
            raise bad_parameter(f"invalid filter '{key}': its values are not a list")
        read[key] = [str(value) for value in values]
    return read


def boolean_filter(found: Filters, key: str, default: bool) -> bool:
    """A filter that is true or false. Raises ApiError."""
    values = found.get(key)
    if not values:
        return default
    if len(values) > 1 or values[0].lower() not in ("true", "1", "false", "0"):
        raise bad_parameter(f"invalid filter '{key}={','.join(values)}'")
    return values[0].lower() in ("true", "1")


def has_labels(labels: Mapping[str, str], wanted: Sequence[str]) -> bool:
    """Whether labels match all of `KEY` and `KEY=value`."""
    for text in wanted:
        key, equals, value = text.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True


def rfc3339(seconds: float) -> str:
    """A time since 1970 as Docker writes it; 0 is `ZERO_TIME`."""
    if not seconds:
        return ZERO_TIME
    whole, rest = divmod(seconds, 1)
    try:
        text = dt.datetime.fromtimestamp(whole, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    except (OverflowError, ValueError):
        return ZERO_TIME
    return f"{text}.{int(rest * 1e9):09d}Z"


def moment(text: str, name: str, now: float) -> float:
    """A time in a query, as Docker's clients send it: seconds since 1970, a date (RFC 3339), or a
    duration before now. 0 for an empty one. Raises ApiError."""
    if not text or text == "0":
        return 0.0
    try:
        return float(text)
    except ValueError:
        pass
    duration = _DURATION.fullmatch(text)
    if duration is not None and any(duration.groups()):
        hours, minutes, seconds = (float(part or 0) for part in duration.groups())
        return now - hours * 3600 - minutes * 60 - seconds
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        raise bad_parameter(f"invalid value {text!r} for the parameter {name}") from None
    return (found if found.tzinfo else found.replace(tzinfo=dt.UTC)).timestamp()


class Fields:
    """The fields of a JSON object, read with the types that Docker's documents have. A field of
    another type is refused, as Go's decoder does."""

    def __init__(self, document: Any, name: str = "") -> None:
        """`name`: of the object, for messages. None is an empty object. Raises ApiError."""
        if document is None:
            document = {}
        if not isinstance(document, dict):
            raise bad_parameter(f"invalid JSON: {name or 'the request body'} must be an object")
        # Go's decoder ignores case.
        self._fields = {str(key).lower(): value for key, value in document.items()}
        self._name = name

    def __contains__(self, name: str) -> bool:
        return self._fields.get(name.lower()) is not None

    def _wrong(self, name: str, kind: str) -> ApiError:
        where = f"{self._name}.{name}" if self._name else name
        return bad_parameter(f"invalid JSON: {where} must be {kind}")

    def text(self, name: str) -> str:
        """A string; empty if it is missing."""
        value = self._fields.get(name.lower())
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self._wrong(name, "a string")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean."""
        value = self._fields.get(name.lower())
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(name, "a boolean")
        return value

    def number(self, name: str, default: int = 0) -> int:
        """An integer of 64 bits."""
        value = self._fields.get(name.lower())
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(name, "a number")
        if not -(1 << 63) <= value < 1 << 63:
            raise self._wrong(name, "a number of 64 bits")
        return value

    def real(self, name: str, default: float = 0.0) -> float:
        """A number."""
        value = self._fields.get(name.lower())
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(name, "a number")
        return float(value)

    def texts(self, name: str) -> list[str]:
        """A list of strings; a single string is one, as for Cmd."""
        value = self._fields.get(name.lower())
        if value is None:
            return []
        if isinstance(value, str):
            return [value]
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self._wrong(name, "a list of strings")
        return value

    def numbers(self, name: str) -> list[int]:
        """A list of integers."""
        value = self._fields.get(name.lower())
        if value is None:
            return []
        if not isinstance(value, list) or not all(
            isinstance(each, int) and not isinstance(each, bool) for each in value
        ):
            raise self._wrong(name, "a list of numbers")
        return value

    def items(self, name: str) -> list[Fields]:
        """A list of objects."""
        value = self._fields.get(name.lower())
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._wrong(name, "a list")
        return [Fields(each, name) for each in value]

    def object(self, name: str) -> Fields:
        """An object; an empty one if it is missing."""
        return Fields(self._fields.get(name.lower()), name)

    def mapping(self, name: str) -> dict[str, Any]:
        """An object with any keys and values."""
        value = self._fields.get(name.lower())
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return value

    def labels(self, name: str) -> dict[str, str]:
        """An object whose values are strings."""
        found = self.mapping(name)
        if not all(isinstance(value, str) for value in found.values()):
            raise self._wrong(name, "an object of strings")
        return found
