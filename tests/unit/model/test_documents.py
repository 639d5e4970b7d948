# SPDX-License-Identifier: Apache-2.0
"""Secrets and configs: where a reference puts a file, what is refused, and templates."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.model.documents import (
    DocumentKind,
    FileReference,
    OnUpdate,
    check_data,
    check_document_name,
    check_references,
)
from orchestrator.model.formats.document_templates import Filling, check_template, fill
from orchestrator.model.formats.task_templates import Facts
from orchestrator.model.specs import ContainerSpec

SECRET, CONFIG = DocumentKind.SECRET, DocumentKind.CONFIG


def ref(source: str = "db", **fields: object) -> FileReference:
    return replace(FileReference(source=source), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "reference", "path"),
    [
        (SECRET, ref(), "/run/secrets/db"),
        (SECRET, ref(target="pw"), "/run/secrets/pw"),
        (SECRET, ref(target="a/b"), "/run/secrets/a/b"),
        (SECRET, ref(target="/etc/pw"), "/etc/pw"),
        (SECRET, ref(target="../x"), "/run/x"),
        (CONFIG, ref(), "/db"),
        (CONFIG, ref(target="etc/x"), "/etc/x"),
        (CONFIG, ref(target="/etc//x/"), "/etc/x"),
    ],
)
def test_where_a_file_is(kind: DocumentKind, reference: FileReference, path: str) -> None:
    assert reference.path(kind) == path


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (ContainerSpec(secrets=(ref(""),)), "secret has no name"),
        (ContainerSpec(secrets=(ref("a b"),)), "'a b' is not valid"),
        (ContainerSpec(configs=(ref("-a"),)), "config name '-a' is not valid"),
        (ContainerSpec(configs=(ref("a" * 65),)), "at most 64"),
        (ContainerSpec(secrets=(ref(target="/"),)), "which is no file's path"),
        (ContainerSpec(secrets=(ref(target="/a\0"),)), "which is no file's path"),
        (ContainerSpec(secrets=(ref(), ref("b", target="db"))), "and secret 'db' have the target"),
        (ContainerSpec(secrets=(ref(),), configs=(ref(target="/run/secrets/db"),)), "each path"),
        (ContainerSpec(secrets=(ref(target="/mounted"),)), "and a mount have the target"),
        (ContainerSpec(secrets=(ref(uid=-1),)), "uid -1, which is no id"),
        (ContainerSpec(secrets=(ref(gid=1 << 31),)), "which is no id"),
        (ContainerSpec(secrets=(ref(mode=0o1777),)), "mode 1777"),
        (ContainerSpec(secrets=(ref(signal="HUP"),)), "is not updated by one"),
        (ContainerSpec(secrets=(ref(on_update=OnUpdate.SIGNAL, signal="FOO"),)), "FOO"),
        (
            ContainerSpec(secrets=(ref(), ref(target="b", on_update=OnUpdate.NONE))),
            "with different on-update",
        ),
    ],
)
def test_references_that_cannot_be(spec: ContainerSpec, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        check_references(spec, ["/mounted/"])


def test_references_that_can_be() -> None:
    hup = ref(on_update=OnUpdate.SIGNAL)
    check_references(
        ContainerSpec(
            secrets=(ref(), ref(target="/etc/b", mode=0o400, uid=7)),
            configs=(ref(), replace(hup, source="c"), replace(hup, source="c", target="/d")),
        )
    )
    assert hup.signal_number == 1
    assert ref(on_update=OnUpdate.SIGNAL, signal="USR1").signal_number == 10
    assert ref().signal_number == 0


@pytest.mark.parametrize("kind", list(DocumentKind))
def test_how_much_data_there_may_be(kind: DocumentKind) -> None:
    check_data(kind, "db", b"x" * kind.limit)
    with pytest.raises(ValueError, match=r"KiB are the most"):
        check_data(kind, "db", b"x" * (kind.limit + 1))
    with pytest.raises(ValueError, match="would be empty"):
        check_data(kind, "db", b"")
    with pytest.raises(ValueError, match="'jinja' is unknown"):
        check_data(kind, "db", b"x", "jinja")


@given(st.text(max_size=70))
def test_accepted_document_name_is_a_file_name(name: str) -> None:
    try:
        check_document_name(SECRET, name)
    except ValueError:
        return
    assert "/" not in name
    assert ref(name).path(SECRET) == f"/run/secrets/{name}"


FILLING = Filling(
    Facts(
        {"Service.Name": "web", "Task.Slot": "2"},
        {"Service.Labels": {"a": "1", "b.c": "2"}, "Node.Labels": {"zone": "z"}},
    ),
    env=lambda name: {"X": "y"}.get(name, ""),
    data=lambda kind, target: f"{kind.word}:{target}".encode(),
)


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        (b"plain \xff\x00", b"plain \xff\x00"),
        (b"{{.Service.Name}}/{{ .Node.Labels.zone }}", b"web/z"),
        (b'{{if eq .Task.Slot "2"}}two{{else}}other{{end}}', b"two"),
        (b'{{with env "X"}}[{{.}}]{{end}}{{with env "Y"}}!{{else}}-{{end}}', b"[y]-"),
        (b"{{range $k, $v := .Service.Labels}}{{$k}}={{$v}};{{end}}", b"a=1;b.c=2;"),
        (b'{{index .Service.Labels "b.c"}}{{.Service.Labels.b.c}}', b"22"),
        (b'{{printf "%s-%05s" .Service.Name .Task.Slot | upper}}', b"WEB-    2"),
        (b'{{$x := secret "db"}}{{if and (ne $x "") (not false)}}{{len $x}}{{end}}', b"9"),
        (b"a {{- /* a comment */ -}} b{{- ` c` }}", b"ab c"),
        (b'{{"{{"}} text }}', b"{{ text }}"),
        (b'{{env "X"}}{{env "Y"}}', b"y"),
        (b'{{secret "db"}} {{ config "a.b" }}', b"secret:db config:a.b"),
        (b"{ {not} }", b"{ {not} }"),
    ],
)
def test_templates(text: bytes, filled: bytes) -> None:
    check_template(CONFIG, "a", text)
    assert fill(text, FILLING) == filled


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"x\n{{if .Service.Name}}", "the template has a {{if}} without its {{end}}"),
        (b"\n{{.Service.Nam}}", "template {{.Service.Nam}} is not known; known are"),
        (b"\n{{secret db}}", "the template cannot be read at 'db'"),
        (b"\n{{if false}}{{.Task.Slt}}{{end}}", "template {{.Task.Slt}} is not known"),
        (
            b'\n{{template "x"}}',
            "the template has 'template' of Go's, which is not known; known are",
        ),
        (b"\n{{ x", "the template has a {{ without its }}"),
        (b"\n{{", "the template has a {{ without its }}"),
        (b"\n{{end}}", "the template has a {{end}} with nothing to end"),
        (b'\n{{printf "%9999s" .Task.Slot}}', "the template prints with a width over 999"),
        (b"\n" + b"{{(" * 1 + b"(" * 5000, "without its }}"),
        (b"\n{{" + b"(" * 5000 + b"}}", "the template is nested too deeply"),
    ],
)
def test_template_with_unknown_fields(text: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=f"config 'a', line [012]: .*{re.escape(words)}"):
        check_template(CONFIG, "a", text)


def test_the_words_about_a_secret_have_nothing_of_it() -> None:
    with pytest.raises(ValueError, match="secret 'a', line 2: this action is not known") as caught:
        check_template(SECRET, "a", b"\n{{hunter2}}")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ValueError, match="line 1 cannot be evaluated"):
        fill(b'{{range secret "db"}}{{end}}', FILLING)


@pytest.mark.parametrize("body", [b"x" * 5000, b"x", b""], ids=["memory", "time", "no text"])
def test_a_template_cannot_take_memory_or_time_without_end(body: bytes) -> None:
    labels = {str(number): "x" for number in range(300)}
    filling = replace(FILLING, facts=Facts({}, {"Service.Labels": labels}))
    loops = b"{{range $.Service.Labels}}" * 4 + body + b"{{end}}" * 4
    with pytest.raises(ValueError, match="cannot be evaluated"):
        fill(loops, filling)
