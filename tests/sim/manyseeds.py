# SPDX-License-Identifier: Apache-2.0
"""`make sim`: many seeds, on all cores. `ARGS="2000"`: so many; `ARGS="1 --first 211"`: this one.

Ten thousand seeds find what two hundred do not, in an hour of processor time. Exits with 1 if
a seed failed, and says which.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from simmanagers import live_of_managers
from simpulls import live_of_pulls
from simseeds import live, live_of_containers
from simterm import Kind, live_of_terms

_LIVES: dict[str, Callable[[int], None]] = {
    "services": live,
    "containers": live_of_containers,
    "pulls": live_of_pulls,
    "managers": live_of_managers,
    **{kind.value: partial(live_of_terms, kind=kind) for kind in Kind},
}
_CHUNK = 20
"""Seeds that a process is given at a time."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make sim ARGS=…", description=__doc__)
    parser.add_argument("seeds", nargs="?", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--of", choices=sorted(_LIVES), action="append", help="all by default")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    failed = 0
    for kind in arguments.of or sorted(_LIVES):
        failed += _run(kind, seeds)
    return 1 if failed else 0


def _run(kind: str, seeds: range) -> int:
    """Live through all of the seeds; how many failed."""
    began, failed = time.monotonic(), 0
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        tries = pool.map(_attempt, [kind] * len(seeds), seeds, chunksize=_CHUNK)
        for done, error in enumerate(tries, 1):
            if error:
                failed += 1
                print(f"{kind}: {error}\n", flush=True)
            if sys.stderr.isatty():
                print(f"\r{kind}: {done} of {len(seeds)} ", end="", file=sys.stderr, flush=True)
            elif done % 500 == 0:
                print(f"{kind}: {done} of {len(seeds)}, {failed} failed", flush=True)
    took = time.monotonic() - began
    print(f"{kind}: {len(seeds)} seeds, {failed} failed, {took:.0f} s", flush=True)
    return failed


def _attempt(kind: str, seed: int) -> str:
    """What is wrong, in words; empty if nothing is. Whatever is raised is a failure of the seed."""
    try:
        _LIVES[kind](seed)
    except AssertionError as error:
        return str(error)
    except Exception as error:
        return f"seed {seed}: {type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
