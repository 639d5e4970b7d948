# SPDX-License-Identifier: Apache-2.0
"""What is to be in our nftables tables, and the script that leads there from what is; pure.

Each thing that needs rules (a service, a network, the policies) is the owner of a `Part`. The
parts of all owners are the ruleset, and a change of some owners becomes one script that touches
nothing of the others, so one change costs the same beside one service and beside a thousand. Two
owners may claim the same element, as with a port that is published twice: the first by name has
it, and when that one goes, the next.

All names are qualified as nftables wants them: `inet orc_balance vips4`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

TABLES = ("inet orc_balance", "netdev orc_balance")
INET, NETDEV = TABLES


@dataclass(frozen=True, slots=True)
class Chain:
    """Rules in their order; a base chain says where it hooks in, which never changes."""

    rules: tuple[str, ...]
    hook: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """What one owner puts into the tables.

    `sets` are sets and maps with their declaration, `elements` those of any set: key to value,
    which is empty in a set that is no map.
    """

    chains: Mapping[str, Chain] = field(default_factory=dict)
    sets: Mapping[str, str] = field(default_factory=dict)
    elements: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


NOTHING = Part()


@dataclass(slots=True)
class _Script:
    """Commands, by the step in which they must come."""

    declared: list[str] = field(default_factory=list)
    released: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    filled: list[str] = field(default_factory=list)
    bound: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    removed: list[str] = field(default_factory=list)

    def text(self) -> str:
        """All of it, one transaction."""
        return "\n".join(
            [
                *self.declared,
                *_grouped("delete", self.released),
                *self.filled,
                *_grouped("add", self.bound),
                *self.removed,
                "",
            ]
        )


def _grouped(verb: str, elements: Mapping[str, Iterable[str]]) -> list[str]:
    return [f"{verb} element {name} {{ {', '.join(keys)} }}" for name, keys in elements.items()]


class Ruleset:
    """The parts of all owners."""

    def __init__(self) -> None:
        self._parts: dict[str, Part] = {}
        self._claims: dict[tuple[str, str], dict[str, str]] = {}

    def update(self, changes: Mapping[str, Part]) -> str:
        """Give owners other parts (`NOTHING` to be none any more); return the script for it.

        Empty if nothing differs.
        """
        script = _Script()
        touched: dict[tuple[str, str], str | None] = {}
        chains: dict[str, Chain] = {}
        gone: dict[str, Part] = {}
        for owner, part in changes.items():
            before = self._parts.get(owner, NOTHING)
            if part == before:
                continue
            gone[owner] = before
            for name, declaration in part.sets.items():
                if before.sets.get(name) != declaration:
                    script.declared.append(f"add {declaration.format(name=name)}")
            for name, chain in part.chains.items():
                present = before.chains.get(name)
                if present is None:
                    hook = f" {{ {chain.hook} }}" if chain.hook else ""
                    script.declared.append(f"add chain {name}{hook}")
                if present != chain:
                    chains[name] = chain
            self._claim(owner, before, part, touched)
            if part == NOTHING:
                self._parts.pop(owner, None)
            else:
                self._parts[owner] = part
        for name, chain in chains.items():
            script.filled.append(f"flush chain {name}")
            script.filled += [f"add rule {name} {rule}" for rule in chain.rules]
        for (name, key), value in touched.items():
            now = self._value(name, key)
            if now == value:
                continue
            if value is not None:
                script.released[name].append(key)
            if now is not None:
                script.bound[name].append(f"{key} : {now}" if now else key)
        for owner, before in gone.items():
            part = changes[owner]
            for name in before.chains.keys() - part.chains.keys():
                script.removed += [f"flush chain {name}", f"delete chain {name}"]
        for owner, before in gone.items():
            for name in before.sets.keys() - changes[owner].sets.keys():
                kind = before.sets[name].partition(" ")[0]
                script.removed.append(f"delete {kind} {name}")
        return script.text().strip()

    def _claim(
        self, owner: str, before: Part, part: Part, touched: dict[tuple[str, str], str | None]
    ) -> None:
        for name in before.elements.keys() | part.elements.keys():
            old, new = before.elements.get(name, {}), part.elements.get(name, {})
            for key in old.keys() | new.keys():
                value = new.get(key)
                if old.get(key) == value:
                    continue
                touched.setdefault((name, key), self._value(name, key))
                claims = self._claims.setdefault((name, key), {})
                if value is None:
                    claims.pop(owner, None)
                else:
                    claims[owner] = value
                if not claims:
                    del self._claims[name, key]

    def _value(self, name: str, key: str) -> str | None:
        claims = self._claims.get((name, key))
        return claims[min(claims)] if claims else None

    def script(self) -> str:
        """All of it, in place of whatever is there; no table where there is nothing."""
        fresh = Ruleset()
        filled = fresh.update(self._parts)
        script = [f"add table {table}\ndelete table {table}" for table in TABLES]
        if filled:
            script += [*(f"add table {table}" for table in TABLES), filled]
        return "\n".join(script)

    def counts(self) -> dict[str, int]:
        """How many rules each chain has, and elements each named set, by qualified name."""
        found = {
            name: len(chain.rules)
            for part in self._parts.values()
            for name, chain in part.chains.items()
        }
        found.update((name, 0) for part in self._parts.values() for name in part.sets)
        for name, _ in self._claims:
            found[name] += 1
        return found
