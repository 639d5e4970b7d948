# SPDX-License-Identifier: Apache-2.0
"""Names that one Python takes for another's: what runs on 3.11 shall run on 3.12 and 3.13, too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import orchestrator

_Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


def _names(node: ast.AST, context: type[ast.expr_context]) -> set[str]:
    found = (each for each in ast.walk(node) if isinstance(each, ast.Name))
    return {name.id for name in found if isinstance(name.ctx, context)}


def _functions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All that are defined below a node, wherever statements are."""
    for each in ast.iter_child_nodes(node):
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
            yield each
        if not isinstance(each, ast.expr):
            yield from _functions(each)


def _confused(function: ast.AST) -> Iterator[str]:
    """Names that are a variable of one comprehension and come from outside in another."""
    inner = [each for each in ast.walk(function) if isinstance(each, _Comprehension)]
    if len(inner) < 2:
        return
    made = [_names(each, ast.Store) for each in inner]
    anywhere = set[str]().union(*made)
    for each, own in zip(inner, made, strict=True):
        yield from (_names(each, ast.Load) - own) & anywhere


def test_no_comprehension_variable_shadows_a_called_name() -> None:
    """In Python 3.12.3, Ubuntu 24.04's, `entry(x)` of the second fails as an unbound local:

    [entry for entry in usual] + [entry(x) for x in own]
    """
    root = Path(orchestrator.__file__).parent
    found = []
    for path in root.rglob("*.py"):
        if path.parent.name == "pb":
            continue
        tree = ast.parse(path.read_text())
        outside = {
            name for node in tree.body for name in [getattr(node, "name", ""), *_bound(node)]
        }
        for function in _functions(tree):
            confused = sorted(set(_confused(function)) & outside)
            found += [f"{path.relative_to(root)}:{function.name}: {name}" for name in confused]
    assert not found


def _bound(node: ast.stmt) -> Iterator[str]:
    """What an import or an assignment of a module binds."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from ((each.asname or each.name).partition(".")[0] for each in node.names)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        yield from _names(node, ast.Store)
