# SPDX-License-Identifier: Apache-2.0
"""The dashboards as Grafana's own types have them: nothing unknown, nothing of another kind."""

from __future__ import annotations

import enum
import json
import types
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

CHART = Path(__file__).parents[3] / "charts" / "monitoring"
DASHBOARDS = sorted((CHART / "grafana" / "dashboards").glob("*.json"))

register_default_plugins()


def unknown(given: Any, known: Any, where: str) -> Iterator[str]:
    """What of a document is not in it any more once Grafana's types have read and written it."""
    if isinstance(given, dict) and isinstance(known, dict):
        for key, value in given.items():
            if key in known:
                yield from unknown(value, known[key], f"{where}.{key}")
            else:
                yield f"{where}.{key} is unknown"
    elif isinstance(given, list) and isinstance(known, list) and len(given) == len(known):
        for number, (one, other) in enumerate(zip(given, known, strict=True)):
            yield from unknown(one, other, f"{where}[{number}]")
    elif given != known:
        yield f"{where}: {given!r} is read as {known!r}"


def misfits(value: Any, hint: Any, where: str) -> Iterator[str]:
    """What in a value is of another type than its annotation says."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        hint = type(value)  # an option of a panel's own kind
    if origin in (Union, types.UnionType):
        found = [list(misfits(value, each, where)) for each in arguments]
        yield from min(found, key=len)
    elif origin is Literal:
        if value not in arguments:
            yield f"{where}: {value!r} is not one of {arguments}"
    elif origin is list and isinstance(value, list):
        for number, each in enumerate(value):
            yield from misfits(each, arguments[0], f"{where}[{number}]")
    elif origin is dict and isinstance(value, dict):
        for key, each in value.items():
            yield from misfits(each, arguments[1], f"{where}.{key}")
    elif isinstance(hint, type) and issubclass(hint, enum.Enum):
        if value not in [member.value for member in hint]:
            yield f"{where}: {value!r} is not one of {[member.value for member in hint]}"
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return
    elif not isinstance(value, origin or hint):
        yield f"{where}: {value!r} is no {hint}"
    elif type(value).__module__.startswith("grafana_foundation_sdk.models."):
        for name, kind in get_type_hints(type(value)).items():
            yield from misfits(getattr(value, name), kind, f"{where}.{name}")


def faults(document: dict[str, Any]) -> list[str]:
    read = Dashboard.from_json(document)
    written = json.loads(json.dumps(read, cls=JSONEncoder))
    return [*unknown(document, written, ""), *misfits(read, Dashboard, "")]


def test_the_types_are_of_the_charts_grafana() -> None:
    image = next(
        line
        for line in (CHART / "values.env").read_text().splitlines()
        if "grafana/grafana:" in line
    )
    ours = version("grafana-foundation-sdk").partition("!")[2]
    assert image.rpartition(":")[2].split(".")[:2] == ours.split(".")[:2]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_grafana_knows_all_of_a_dashboard(path: Path) -> None:
    assert faults(json.loads(path.read_text())) == []


@pytest.mark.parametrize(
    ("keys", "value", "told"),
    [
        (("panels", 0, "targets", 0, "exprr"), "up", ".exprr is unknown"),
        (("panels", 0, "gridPoss"), {}, ".gridPoss is unknown"),
        (("panels", 0, "options", "tooltip", "mode"), "many", "'many' is not one of"),
        (("panels", 0, "title"), 7, "7 is no"),
        (("refresh",), ["15s"], "is no"),
    ],
)
def test_a_mistake_is_found(keys: tuple[Any, ...], value: Any, told: str) -> None:
    document = json.loads((CHART / "grafana" / "dashboards" / "node.json").read_text())
    place = document
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    assert any(told in fault for fault in faults(document))


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_do_not_overlap_and_each_has_a_query(path: Path) -> None:
    board = json.loads(path.read_text())
    assert board["uid"] == f"orc-{path.stem}"
    panels = board["panels"]
    assert panels
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        assert [target["expr"] for target in panel["targets"]], panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]
    assert len({panel["id"] for panel in panels}) == len(panels)
