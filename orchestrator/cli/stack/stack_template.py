# SPDX-License-Identifier: Apache-2.0
"""Charts whose `stack.yml` is a template (Jinja2), rendered with `values.yml` and `--set`.

    stack.yml       the compose file, with {{ web.replicas }} and {% if grafana.enabled %}
    values.yml      the chart's own values
    -f mine.yml     others, merged over them, key by key; repeatable
    --set a.b=c     one value, in YAML; repeatable, with the highest precedence

An undefined name is an error. Templates are sandboxed: they compute, and reach neither files nor
programs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.cli.app.errors import CliError
from orchestrator.compose.project.yaml_tree import values_in
from orchestrator.compose.tree import ComposeError
from orchestrator.model.names import near_miss

TEMPLATES = ("stack.yml", "stack.yaml")
"""Names of a template."""
VALUES = ("values.yml", "values.yaml")
_MAX_RENDERED = 1 << 20
"""Maximum characters of a rendered template."""

Read = Callable[[str], bytes]


def template_of(folder: str) -> str | None:
    """The path of a chart's template; None if the chart has none."""
    paths = (os.path.join(folder, name) for name in TEMPLATES)
    return next((path for path in paths if os.path.isfile(path)), None)


def values_of(
    folder: str, files: Sequence[str], settings: Sequence[str], read: Read
) -> dict[str, Any]:
    """The values of the chart's names. Raises CliError."""
    own = [os.path.join(folder, name) for name in VALUES]
    found: dict[str, Any] = {}
    for file in [*[path for path in own if os.path.isfile(path)][:1], *files]:
        found = _merged(found, _map(file, read))
    for text in settings:
        path, equals, value = text.partition("=")
        if not equals or not all(path.split(".")):
            raise CliError(f"--set {text}: write NAME=VALUE, such as web.replicas=3")
        tree: Any = _yaml(value, "--set")
        for key in reversed(path.split(".")):
            tree = {key: tree}
        found = _merged(found, tree)
    return found


def rendered(path: str, values: Mapping[str, Any], read: Read) -> bytes:
    """The template, rendered with these values. Raises CliError with file and line."""
    # Imported only for charts with a template.
    from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, UndefinedError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    shown = os.path.relpath(path)
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "ensure_ascii": False}
    try:
        source = read(path).decode()
        text = environment.from_string(source).render(values)
    except (OSError, UnicodeError) as error:
        raise CliError(f"cannot read {shown}: {error}") from None
    except TemplateSyntaxError as error:
        raise CliError(f"{shown}:{error.lineno}: {error.message}") from None
    except UndefinedError as error:
        raise CliError(f"{shown}:{_line(error)}: {_missing(error, values)}") from None
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise CliError(f"{shown}:{_line(error)}: {error}") from None
    if len(text) > _MAX_RENDERED:
        raise CliError(f"{shown}: the rendered stack exceeds {_MAX_RENDERED >> 20} MiB")
    return text.encode()


def _missing(error: Exception, values: Mapping[str, Any]) -> str:
    text = str(error)
    name = text.split("'")[1] if text.count("'") >= 2 and text.endswith("is undefined") else ""
    hint = near_miss(name, map(str, values)) if name else None
    return text + (f"; did you mean '{hint}'?" if hint else ", and no values file has it")


def _line(error: BaseException) -> int:
    """The template's line at which it happened, which is the innermost frame of a template."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _map(file: str, read: Read) -> dict[str, Any]:
    shown = os.path.relpath(file) if os.path.isabs(file) else file
    try:
        text = read(file).decode()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise CliError(f"cannot read values file {shown}: {reason.lower()}") from None
    tree = _yaml(text, shown)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise CliError(f"{shown}: it is not a map of names; for example 'replicas: 3'")
    return tree


def _yaml(text: str, where: str) -> Any:
    try:
        return values_in(text, where)
    except ComposeError as error:
        raise CliError(str(error)) from None


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge maps key by key; any other value of `over` replaces that of `under`."""
    result = dict(under)
    for key, value in over.items():
        before = result.get(key)
        both = isinstance(before, dict) and isinstance(value, dict)
        result[key] = _merged(before, value) if both else value  # type: ignore[arg-type]
    return result
