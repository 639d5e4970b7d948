# SPDX-License-Identifier: Apache-2.0
"""`docs/how-to/from-compose.md` documents each key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import pytest

from orchestrator.cli.main import orc
from orchestrator.compose.schema import file_keys, service_keys
from orchestrator.compose.schema.collection_kinds import Object
from orchestrator.compose.schema.extension import X_ORC
from orchestrator.compose.schema.value_kinds import Ignored, Kind, Text, Unsupported

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "from-compose.md"
_ROW = re.compile(r"^\| `(?P<key>[a-z0-9_.-]+)` \| (?P<text>.+) \|$")
_FLAG = re.compile(r"`(--[a-z0-9-]*[a-z0-9])(?=[ =`])")
_NOUNS = ("include", "services", "networks", "volumes", "secrets", "configs")
"""Keys of a file whose own keys have a table each."""
TABLES: dict[str, Mapping[str, Kind]] = {
    "The file": {
        name: Text() if name in _NOUNS else kind for name, kind in file_keys.FILE.table.items()
    },
    "A service": service_keys.SERVICE.table,
    "A network": file_keys.NETWORK.table,
    "A volume": file_keys.VOLUME.table,
    "A secret or a config": {**file_keys.CONFIG.table, **file_keys.SECRET.table},
    "An include": file_keys.INCLUDE.kind.table,  # type: ignore[attr-defined]
}


def keys(table: Mapping[str, Kind], path: str = "") -> Iterator[tuple[str, Kind]]:
    """Every key of a table and below it, with its path; `x-orc` is one key."""
    for name, kind in table.items():
        yield path + name, kind
        if name != X_ORC and (below := inner(kind)):
            yield from keys(below.table, f"{path}{name}.")


def inner(kind: Kind) -> Object | None:
    """The keys of a map, or of the maps in a list."""
    if isinstance(kind, Object):
        return kind
    below = getattr(kind, "kind", None) or getattr(kind, "entry", None)
    return inner(below) if below else None


def rows(title: str) -> dict[str, str]:
    section = PAGE.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    found = [row for line in section.splitlines() if (row := _ROW.match(line))]
    assert found, title
    return {row["key"]: row["text"].replace("\\|", "|") for row in found}


@pytest.mark.parametrize("title", TABLES)
def test_each_key_has_a_row_with_the_message_of_the_schema(title: str) -> None:
    documented = rows(title)
    known = dict(keys(TABLES[title]))
    assert set(documented) <= set(known)
    missing = set(known) - set(documented)
    # A section, all of whose keys have rows, needs none itself.
    assert all(any(key.startswith(f"{each}.") for key in documented) for each in missing), missing
    for key, text in documented.items():
        kind = known[key]
        match kind:
            case Unsupported():
                only = ", ".join(f"`{word}`" for word in kind.harmless)
                end = f"; only {only} is accepted" if only else ""
                assert text == f"**not supported**: {kind.message}{end}"
            case Ignored():
                assert text == "ignored" + (f": {kind.message}" if kind.message else "")
            case _:
                assert not text.startswith(("**not supported**", "ignored:")), key


def test_flags_of_the_page_exist() -> None:
    flags = {
        noun: {flag for param in command(*noun.split()).params for flag in param.opts}
        for noun in (
            *("service create", "build", "network create", "volume create", "secret create"),
            *("config create", "stack deploy"),
        )
    }
    of = {
        "A service": flags["service create"] | flags["build"] | {"--profile"},
        "A network": flags["network create"],
        "A volume": flags["volume create"],
        "A secret or a config": flags["secret create"] & flags["config create"]
        | {"--template-driver"},
    }
    for title, known in of.items():
        for key, text in rows(title).items():
            named = set(_FLAG.findall(text))
            assert named <= known, f"{title}: {key}"


def command(*path: str) -> click.Command:
    found: click.Command = orc
    for word in path:
        assert isinstance(found, click.Group)
        below = found.get_command(click.Context(found), word)
        assert below is not None
        found = below
    return found
