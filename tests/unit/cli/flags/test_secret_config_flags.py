# SPDX-License-Identifier: Apache-2.0
"""`--secret` and `--config` are read as Docker reads them, and what a new version does."""

from __future__ import annotations

import re

import click
import pytest

from orchestrator.cli.flags.secret_config_flags import (
    edit_documents,
    parse_on_update,
    parse_reference,
    with_documents,
)
from orchestrator.model.documents import DocumentKind, FileReference, OnUpdate
from orchestrator.model.specs import ContainerSpec

SECRET, CONFIG = DocumentKind.SECRET, DocumentKind.CONFIG


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("db", FileReference(source="db")),
        ("source=db", FileReference(source="db")),
        ("src=db,target=/etc/pw", FileReference(source="db", target="/etc/pw")),
        (
            "source=db,target=pw,uid=1000,gid=7,mode=0400",
            FileReference(source="db", target="pw", uid=1000, gid=7, mode=0o400),
        ),
        ("source=db,mode=440", FileReference(source="db", mode=0o440)),
        ('source=db,"target=/a,b"', FileReference(source="db", target="/a,b")),
        ("source=db,on-update=none", FileReference(source="db", on_update=OnUpdate.NONE)),
        (
            "source=db,on-update=signal:SIGUSR1",
            FileReference(source="db", on_update=OnUpdate.SIGNAL, signal="SIGUSR1"),
        ),
    ],
)
def test_references(text: str, reference: FileReference) -> None:
    assert parse_reference(SECRET, text) == reference


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("target=a", "config 'target=a' has no source; for example source=NAME"),
        ("source=db,size=1", "has the unknown key 'size'; known are source, src, target"),
        ("source=db,uid=web", "uid 'web' is not a number; names cannot be resolved here"),
        ("source=db,mode=0888", "mode '0888' is not an octal number, such as 0400"),
        ("source=db,on-update=hup", "on-update 'hup' is not one of roll, signal[:SIGHUP], none"),
        ("source=db,on-update=roll:HUP", "is not one of roll"),
        ("source=db,on-update=signal:", "is not one of roll"),
        ("a,b", "has the unknown key 'a'"),
        ("", "has no source"),
    ],
)
def test_invalid_references(text: str, words: str) -> None:
    with pytest.raises(click.BadParameter, match=re.escape(words)):
        parse_reference(CONFIG, text)


def test_effects_of_a_new_version() -> None:
    assert parse_on_update("roll") == (OnUpdate.ROLL, "")
    assert parse_on_update("signal") == (OnUpdate.SIGNAL, "")
    assert parse_on_update("signal:HUP") == (OnUpdate.SIGNAL, "HUP")


def test_of_a_new_container() -> None:
    spec = with_documents(ContainerSpec(), {"secrets": ("a", "b"), "configs": ("c",)})
    assert [each.source for each in spec.secrets] == ["a", "b"]
    assert [each.source for each in spec.configs] == ["c"]


def test_of_an_update() -> None:
    spec = ContainerSpec(
        secrets=(FileReference(source="a"), FileReference(source="b", target="pw")),
        configs=(FileReference(source="c"),),
    )
    edited = edit_documents(
        spec,
        {"secret_add": ("source=d,target=pw", "e"), "secret_rm": ("a",), "config_rm": ("nope",)},
    )
    assert [(each.source, each.target) for each in edited.secrets] == [("d", "pw"), ("e", "")]
    assert edited.configs == spec.configs
