# SPDX-License-Identifier: Apache-2.0
"""Click, adapted: lazily imported commands, near misses, one-line errors, exit statuses."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

import click

from orchestrator.cli.app import interrupts
from orchestrator.cli.app.errors import INTERRUPTED
from orchestrator.model.names import near_miss

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_GC_DEFAULTS = (700, 10, 10)
"""Python's default thresholds for garbage collection."""
_ALIASES = {"list": "ls", "remove": "rm", "container ps": "ls"}
"""Aliases that Docker has for commands, of all groups or of one. They work where a group has the
command, and are not listed."""
_OUR_PACKAGES = "orchestrator"
_DEBIAN = "/usr/lib/orc"
"""Where the Debian packages install Python packages."""
_PACKAGE = "orchestrator.cli"
_TYPED = "orc.typed"
"""Key of a context's `meta`: the words of the command line."""


@dataclass(frozen=True, slots=True)
class Lazy:
    """A command that is imported when it is called: `target` is `module:attribute`, where a module
    of the command line is written from its package on: `.service.job_commands:job`."""

    name: str
    target: str
    summary: str

    def load(self) -> click.Command:
        module, _, attribute = self.target.partition(":")
        if not module.startswith("."):
            # A daemon runs long, in a loop of asyncio: undo what `main` set for short commands.
            gc.set_threshold(*_GC_DEFAULTS)
            interrupts.uninstall()
        command: click.Command = getattr(import_module(module, _PACKAGE), attribute)
        return command


def example(*lines: str) -> str:
    """The epilog of a command's help: one or more example lines."""
    head = "Example:" if len(lines) == 1 else "Examples:"
    return "\b\n" + "\n".join([head, *(f"  {line}" for line in lines)])


class OrcGroup(click.Group):
    """A group whose commands are defined here or named as `Lazy`, listed in sections."""

    mirrors = False
    """Whether its commands belong to other groups, which document them."""

    def __init__(
        self, *args: Any, sections: Sequence[tuple[str, Sequence[Lazy]]] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._sections = sections
        self._lazy = {lazy.name: lazy for _, group in sections for lazy in group}

    def titles(self) -> dict[str, str]:
        """The section title of each listed command."""
        return {lazy.name: title for title, group in self._sections for lazy in group}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._lazy, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if lazy := self._lazy.get(cmd_name):
            return lazy.load()
        return super().get_command(ctx, cmd_name)

    def _our_name(self, ctx: click.Context, word: str) -> str:
        """The command's own name for a typed word, which may be an alias."""
        if ctx.parent is None or word in self._lazy or word in self.commands:
            return word
        meant = _ALIASES.get(word) or _ALIASES.get(f"{ctx.info_name} {word}")
        return meant if meant in self.list_commands(ctx) else word

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Completes commands without importing any of them, else options."""
        from click.shell_completion import CompletionItem

        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        known = [(lazy.name, lazy.summary) for lazy in self._lazy.values()]
        known += [
            (name, command.get_short_help_str(80))
            for name, command in sorted(self.commands.items())
            if not command.hidden
        ]
        return [
            CompletionItem(name, help=text) for name, text in known if name.startswith(incomplete)
        ]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-"):
            args = [self._our_name(ctx, args[0]), *args[1:]]
            if self.get_command(ctx, args[0]) is None:
                raise click.UsageError(self._no_command(ctx, args), ctx)
        return super().resolve_command(ctx, args)

    def _no_command(self, ctx: click.Context, args: list[str]) -> str:
        from orchestrator.cli.app.docker_hints import COMMANDS

        word = args[0]
        group = ctx.command_path.partition(" ")[2]
        for typed in (" ".join(args[:2]), f"{group} {word}".strip()):
            if instead := COMMANDS.get(typed):
                return f"'orc {typed}' is not a command; {instead}"
        what = f"'{ctx.command_path} {word}' is not a command"
        meant = near_miss(word, self.list_commands(ctx))
        return f"{what}; did you mean '{ctx.command_path} {meant}'?" if meant else what

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Widths over all sections, so that the summaries align.
        own = [
            (name, command.get_short_help_str(80))
            for name, command in sorted(self.commands.items())
        ]
        sections = [
            (title, [(lazy.name, lazy.summary) for lazy in group])
            for title, group in self._sections
        ]
        if own:
            sections.append(("Commands", own))
        width = max(len(name) for _, rows in sections for name, _ in rows)
        for title, rows in sections:
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in rows])


class RootGroup(OrcGroup):
    """The `orc` command itself: turns exceptions into one line and an exit status."""

    def __init__(
        self, *args: Any, prepare_completion: Callable[[], None] = lambda: None, **kwargs: Any
    ) -> None:
        """`prepare_completion` is called before a shell's request for completion is answered."""
        super().__init__(*args, **kwargs)
        self._prepare_completion = prepare_completion

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_TYPED] = tuple(args)
        if args[:1] == ["help"]:
            args = [*args[1:], "--help"]
        return super().parse_args(ctx, args)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run, and exit with a status as in `errors`; no traceback unless ORC_DEBUG is set."""
        if "_ORC_COMPLETE" in os.environ:
            self._prepare_completion()
        words = list(sys.argv[1:] if args is None else args)
        try:
            result = self._run(words, **extra)
        except click.exceptions.Abort:
            sys.exit(INTERRUPTED)
        except click.exceptions.NoArgsIsHelpError as asked:
            click.echo(asked.format_message(), err=True)
            sys.exit(asked.exit_code)
        except Exception as error:
            if os.environ.get("ORC_DEBUG"):
                raise
            if isinstance(error, click.UsageError) and error.ctx is None:
                error.ctx = self._context_of(words)
            click.echo(f"orc: {error_line(error)}", err=True)
            sys.exit(error.exit_code if isinstance(error, click.ClickException) else 1)
        sys.exit(result if isinstance(result, int) else 0)

    def _run(self, words: list[str], **extra: Any) -> Any:
        """Run the command of these words. `--init=false` is accepted as by Docker; click rejects
        it while parsing, before anything was done, and the words are rewritten then."""
        try:
            return super().main(words, "orc", "_ORC_COMPLETE", standalone_mode=False, **extra)
        except click.BadOptionUsage as error:
            if "does not take a value" not in error.message:
                raise
            at = next(i for i, word in enumerate(words) if word.startswith(f"{error.option_name}="))
            plain = _flag_words(self._context_of(words).command, *words[at].split("=", 1))
        return self._run([*words[:at], *plain, *words[at + 1 :]], **extra)

    def _context_of(self, words: Sequence[str]) -> click.Context:
        """The context of the command that these words name, for errors that carry none."""
        ctx = click.Context(self, info_name="orc")
        for word in words:
            group = ctx.command
            if not isinstance(group, click.Group):
                break
            if (found := group.get_command(ctx, word)) is not None:
                ctx = click.Context(found, parent=ctx, info_name=word)
        return ctx


_BOOLEANS = {
    **dict.fromkeys(("1", "t", "true"), True),
    **dict.fromkeys(("0", "f", "false"), False),
}


def _flag_words(command: click.Command, name: str, text: str) -> list[str]:
    """The words that stand for `NAME=true` or `NAME=false`."""
    if (truth := _BOOLEANS.get(text.lower())) is None:
        raise click.BadParameter(f"{name}: {text!r} is not a boolean; write true or false")
    if truth:
        return [name]
    option = next(param for param in command.params if name in param.opts)
    return option.secondary_opts[:1]


def error_line(error: Exception) -> str:
    """The problem and its remedy, as one line."""
    if isinstance(error, click.UsageError):
        text = _usage_words(error)
    elif isinstance(error, click.ClickException):
        text = error.format_message()
    elif isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith(
        _OUR_PACKAGES
    ):
        # A dependency of one of the package's extras.
        text = f"this command needs the package {error.name}: pip install 'orc[all]'"
        if sys.prefix == _DEBIAN:
            text = "this command needs a package: apt install orc-agent orc-manager"
    else:
        text = f"{type(error).__name__}: {error}; set ORC_DEBUG=1 to see where"
    return " ".join(text.split())


def _usage_words(error: click.UsageError) -> str:
    path = error.ctx.command_path if error.ctx else "orc"
    if isinstance(error, click.NoSuchOption):
        from orchestrator.cli.app.docker_hints import advice

        if instead := advice(path.partition(" ")[2], error.option_name):
            return f"'{path}' has no option {error.option_name}: {instead}"
        meant = _misread_short_option(error) or near_miss(
            error.option_name, error.possibilities or ()
        )
        hint = f"did you mean {meant}?" if meant else f"see '{path} --help'"
        return f"'{path}' has no option {error.option_name}; {hint}"
    if isinstance(error, click.MissingParameter):
        name = error.param.make_metavar(error.ctx) if error.param and error.ctx else ""
        if isinstance(error.param, click.Option):
            name = _flag(error.param, error.ctx)
        return f"{name} is missing; see '{path} --help'"
    if isinstance(error, click.BadOptionUsage) and "requires an argument" in error.message:
        return f"{error.option_name} needs a value; see '{path} --help'"
    if isinstance(error, click.BadParameter):
        message = error.message.rstrip(".")
        if isinstance(error.param, click.Option):
            return f"{_flag(error.param, error.ctx)}: {message}"
        return message
    return error.format_message().rstrip(".")


def _misread_short_option(error: click.NoSuchOption) -> str | None:
    """The option `-rm` that click read as `-r`, if there is one."""
    if error.ctx is None:
        return None
    known = {option for param in error.ctx.command.params for option in param.opts}
    typed = (word.partition("=")[0] for word in error.ctx.meta.get(_TYPED, ()))
    begun = (f"-{word}" for word in typed if word.startswith(error.option_name))
    return next((option for option in begun if option in known), None)


def _flag(option: click.Option, ctx: click.Context | None) -> str:
    """The option's name as the user typed it; if not typed, the longest."""
    for word in ctx.meta.get(_TYPED, ()) if ctx else ():
        name = word.partition("=")[0]
        if name in option.opts:
            return str(name)
        if name[:2] in option.opts and name[1:2] != "-":
            return str(name[:2])  # its value is in the same word
    return max(option.opts, key=len)
