# SPDX-License-Identifier: Apache-2.0
"""Records are what a type checker takes them for: frozen dataclasses."""

from __future__ import annotations

import subprocess
import sys

import pytest

from orchestrator.cni.fastrecord import record, replace


@record
class Point:
    """A place."""

    x: int
    y: int = 0

    @property
    def sum(self) -> int:
        return self.x + self.y


@record
class Pair:
    x: int
    y: int


def test_fields_are_given_by_place_or_by_name_or_left_to_their_default() -> None:
    assert Point(1) == Point(1, 0) == Point(y=0, x=1)
    assert (Point(1, 2).x, Point(1, 2).y, Point(1, 2).sum) == (1, 2, 3)
    assert replace(Point(1, 2), y=5) == Point(1, 5)


@pytest.mark.parametrize(
    ("given", "named", "complaint"),
    [
        ((), {}, "needs x"),
        ((1, 2, 3), {}, "does not take more than 2"),
        ((1,), {"z": 2}, "does not take z"),
        ((1,), {"x": 2}, "does not take x"),
    ],
)
def test_other_fields_are_refused(
    given: tuple[int, ...], named: dict[str, int], complaint: str
) -> None:
    with pytest.raises(TypeError, match=f"Point {complaint}"):
        Point(*given, **named)


def test_records_are_values_of_their_class() -> None:
    assert {Point(1, 2), Point(1, 2)} == {Point(1, 2)}
    pair: object = Pair(1, 2)
    assert Point(1, 2) != pair
    assert sorted([Point(2), Point(1, 5), Point(1)]) == [Point(1), Point(1, 5), Point(2)]
    assert repr(Point(1)) == "Point(x=1, y=0)"
    match Point(3, 4):
        case Point(x, y):
            assert (x, y) == (3, 4)


def test_records_are_immutable() -> None:
    point = Point(1)
    with pytest.raises(AttributeError, match="cannot change x"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="cannot change x"):
        del point.x
    with pytest.raises(AttributeError):
        point.z = 2  # type: ignore[attr-defined]


def test_cni_start_imports_no_slow_modules() -> None:
    program = "import sys, orchestrator.cni.plugin.warmserver; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    slow = {b"dataclasses", b"inspect", b"typing", b"pyroute2", b"asyncio"}
    assert slow.isdisjoint(done.stdout.split())
