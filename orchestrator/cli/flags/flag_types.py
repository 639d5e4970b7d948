# SPDX-License-Identifier: Apache-2.0
"""Types of flags, and flags that set one value of a spec."""

from __future__ import annotations

import shlex
import string
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from orchestrator.model.names import near_miss
from orchestrator.model.units import parse_cpus, parse_duration, parse_memory, parse_moment

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    AnyType = click.ParamType[Any]
else:
    AnyType = click.ParamType  # not generic before click 8.4


class Parsed(AnyType):
    """A type parsed by a function that raises ValueError with a message for the user."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._read(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """`DURATION`, or the choices: `[vip|dnsrr]`."""
        return f"[{self.name}]" if "|" in self.name else self.name.upper()

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        """The choices of a name such as `vip|dnsrr`; of `keep|stop-after=DURATION` up to the
        placeholder."""
        from click.shell_completion import CompletionItem

        words = self.name.split("|") if "|" in self.name else ()
        choices = [word.rstrip(string.ascii_uppercase) for word in words]
        return [CompletionItem(each) for each in choices if each and each.startswith(incomplete)]


def moment_type(name: str) -> Parsed:
    """Parses `10m` (ago) or RFC 3339 into Unix seconds, for the flag `name`."""
    return Parsed("time", lambda text: parse_moment(text, time.time(), name))


def filter_of(text: str, keys: Collection[str]) -> tuple[str, str]:
    """Key and value of `--filter KEY=VALUE`. Raises click.BadParameter, with a near miss, for an
    unknown key."""
    key, equals, value = text.partition("=")
    if equals and key in keys:
        return key, value
    meant = near_miss(key, keys) if equals else None
    hint = f"; did you mean {meant!r}?" if meant else ""
    raise click.BadParameter(
        f"filter {text!r} is not KEY=VALUE with one of {', '.join(keys)}{hint}"
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(shlex.split(text))


def _certificate_lifetime(text: str) -> float:
    seconds = parse_duration(text, "certificate lifetime")
    if not 20 <= seconds <= 5 * 365 * 24 * 3600:
        raise ValueError("certificates may last from 20s to 43800h (five years)")
    return seconds


def pairs(what: str, texts: Iterable[str]) -> dict[str, str]:
    """`KEY=VALUE` texts as a dict; `KEY` alone has an empty value."""
    result = {}
    for text in texts:
        key, _, value = text.partition("=")
        if not key:
            raise click.BadParameter(f"{what} {text!r} is not of the form KEY=VALUE")
        result[key] = value
    return result


MEMORY = Parsed("size", parse_memory)
CPUS = Parsed("cores", parse_cpus)
DURATION = Parsed("duration", parse_duration)
CERTIFICATE_LIFETIME = Parsed("duration", _certificate_lifetime)
WORDS = Parsed("words", _words)


@dataclass(frozen=True, slots=True)
class Setting:
    """A flag that sets one value of a spec."""

    flags: tuple[str, ...]
    path: str
    """Where in ServiceSpec, such as `task.container.user`."""
    type: AnyType
    help: str
    default: str = ""
    """The default as shown in help."""
    metavar: str | None = None
    """The placeholder of its value; None: the type's."""
    flag_value: str | None = None
    """The value of a flag that takes none."""

    @property
    def click_options(self) -> dict[str, Any]:
        """Keyword arguments for `click.option`."""
        return {
            "type": self.type,
            "default": None,
            "metavar": self.metavar,
            "help": f"{self.help}  [default: {self.default}]" if self.default else self.help,
            **({} if self.flag_value is None else {"is_flag": True, "flag_value": self.flag_value}),
        }

    @property
    def name(self) -> str:
        return self.flags[0].partition("/")[0].lstrip("-").replace("-", "_")
