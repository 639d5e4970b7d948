# SPDX-License-Identifier: Apache-2.0
"""Modules that libraries import and short commands do not use: they are loaded on first use.

Measured, of the 45 ms that `orc exec` imports for: the Python implementation of protobuf, which
its C implementation imports and does not use, 7.5 ms; and a tenth of the CPU time of `orc --help`
is that of `inspect` with what it imports. Of this module, Click uses only `cleandoc`, and
`dataclasses` only `get_annotations`, unless a class has no docstring.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Loader

_NAMES = frozenset({"google.protobuf.internal.python_message"})


class _LazyFinder:
    """A finder of `sys.meta_path` for these names alone."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's usual spec, with a loader that executes it on first use."""
        if name not in _NAMES and name != "inspect":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            if name == "inspect":
                spec.loader = _InspectLoader(spec.loader)  # type: ignore[assignment]
                return spec
            from importlib.util import LazyLoader

            spec.loader = LazyLoader(spec.loader)
        return spec


class _InspectLoader:
    """Makes a module of these two functions, and loads all of it when anything else is used."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._lock = threading.RLock()

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        def load(name: str) -> object:
            if name.startswith("__"):
                raise AttributeError(f"module 'inspect' has no attribute {name!r}")
            with self._lock:
                if vars(module).pop("__getattr__", None) is not None:
                    self._loader.exec_module(module)
            return getattr(module, name)

        def get_annotations(subject: object, **options: object) -> object:
            if isinstance(subject, type) and not options:
                return dict(vars(subject).get("__annotations__") or {})
            load("signature")
            return module.get_annotations(subject, **options)

        vars(module).update(cleandoc=cleandoc, get_annotations=get_annotations, __getattr__=load)


def cleandoc(doc: str) -> str:
    """As `inspect.cleandoc`."""
    first, *others = doc.expandtabs().split("\n")
    indents = [len(line) - len(line.lstrip(" ")) for line in others if line.strip(" ")]
    margin = min(indents, default=0)
    lines = [first.lstrip(" "), *(line[margin:] for line in others)]
    while lines and not lines[-1]:
        lines.pop()
    while lines and not lines[0]:
        del lines[0]
    return "\n".join(lines)


def install() -> None:
    """Install the finder for all later imports of this process."""
    sys.meta_path.insert(0, _LazyFinder)
