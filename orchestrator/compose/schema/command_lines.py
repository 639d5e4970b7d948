# SPDX-License-Identifier: Apache-2.0
"""Splitting a command line into words, as Compose does.

The rules are those of Compose's library (https://github.com/mattn/go-shellwords) and differ from a
shell's: nothing is expanded, `` `x y` `` and `$(x y)` are single words, and the line ends at an
operator such as `;` or `|`.
"""

from __future__ import annotations

from dataclasses import dataclass

_SPACES = " \t\r\n"
_OPERATORS = ";&|<>"
_ESCAPES = {"t": "\t", "n": "\n"}


@dataclass(frozen=True, slots=True)
class Split:
    """The words of a command line."""

    words: list[str]
    ignored: str = ""
    """The rest of the line from an operator on, which does not belong to the command."""


def split(line: str) -> Split:
    """Split a command line. Raises ValueError for an unbalanced quote or parenthesis."""
    words: list[str] = []
    word: str | None = None
    quote, escaped = "", False
    for position, character in enumerate(line):
        if escaped:
            word, escaped = (word or "") + _ESCAPES.get(character, character), False
        elif character == "\\" and quote != "'":
            escaped = True
        elif character in _SPACES and not quote:
            words += [] if word is None else [word]
            word = None
        elif character == quote and quote in "'\"":
            word, quote = word or "", ""
        elif character == quote:
            word, quote = (word or "") + character, ""
        elif not quote and character in "'\"":
            quote = character
        elif not quote and character == "`":
            word, quote = (word or "") + character, character
        elif not quote and character == "(" and (word or "").endswith("$"):
            word, quote = f"{word}(", ")"
        elif character in "()" and quote not in ("'", '"', "`"):
            raise ValueError("unbalanced parenthesis; quote it")
        elif not quote and character in _OPERATORS:
            # The number of a redirected descriptor is not a word.
            if word is not None and not (character == ">" and word[:1].isdecimal()):
                words.append(word)
            return Split(words, line[position:])
        else:
            word = (word or "") + character
    if quote or escaped:
        raise ValueError("a quote is not closed" if quote else "trailing backslash")
    return Split(words if word is None else [*words, word])
