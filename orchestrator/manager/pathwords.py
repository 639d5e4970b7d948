"""Nodes, pairs of nodes and rates as a sentence has them. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator


def scopes(
    bad: Collection[frozenset[str]], tested: Collection[frozenset[str]]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Pairs of nodes as few words as can be: of all, of one node with all others, of two."""
    left = set(bad)
    if len(left) > 1 and left == set(tested):
        yield "between any two nodes", tuple(sorted({name for pair in left for name in pair}))
        return
    for name in sorted({name for pair in left for name in pair}):
        own = {pair for pair in tested if name in pair}
        if len(own) > 1 and own <= left:
            left -= own
            others = sorted(other for pair in own for other in pair - {name})
            yield f"between {name} and all other nodes", (name, *others)
    for one, two in sorted(tuple(sorted(pair)) for pair in left):
        yield f"between {one} and {two}", (one, two)


def listed(names: Iterable[str], most: int = 3) -> str:
    """Names as a sentence has them."""
    found = sorted(set(names))
    if len(found) > most + 1:
        return f"{', '.join(found[:most])} and {len(found) - most} more"
    return " and ".join(filter(None, (", ".join(found[:-1]), found[-1])))


def bits(rate: float) -> str:
    """A rate, in bits a second, as people say it."""
    for factor, unit in ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")):
        if rate >= factor:
            return f"{rate / factor:.3g} {unit}"
    return f"{rate:.0f} bit/s"
