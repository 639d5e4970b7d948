"""The refusal to remove what is in use: by what, and which commands free it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.manager.refusal import Refusal, precondition

_MOST = 3
"""Users that a refusal names; the others are counted."""
_REMOVE = {"service": "orc service rm {}", "container": "orc rm -f {}"}


def in_use(
    what: str, users: Sequence[str], detach: dict[str, str] | None = None, hint: str = ""
) -> Refusal:
    """`users` are such as `service web`, `container db` or `task web.1, which is stopping`.
    `hint`: what else helps.
    `detach`: kind of user → the command that takes the thing from one, its name in place of {}."""
    remove = _commands(users, _REMOVE)
    hints = [f"type {remove} first" if remove else "try again when it has stopped"]
    if detach and (commands := _commands(users, detach)):
        hints.append(f"or detach it with {commands}")
    hints += [hint] if hint else []
    return precondition(f"{what} is in use by {_listed(users)}; {', '.join(hints)}")


def _commands(users: Iterable[str], commands: dict[str, str]) -> str:
    words = [each.split() for each in users]
    names: dict[str, list[str]] = {}
    for kind, name, *_ in words:
        names.setdefault(kind, []).append(name)
    lines = []
    for kind, found in names.items():
        if command := commands.get(kind):
            # A command that takes one name is shown for the first.
            several = command.endswith(" {}") and command in _REMOVE.values()
            lines.append(command.format(" ".join(found[:_MOST] if several else found[:1])))
    return " and ".join(f"'{line}'" for line in lines)


def _listed(names: Sequence[str]) -> str:
    """Names as a sentence has them, the last ones only as a number."""
    if len(names) > _MOST + 1:
        return f"{', '.join(names[:_MOST])} and {len(names) - _MOST} more"
    if len(names) > 1:
        return f"{', '.join(names[:-1])} and {names[-1]}"
    return names[0]
