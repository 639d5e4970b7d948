# SPDX-License-Identifier: Apache-2.0
"""Dockerfiles: the base images that a build needs, and the lines of instructions.

Syntax: https://docs.docker.com/reference/dockerfile/. Instructions are executed and checked by
buildah, so nothing here reports errors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.model.names import near_miss

_DIRECTIVE = re.compile(r"#\s*(\w+)\s*=\s*(\S+)\s*")
_HEREDOC = re.compile(r"""<<(-?)(["']?)([A-Za-z_]\w*)\2""")
_VARIABLE = re.compile(
    r"""\\(?P<escaped>.)|\$(?:(?P<name>\w+)|\{(?P<braced>\w+)(?::(?P<how>[-+])(?P<word>[^}]*))?\})"""
)
_KEYWORDS = (
    *("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL"),
    *("MAINTAINER", "ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
)
_WITH_HEREDOC = frozenset({"RUN", "COPY", "ADD"})


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, its continued lines joined by spaces."""

    line: int
    """On which it starts, from 1."""
    keyword: str
    """In upper case."""
    rest: str

    @property
    def flags(self) -> list[tuple[str, str]]:
        """Its `--flag=value`, in order."""
        found = []
        for word in self.rest.split():
            if not word.startswith("--"):
                break
            name, _, value = word[2:].partition("=")
            found.append((name.lower(), value))
        return found

    @property
    def words(self) -> list[str]:
        """The words after its flags."""
        return self.rest.split()[len(self.flags) :]


@dataclass(frozen=True, slots=True)
class Base:
    """An image that a build starts from or copies from."""

    written: str
    """As written in the Dockerfile, with its variables."""
    name: str
    line: int
    """Where it is first needed."""


def parse(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile, without comments, directives and here-documents."""
    lines = text.removeprefix("\ufeff").splitlines()
    escape = _escape(lines)
    found: list[Instruction] = []
    start, joined = 0, ""
    number = 0
    while number < len(lines):
        line = lines[number].strip()
        number += 1
        if line.startswith("#") or not line:
            continue
        if not joined:
            start = number
        more = line.endswith(escape)
        joined = f"{joined} {line.removesuffix(escape).strip()}".strip()
        if more and number < len(lines):
            continue
        keyword, _, rest = joined.partition(" ")
        found.append(Instruction(start, keyword.upper(), rest.strip()))
        if keyword.upper() in _WITH_HEREDOC:
            number = _after_heredocs(lines, number, rest)
        joined = ""
    return found


def platform_arguments(os: str, architecture: str, variant: str = "") -> dict[str, str]:
    """The arguments that a build on a node of this platform has without an ARG."""
    known = {"OS": os, "ARCH": architecture, "VARIANT": variant}
    found = {f"{side}{key}": known[key] for side in ("TARGET", "BUILD") for key in known}
    whole = "/".join(filter(None, (os, architecture, variant)))
    return found | dict.fromkeys(("TARGETPLATFORM", "BUILDPLATFORM"), whole)


def bases(
    text: str, build_args: Mapping[str, str], platform: Mapping[str, str], target: str = ""
) -> list[Base]:
    """The images that the stage `target` (else the last) needs, itself or by the stages that it
    builds on, each once.

    `platform` are the arguments that are set without an ARG, such as `TARGETARCH`.
    """
    scope = {**platform, **build_args}
    stages: list[_Stage] = []
    for each in parse(text):
        if each.keyword == "FROM" and each.words:
            name = _expanded(each.words[0], scope)
            stages.append(_Stage(each.words, Base(each.words[0], name, each.line)))
        elif each.keyword == "ARG" and not stages:
            for word in each.words:
                name, equals, value = word.partition("=")
                if equals:
                    scope.setdefault(name, _expanded(value, scope).strip("\"'"))
        elif stages:
            stages[-1].copies += [Base(name, name, each.line) for name in _sources(each)]
    needed = sorted(_needed(stages, target), key=lambda base: -base.line)
    return list({base.written: base for base in needed}.values())[::-1]


def unknown(keyword: str, text: str) -> tuple[int, str]:
    """The line of an instruction that buildah does not know (0 if it is on none), and words about
    it."""
    keyword = keyword.upper()
    line = next((each.line for each in parse(text) if each.keyword == keyword), 0)
    meant = near_miss(keyword, _KEYWORDS)
    hint = f"; did you mean {meant}?" if meant else ""
    return line, f"there is no instruction {keyword}{hint}"


def line_of(step: str, text: str) -> int:
    """The line on which an instruction starts, given as buildah prints it; 0 if it is on none,
    such as after substitution."""
    wanted = _comparable(step)
    for each in parse(text):
        if _comparable(f"{each.keyword} {each.rest}") == wanted:
            return each.line
    return 0


class _Stage:
    """A stage: its FROM, and the stages and images that it copies files from."""

    def __init__(self, words: Sequence[str], base: Base) -> None:
        self.base = base
        self.name = words[2].lower() if len(words) > 2 and words[1].lower() == "as" else ""
        self.copies: list[Base] = []


def _needed(stages: Sequence[_Stage], target: str) -> list[Base]:
    if not stages:
        return []
    wanted = len(stages) - 1
    for number, stage in enumerate(stages):
        if target and target.lower() in (stage.name, str(number)):
            wanted = number
    found: list[Base] = []
    left, seen = [wanted], {wanted}
    while left:
        number = left.pop()
        stage = stages[number]
        named = {each.name: at for at, each in enumerate(stages[:number]) if each.name}
        numbered = {str(at): at for at in range(number)}
        uses = [(stage.base, named.get(stage.base.name.lower()))]
        for copied in stage.copies:
            uses.append((copied, {**numbered, **named}.get(copied.name.lower())))
        for base, other in uses:
            if other is None:
                found.extend([base] if base.name != "scratch" else [])
            elif other not in seen:
                seen.add(other)
                left.append(other)
    return found


def _sources(each: Instruction) -> list[str]:
    """The stages and images that an instruction takes files from."""
    if each.keyword in ("COPY", "ADD"):
        return [value for name, value in each.flags if name == "from"]
    found = []
    if each.keyword == "RUN":
        for name, value in each.flags:
            keys = dict(part.partition("=")[::2] for part in value.split(","))
            if name == "mount" and keys.get("from"):
                found.append(keys["from"])
    return found


def _expanded(text: str, scope: Mapping[str, str]) -> str:
    """The text with variables expanded, as Docker does in FROM."""

    def value(match: re.Match[str]) -> str:
        if match["escaped"]:
            return match["escaped"]
        found = scope.get(match["name"] or match["braced"], "")
        if match["how"]:
            word = _expanded(match["word"], scope)
            return (found or word) if match["how"] == "-" else (word if found else "")
        return found

    return _VARIABLE.sub(value, text).strip("\"'")


def _escape(lines: Sequence[str]) -> str:
    """The character that continues a line; parser directives come before all else."""
    for line in lines:
        match = _DIRECTIVE.fullmatch(line.strip())
        if match is None:
            break
        if match[1].lower() == "escape" and match[2] in ("\\", "`"):
            return match[2]
    return "\\"


def _after_heredocs(lines: Sequence[str], number: int, rest: str) -> int:
    """The number of lines up to the end of the here-documents of an instruction."""
    for dash, _, word in _HEREDOC.findall(rest):
        while number < len(lines):
            line = lines[number].lstrip("\t") if dash else lines[number]
            number += 1
            if line == word:
                break
    return number


def _comparable(instruction: str) -> list[str]:
    """An instruction's words, normalised across the exec form and the shell form that buildah
    prints."""
    keyword, _, rest = instruction.strip().partition(" ")
    rest = rest.strip()
    if rest.startswith("["):
        try:
            return [keyword.upper(), *" ".join(json.loads(rest)).split()]
        except (ValueError, TypeError):
            pass
    # With a here-document, buildah prints what is in it too.
    return [keyword.upper(), *(rest.partition(" (")[0] if "<<" in rest else rest).split()]
