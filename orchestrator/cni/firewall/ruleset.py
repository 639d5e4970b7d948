# SPDX-License-Identifier: Apache-2.0
"""The desired content of our nftables tables, and scripts for its changes; pure.

Each object that needs rules (a service, a network, the policies) owns a `RuleFragment`. The ruleset
consists of all fragments, and a change of some becomes one script that leaves the others alone, so
a change costs the same beside one service and beside a thousand. Two owners may claim the same
element, as with a port that is published twice: the first by name has it, and after it the next.

All names are qualified as in nftables: `inet orc_balance vips4`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

TABLES = ("inet orc_balance", "netdev orc_balance")
INET, NETDEV = TABLES


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain's rules; `hook` is that of a base chain, and never changes."""

    rules: tuple[str, ...]
    hook: str = ""


@dataclass(frozen=True, slots=True)
class RuleFragment:
    """The chains, sets and elements of one owner.

    `sets` are declarations of sets and maps; `elements` are key → value for any set or map, with an
    empty value for sets.
    """

    chains: Mapping[str, Chain] = field(default_factory=dict)
    sets: Mapping[str, str] = field(default_factory=dict)
    elements: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


NO_RULES = RuleFragment()


@dataclass(slots=True)
class _Script:
    """Commands, in the order of the steps."""

    declared: list[str] = field(default_factory=list)
    released: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    filled: list[str] = field(default_factory=list)
    bound: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    removed: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The script, one transaction."""
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
    """The fragments of all owners."""

    def __init__(self) -> None:
        self._fragments: dict[str, RuleFragment] = {}
        self._claims: dict[tuple[str, str], dict[str, str]] = {}

    def update(self, changes: Mapping[str, RuleFragment]) -> str:
        """Replace owners' fragments (`NO_RULES` removes an owner); return the script, which is
        empty if nothing differs."""
        script = _Script()
        touched: dict[tuple[str, str], str | None] = {}
        chains: dict[str, Chain] = {}
        gone: dict[str, RuleFragment] = {}
        for owner, fragment in changes.items():
            before = self._fragments.get(owner, NO_RULES)
            if fragment == before:
                continue
            gone[owner] = before
            for name, declaration in fragment.sets.items():
                if before.sets.get(name) != declaration:
                    script.declared.append(f"add {declaration.format(name=name)}")
            for name, chain in fragment.chains.items():
                present = before.chains.get(name)
                if present is None:
                    hook = f" {{ {chain.hook} }}" if chain.hook else ""
                    script.declared.append(f"add chain {name}{hook}")
                if present != chain:
                    chains[name] = chain
            self._claim(owner, before, fragment, touched)
            if fragment == NO_RULES:
                self._fragments.pop(owner, None)
            else:
                self._fragments[owner] = fragment
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
            fragment = changes[owner]
            for name in before.chains.keys() - fragment.chains.keys():
                script.removed += [f"flush chain {name}", f"delete chain {name}"]
        for owner, before in gone.items():
            for name in before.sets.keys() - changes[owner].sets.keys():
                kind = before.sets[name].partition(" ")[0]
                script.removed.append(f"delete {kind} {name}")
        return script.text().strip()

    def _claim(
        self,
        owner: str,
        before: RuleFragment,
        fragment: RuleFragment,
        touched: dict[tuple[str, str], str | None],
    ) -> None:
        for name in before.elements.keys() | fragment.elements.keys():
            old, new = before.elements.get(name, {}), fragment.elements.get(name, {})
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
        """The script that replaces our tables by the whole ruleset; without rules it removes
        them."""
        fresh = Ruleset()
        filled = fresh.update(self._fragments)
        script = [f"add table {table}\ndelete table {table}" for table in TABLES]
        if filled:
            script += [*(f"add table {table}" for table in TABLES), filled]
        return "\n".join(script)

    def counts(self) -> dict[str, int]:
        """The number of rules of chains and elements of named sets, by qualified name."""
        found = {
            name: len(chain.rules)
            for fragment in self._fragments.values()
            for name, chain in fragment.chains.items()
        }
        found.update((name, 0) for fragment in self._fragments.values() for name in fragment.sets)
        for name, _ in self._claims:
            found[name] += 1
        return found
