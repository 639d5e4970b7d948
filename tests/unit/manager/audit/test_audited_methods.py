# SPDX-License-Identifier: Apache-2.0
"""Which calls are in the audit trail: every RPC is in one table, and its rule can be followed."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

import pytest

import orchestrator.pb
from orchestrator.identity.roles import ALLOWED, OPEN
from orchestrator.manager.audit.audited_methods import AGENTS, MUTATING, READ_ONLY, Rule, value_at
from orchestrator.pb import control_pb2, documents_pb2, images_pb2


def rpcs() -> dict[str, Any]:
    """`Service.Method` → its description, of all that any server serves."""
    found = {}
    for module in pkgutil.iter_modules(orchestrator.pb.__path__):
        if module.name.endswith("_pb2"):
            described = import_module(f"orchestrator.pb.{module.name}").DESCRIPTOR
            for service in described.services_by_name.values():
                assert service.full_name in ALLOWED.keys() | OPEN
                for method in service.methods:
                    found[f"{service.name}.{method.name}"] = method
    return found


RPCS = rpcs()


@pytest.mark.parametrize("name", sorted(RPCS))
def test_each_call_is_in_one_table(name: str) -> None:
    tables = [name in table for table in (MUTATING, READ_ONLY, AGENTS)]
    assert sum(tables) == 1, (
        f"put {name} into one table of manager/audit/methods.py: does it change something?"
    )


def test_the_tables_have_no_other_calls() -> None:
    assert MUTATING.keys() | READ_ONLY | AGENTS == RPCS.keys()


@pytest.mark.parametrize("name", sorted(MUTATING))
def test_a_rule_names_fields_that_are_there(name: str) -> None:
    rule = MUTATING[name]
    for path in rule.asked:
        assert _ends_in_text(RPCS[name].input_type, path), path
    for path in filter(None, (rule.name, rule.id)):
        assert _ends_in_text(RPCS[name].output_type, path), path


def _ends_in_text(message: Any, path: str) -> bool:
    *inner, last = path.split(".")
    for part in inner:
        message = message.fields_by_name[part].message_type
    field = message.fields_by_name[last]
    return bool(field.type == field.TYPE_STRING)


@pytest.mark.parametrize("name", sorted(MUTATING))
def test_no_rule_records_fields_that_may_be_secret(name: str) -> None:
    secret = {"data", "env", "password", "secret", "command", "args", "csr", "token", "ticket"}
    rule = MUTATING[name]
    for path in (*rule.asked, rule.name, rule.id):
        assert not secret & set(path.split(".")), path


def test_values_are_taken_along_a_path() -> None:
    request = control_pb2.CreateServiceRequest()
    assert value_at(request, "spec.name") == ""
    request.spec.name = "web"
    assert value_at(request, "spec.name") == "web"
    assert value_at(request, "spec.nothing") == ""
    assert value_at(request, "") == ""
    reply = images_pb2.RemoveImageReply(deleted=["a", "b"])
    assert value_at(reply, "deleted") == "a,b"
    request.spec.name = "x" * 10_000
    assert len(value_at(request, "spec.name")) == 256


def test_a_document_is_a_secret_or_a_config() -> None:
    rule: Rule = MUTATING["Documents.CreateDocument"]
    kinds = [rule.kind_of(documents_pb2.CreateDocumentRequest(kind=kind)) for kind in (0, 1, 9)]  # type: ignore[arg-type]
    assert kinds == ["secret", "config", "document"]
