# SPDX-License-Identifier: Apache-2.0
"""Completion in bash, zsh and fish: the scripts, and their protocol with `orc`.

A script calls `orc` with the line up to the cursor in ORC_LINE, and gets a line per candidate: its
kind (plain, file, dir), the whole word, and a description, separated by tabs. The word is whole
also after `--flag=`, and where bash splits at `:` and `=`; the scripts cut it to the part that
their shell replaces. Click's own scripts join the words as split by the shell, which finds nothing
for `orc rmi hello:1`.
"""

from __future__ import annotations

import os
from typing import Any

import click
from click.shell_completion import (
    CompletionItem,
    ShellComplete,
    add_completion_class,
    split_arg_string,
)

_BASH = r"""# bash completion for %(prog_name)s
%(complete_func)s() {
    local line=${COMP_LINE:0:COMP_POINT} breaks='' mark kind value about
    local word=${line##*[[:space:]]} cut=''
    for mark in = : @; do
        [[ $COMP_WORDBREAKS == *"$mark"* ]] && breaks+=$mark
    done
    [[ -n $breaks ]] && cut=${word%%"${word##*[$breaks]}"}
    COMPREPLY=()
    while IFS=$'\t' read -r kind value about; do
        case $kind in
        plain)
            COMPREPLY+=("${value#"$cut"}")
            [[ $value == *[=:] ]] && compopt -o nospace
            ;;
        dir) compopt -o dirnames ;;
        file) compopt -o default ;;
        esac
    done < <(%(complete_var)s=bash_complete ORC_LINE=$line "$1" 2>/dev/null)
}

complete -o nosort -F %(complete_func)s %(prog_name)s 2>/dev/null ||
    complete -F %(complete_func)s %(prog_name)s
"""

_ZSH = r"""#compdef %(prog_name)s

%(complete_func)s() {
    local line kind value about files=''
    local -a answer values shown open open_shown
    line="${(j: :)words[1,CURRENT-1]} $PREFIX"
    answer=("${(@f)$(%(complete_var)s=zsh_complete ORC_LINE=$line $words[1] 2>/dev/null)}")
    for line in $answer; do
        IFS=$'\t' read -r kind value about <<<"$line"
        case $kind in
        plain)
            about="$value${about:+  -- $about}"
            if [[ $value == *[=:] ]]; then
                open+=("$value") open_shown+=("$about")
            else
                values+=("$value") shown+=("$about")
            fi
            ;;
        dir) files='-/' ;;
        file) files='-f' ;;
        esac
    done
    (($#values)) && compadd -l -V orc -d shown -a values
    (($#open)) && compadd -l -V orc -S '' -d open_shown -a open
    if [[ -n $files ]]; then
        [[ $PREFIX == -*=* ]] && compset -P '*='
        _path_files $files
    fi
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""

_FISH = r"""# fish completion for %(prog_name)s
function %(complete_func)s
    set -lx ORC_LINE (commandline -cp)
    set -lx %(complete_var)s fish_complete
    for line in (%(prog_name)s 2>/dev/null)
        set -l parts (string split \t -- $line)
        switch $parts[1]
            case plain
                string join \t -- $parts[2..]
            case dir
                __fish_complete_directories $parts[2]
            case file
                __fish_complete_path $parts[2]
        end
    end
end

complete --no-files --keep-order --command %(prog_name)s --arguments "(%(complete_func)s)"
"""


class _Shell(ShellComplete):
    """The common part of the three shells."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the incomplete one, and the incomplete one."""
        line = os.environ.get("ORC_LINE", "").lstrip()
        words = split_arg_string(line)
        while words and "=" in words[0]:
            words.pop(0)  # assignments before the command
        typed = words.pop() if len(words) > 1 and _ends_in_a_word(line) else ""
        return words[1:], typed

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        """The candidates, as whole words."""
        if incomplete.startswith("-") and "=" in incomplete:
            head = incomplete.partition("=")[0] + "="
        else:
            head = ""
        found = super().get_completions(args, incomplete)
        for item in found:
            item.value = head + item.value
        return found

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """A line of the output: kind, word, description."""
        return "\t".join(
            " ".join(str(text).split()) for text in (item.type, item.value, item.help or "")
        )


def _ends_in_a_word(line: str) -> bool:
    return not line[-1:].isspace() or line[-2:-1] == "\\"


class _Bash(_Shell):
    name = "bash"
    source_template = _BASH


class _Zsh(_Shell):
    name = "zsh"
    source_template = _ZSH


class _Fish(_Shell):
    name = "fish"
    source_template = _FISH


SHELLS = {kind.name: kind for kind in (_Bash, _Zsh, _Fish)}


def script(shell: str, root: click.Command) -> str:
    """The completion script of a shell."""
    return SHELLS[shell](root, {}, "orc", "_ORC_COMPLETE").source()


for _kind in SHELLS.values():
    add_completion_class(_kind)
