# SPDX-License-Identifier: Apache-2.0
"""Arguments that make no sense: refused in one line that says why, before the manager is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from scripted_manager import Manager

Run = Callable[..., Result]

SERVICE = ("service", "create", "--name", "api")


def _check(manager: Manager, run: Run, arguments: tuple[str, ...], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert words in result.stderr
    assert manager.script.requests == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--replicas -1", "-1"),
        ("--limit-memory 12q", "memory '12q' is not a size"),
        ("--reserve-memory 1k", "6"),
        ("--cpu-shares 0", "0 shares must be at least 2"),
        ("--reserve-cpu x", "'x'"),
        ("--publish 99999:80", "99999"),
        ("--publish eighty", "eighty"),
        ("--env =x", "=x"),
        ("--restart-condition sometimes", "sometimes"),
        ("--constraint node.labels", "node.labels"),
        ("--stop-signal SIGNOPE", "SIGNOPE"),
        ("--replicas 10000000", "replicas 10000000 is over 100000"),
        ("--restart-max-attempts 99999999999", "max attempts"),
        (f"--replicas-max-per-node {'9' * 25}", "max per node"),
        ("--update-delay 999999h", "update delay is over ten years"),
        (f"--health-cmd true --health-retries {'9' * 12}", "retries"),
        ("--health-cmd true --health-retries -1", "health retries -1 is negative"),
        ("--health-http /x", "does not begin with a port"),
        ("--health-tcp 80 --network none", "on network none its node cannot reach"),
        ("--depends-on api", "service 'api' cannot wait for itself"),
        ("--generic-resource gpu=99999999", "is not from 1 to 10000"),
        ("--generic-resource gpu=0", "is not from 1 to 10000"),
        ("--on-disconnect vanish", "'vanish' is not one of replace"),
        ("--strategy random", "'random' is not one of default, spread, binpack"),
        ("--sysctl kernel.panic=1", "is not the container's own"),
        ("--cap-add FLY", "capability 'FLY' is unknown"),
        ("--ulimit nofile=9:1", "above the hard one"),
        ("--device nothing", "is not of the form /dev/NAME"),
        ("--security-opt seccomp=/nowhere", "cannot read the seccomp profile"),
        ("--runtime rm", "runtime 'rm' is unknown"),
        ("--cpuset-cpus 3-1", "runs backwards"),
        ("--memory-swap 1g", "give a memory limit as well"),
        ("--host db", "is not of the form NAME:IP"),
        ("--secret source=db,mode=9", "mode '9' is not an octal"),
        ("--secret source=db,size=9", "unknown key 'size'"),
        ("--secret target=db", "has no source"),
        ("--secret source=db,on-update=never", "not one of roll, signal"),
        ("--secret source=db,on-update=signal:FOO", "FOO"),
        ("--secret db --secret db", "each path can be one"),
    ],
)
def test_a_service(manager: Manager, run: Run, flags: str, words: str) -> None:
    _check(manager, run, (*SERVICE, *flags.split(), "hello:1"), words)


@pytest.mark.parametrize("label", ["--label", "--container-label"])
@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m"])
def test_a_label_that_cannot_be_shown(manager: Manager, run: Run, label: str, name: str) -> None:
    _check(manager, run, (*SERVICE, label, f"{name}=c", "hello:1"), "cannot be shown")


@pytest.mark.parametrize("image", ["Hello:1", "hello:1:2"])
def test_an_image_name(manager: Manager, run: Run, image: str) -> None:
    _check(manager, run, (*SERVICE, image), image)


@pytest.mark.parametrize("command", [SERVICE, ("run",)], ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--affinity disk==ssd", "asks for 'disk'; known are node.id"),
        ("--affinity service==db,weight=500", "weight '500' is not a number from 1 to 100"),
        ("--anti-affinity service!=db", "with services only == and in"),
        (
            "--constraint node.labels.a==1 --constraint node.labels.a==2",
            "contradict each other: no node can ever meet both",
        ),
    ],
)
def test_placement(
    manager: Manager, run: Run, command: tuple[str, ...], flags: str, words: str
) -> None:
    _check(manager, run, (*command, *flags.split(), "hello:1"), words)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("run -d --health-http /x hello:1", "does not begin with a port"),
        ("run -d --health-tcp 80 --network none hello:1", "its node cannot reach"),
        (
            "run --gpus some hello:1",
            "'some' is not a number of GPUs; for example 2, all or device=0,1",
        ),
        ("service create --gpus count=1,device=0 hello:1", "is not a number of GPUs"),
        ("dev down --name", "--name needs a value; see 'orc dev down --help'"),
        ("service scale web 3", "write it as one argument: 'orc service scale web=3'"),
        ("plan rm hello", "'orc rm' cannot be planned"),
        ("plan service create --name 9web$ hello:1", "9web$"),
        ("network policy deny default --to db --port 65536", "65536"),
        ("secret update db", "nothing to change"),
        ("secret create gone /no/such", "cannot read /no/such: no such file"),
        ("cp /a /b", "must be in a container"),
        ("stack deploy -c /none two", "no such file or directory"),
        ("node update --deadline 3s node1", "--availability drain"),
        (
            f"node update --availability drain --max-unavailable {'9' * 14} node1",
            "is not in the range",
        ),
        ("servcie ls", "service"),
    ],
)
def test_other_commands(manager: Manager, run: Run, command: str, words: str) -> None:
    _check(manager, run, tuple(command.split()), words)


def test_documents_that_are_too_big_or_empty(manager: Manager, run: Run, tmp_path: Path) -> None:
    big, empty = tmp_path / "big", tmp_path / "empty"
    big.write_bytes(b"x" * (500 * 1024 + 1))
    empty.touch()
    _check(manager, run, ("secret", "create", "big", str(big)), "exceeds 500 KiB")
    _check(manager, run, ("secret", "create", "none", str(empty)), "would be empty")
