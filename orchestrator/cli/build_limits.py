"""Flags of `orc build` that limit what a build may take of its node."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from orchestrator.cli.flag_types import CPUS, MEMORY
from orchestrator.cli.settings import MEMORY_SWAP
from orchestrator.model.confinement import parse_ulimit
from orchestrator.model.specs import SHARES_PER_CORE
from orchestrator.pb import control_pb2

_PERIOD = 100_000
"""Microseconds: the kernel's own period."""

_OPTIONS = (
    click.option("--memory", "-m", type=MEMORY, help="Maximum memory of the build."),
    click.option(
        "--memory-swap",
        type=MEMORY_SWAP,
        metavar="SIZE|-1",
        help="Maximum memory and swap together; -1: no limit.",
    ),
    click.option("--cpus", type=CPUS, help="Maximum number of cores, such as 1.5."),
    click.option(
        "--cpu-shares",
        "-c",
        type=click.IntRange(2, 262_144),
        metavar="SHARES",
        help="CPU weight, 1024 by default.",
    ),
    click.option(
        "--cpu-quota",
        type=click.IntRange(1000),
        metavar="MICROSECONDS",
        help="CPU time in each period; see --cpus.",
    ),
    click.option(
        "--cpu-period",
        type=click.IntRange(1000, 1_000_000),
        metavar="MICROSECONDS",
        help="Period of --cpu-quota; 100000 unless given.",
    ),
    click.option("--cpuset-cpus", metavar="CPUS", help="CPUs to run on, such as 0-1,3."),
    click.option(
        "--pids-limit",
        type=click.IntRange(-1),
        metavar="NUMBER",
        help="Maximum number of processes and threads, 4096 by default; -1: no limit.",
    ),
    click.option("--shm-size", type=MEMORY, help="Size of /dev/shm in RUN, 64m by default."),
    click.option(
        "--ulimit",
        "ulimits",
        multiple=True,
        metavar="LIMIT=SOFT[:HARD]",
        help="A limit of the processes of RUN, such as nofile=1024; repeatable.",
    ),
)
_NAMES = (
    *("memory", "memory_swap", "cpus", "cpu_shares", "cpu_quota", "cpu_period", "cpuset_cpus"),
    *("pids_limit", "shm_size", "ulimits"),
)


def limit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags; it takes what they say as `limits`, None if none is
    given."""

    @functools.wraps(command)
    def limited(*arguments: Any, **given: Any) -> None:
        limits = _limits(**{name: given.pop(name) for name in _NAMES})
        command(*arguments, limits=limits, **given)

    for option in reversed(_OPTIONS):
        limited = option(limited)
    return limited


def _limits(
    memory: int | None,
    memory_swap: int | None,
    cpus: int | None,
    cpu_shares: int | None,
    cpu_quota: int | None,
    cpu_period: int | None,
    cpuset_cpus: str | None,
    pids_limit: int | None,
    shm_size: int | None,
    ulimits: tuple[str, ...],
) -> Any:
    if cpus and (cpu_quota or cpu_period):
        raise click.UsageError("--cpus is a quota and a period; give either these or --cpus")
    if memory_swap and memory_swap > 0 and memory_swap < (memory or 0):
        raise click.UsageError("--memory-swap counts memory too, so it cannot be below --memory")
    if memory_swap and not memory:
        raise click.UsageError("--memory-swap limits memory and swap together; give --memory, too")
    try:
        parsed = [parse_ulimit(text) for text in ulimits]
    except ValueError as error:
        raise click.UsageError(f"--ulimit: {error}") from None
    limits = control_pb2.BuildLimits(
        memory=memory or 0,
        memory_swap=memory_swap or 0,
        cpu_shares=cpu_shares or 0,
        cpu_quota=cpu_quota or (cpus or 0) * _PERIOD // SHARES_PER_CORE,
        cpu_period=cpu_period or 0,
        cpuset_cpus=cpuset_cpus or "",
        pids=pids_limit or 0,
        shm_size=shm_size or 0,
        ulimits=[f"{each.name}={each.soft}:{each.hard}" for each in parsed],
    )
    return limits if limits.ByteSize() else None
