# SPDX-License-Identifier: Apache-2.0
"""Several files as one: merging, include, extends, profiles, env files, anchors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from composekit import FOLDER, Given, refusal, services
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.compose.project.rendering import escaped
from orchestrator.compose.project.yaml_tree import dump
from orchestrator.compose.tree import to_python


def two(first: str, second: str) -> dict[str, Any]:
    """The one service of two files."""
    files = {
        "compose.yaml": f"services: {{web: {{image: web, {first}}}}}",
        "over.yaml": f"services: {{web: {{{second}}}}}",
    }
    web: dict[str, Any] = services(files, named=2)["web"]
    return web


@pytest.mark.parametrize(
    ("first", "second", "key", "expected"),
    [
        ("user: a", "user: b", "user", "b"),
        ("command: [a, b]", "command: c", "command", ["c"]),
        ("command: a b", "", "command", ["a", "b"]),
        ("environment: {A: 1, B: 2}", "environment: [B=3]", "environment", {"A": "1", "B": "3"}),
        ("labels: [a=1]", "labels: {b: 2}", "labels", {"a": "1", "b": "2"}),
        ("annotations: [a=1]", "annotations: {b: 2}", "annotations", {"a": "1", "b": "2"}),
        ("dns: 1.1.1.1", "dns: [9.9.9.9]", "dns", ["1.1.1.1", "9.9.9.9"]),
        ("cap_add: [KILL]", "cap_add: [KILL, MKNOD]", "cap_add", ["KILL", "MKNOD"]),
        ("depends_on: [a]", "depends_on: {b: {condition: service_healthy}}", "depends_on",
         {"a": {"condition": "service_started", "required": True},
          "b": {"condition": "service_healthy", "required": True}}),
        ("networks: [a]", "networks: {a: {aliases: [x]}, b: }", "networks",
         {"a": {"aliases": ["x"]}, "b": {}}),
        ("deploy: {replicas: 2, labels: [a=1]}", "deploy: {replicas: 3}", "deploy",
         {"replicas": 3, "labels": {"a": "1"}}),
        ("healthcheck: {test: [CMD, a], retries: 2}", "healthcheck: {test: b}", "healthcheck",
         {"test": ["CMD-SHELL", "b"], "retries": 2}),
        ("user: a", "user: !reset null", "user", None),
        ("cap_add: [NET_ADMIN]", "cap_add: !override [SYS_TIME]", "cap_add", ["SYS_TIME"]),
        ("environment: {A: 1, B: 2}", "environment: {A: !reset null}", "environment", {"B": "2"}),
        ("environment: {A: 1}", "environment: !override {B: 2}", "environment", {"B": "2"}),
        ("tmpfs: /run", "tmpfs: [/run, /tmp]", "tmpfs", ["/run", "/tmp"]),
    ],
)  # fmt: skip
def test_later_file_overrides_an_earlier_one(
    first: str, second: str, key: str, expected: Any
) -> None:
    more = "services: {a: {image: a}, b: {image: b}}"
    files = {
        "compose.yaml": f"services: {{web: {{image: web, {first}}}}}",
        "over.yaml": f"services: {{web: {{{second}}}}}",
        "more.yaml": more,
    }
    assert services(files, named=3)["web"].get(key) == expected


def test_ports_and_volumes_merge_by_target() -> None:
    web = two(
        "ports: ['8080:80'], volumes: ['data:/data', './a:/a']",
        "ports: ['8080:80', '8443:443'], volumes: ['/b:/a:ro']",
    )
    assert [port["published"] for port in web["ports"]] == ["8080", "8443"]
    assert [(each["source"], each["target"]) for each in web["volumes"]] == [
        ("data", "/data"),
        ("/b", "/a"),
    ]
    assert web["volumes"][1]["read_only"] is True


def test_anchors_and_merge_keys() -> None:
    found = services("""
x-usual: &usual
  restart: always
  environment: &env {A: 1, B: 2}
services:
  one:
    <<: *usual
    image: one
    environment: {<<: *env, B: 3}
  two:
    <<: [{user: first}, {user: second}, *usual]
    image: two
""")
    assert found["one"]["environment"] == {"A": "1", "B": "3"}
    assert found["one"]["restart"] == "always"
    assert (found["two"]["user"], found["two"]["environment"]) == ("first", {"A": "1", "B": "2"})


def test_scalars_keep_their_text() -> None:
    (web,) = services("""
services:
  web:
    image: web
    environment: {A: yes, B: "1.10", C: "0x1F", D: 2024-01-01, E: 12:30, F: ~, G: "", H: null}
    labels: {on: off}
    user: "1000"
""").values()
    assert web["environment"] == {
        "A": "yes", "B": "1.10", "C": "0x1F", "D": "2024-01-01", "E": "12:30", "F": None, "G": "",
        "H": None,
    }  # fmt: skip
    assert web["labels"] == {"on": "off"}
    assert web["user"] == "1000"


def test_env_files_come_before_environment_and_own_values_fill_in() -> None:
    files = {
        "compose.yaml": """
services:
  web:
    image: web
    env_file: [a.env, {path: b.env, required: false}, {path: none.env, required: false}]
    environment: {C: own, D: , E: }
    label_file: labels
""",
        "a.env": "A=a\nB=a\nC=a",
        "b.env": "B=b$D",
        "labels": "x=1",
    }
    (web,) = services(files, {"D": "d"}).values()
    assert web["environment"] == {"A": "a", "B": "bd", "C": "own", "D": "d", "E": None}
    assert web["labels"] == {"x": "1"}
    assert "env_file" not in web


def test_extends_a_service_of_this_or_another_file() -> None:
    files = {
        "compose.yaml": """
services:
  base: {image: base, environment: {A: 1}, volumes: ["./x:/x"]}
  web:
    extends: base
    environment: {B: 2}
  api:
    extends: {service: worker, file: lib/common.yaml}
    command: run
""",
        "lib/common.yaml": """
services:
  root: {image: root, user: root, volumes: ["./y:/y"], command: sleep}
  worker:
    extends: root
    user: worker
""",
    }
    found = services(files)
    assert found["web"]["image"] == "base"
    assert found["web"]["environment"] == {"A": "1", "B": "2"}
    assert found["web"]["volumes"][0]["source"] == f"{FOLDER}/x"
    api = found["api"]
    assert (api["image"], api["user"], api["command"]) == ("root", "worker", ["run"])
    assert api["volumes"][0]["source"] == f"{FOLDER}/lib/y"


def test_include_adds_another_project() -> None:
    files = {
        "compose.yaml": """
include:
  - db/compose.yaml
  - path: [cache/a.yaml, cache/b.yaml]
    env_file: cache/values
services: {web: {image: web, depends_on: [db, cache]}}
""",
        "db/compose.yaml": """
services: {db: {image: "db:${V}", volumes: ["./d:/d", "data:/data"]}}
volumes: {data: }
""",
        "db/.env": "V=5",
        "cache/a.yaml": "services: {cache: {image: 'cache:${V}'}}",
        "cache/b.yaml": "services: {cache: {user: me}}",
        "cache/values": "V=7",
    }
    given = Given(files)
    found: Any = to_python(given.document)
    assert found["services"]["db"]["image"] == "db:5"
    assert found["services"]["db"]["volumes"][0]["source"] == f"{FOLDER}/db/d"
    assert found["services"]["cache"] == {"image": "cache:7", "user": "me"}
    assert list(found["volumes"]) == ["data"]


def test_services_of_inactive_profiles_are_left_out() -> None:
    text = """
services:
  web: {image: web, depends_on: {debug: {required: false, condition: service_started}}}
  debug: {image: debug, profiles: [debug, all]}
"""
    assert set(services(text)) == {"web"}
    assert services(text)["web"]["depends_on"] == {}
    assert set(services(text, profiles=frozenset({"all"}))) == {"web", "debug"}
    assert set(services(text, profiles=frozenset({"*"}))) == {"web", "debug"}
    needed = text.replace("required: false", "required: true")
    assert "is in profile debug, all; activate it with --profile" in refusal(needed)


def test_unset_variable_is_noted_once() -> None:
    given = Given("services: {web: {image: 'web:$TAG', user: '${TAG}'}}", {"TAG": "1"})
    assert given.notes == []
    given = Given("services: {web: {image: 'web:1$TAG', user: '1${TAG}'}}")
    assert given.notes == [
        f"{FOLDER}/compose.yaml:1: variable TAG is not set; using an empty string"
    ]


_TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12)
_BODY = st.fixed_dictionaries(
    {"image": st.just("web:1")},
    optional={
        "environment": st.dictionaries(st.from_regex("[A-Z]{1,3}", fullmatch=True), _TEXTS),
        "labels": st.dictionaries(st.from_regex("[a-z]{1,3}", fullmatch=True), _TEXTS),
        "command": st.lists(_TEXTS),
        "user": st.from_regex("[a-z0-9]{1,4}", fullmatch=True),
        "ports": st.lists(st.just("8080:80"), max_size=1),
        "deploy": st.fixed_dictionaries({"replicas": st.integers(0, 5)}),
    },
)


@given(_BODY)
def test_rendered_project_round_trips(body: dict[str, Any]) -> None:
    text = json.dumps({"services": {"web": body}}, ensure_ascii=False).replace("$", "$$")
    once = Given(text).document
    again = Given(dump(escaped(once))).document
    assert to_python(again) == to_python(once)


@given(_BODY, _BODY)
def test_copy_of_a_file_over_itself(first: dict[str, Any], second: dict[str, Any]) -> None:
    one, other = (
        json.dumps({"services": {"web": body}}, ensure_ascii=False).replace("$", "$$")
        for body in (first, second)
    )
    twice = Given({"a": one, "b": other}, named=2).document
    thrice = Given({"a": one, "b": other, "c": other}, named=3).document
    assert to_python(twice) == to_python(thrice)


def test_hooks_of_a_later_file_are_appended() -> None:
    hooks = "services:\n  web:\n    image: a\n    post_start: [{command: %s}]\n"
    files = {"compose.yaml": hooks % "one", "again.yaml": hooks % "one", "two.yaml": hooks % "two"}
    found = services(files, named=3)["web"]["post_start"]
    assert [hook["command"] for hook in found] == [["one"], ["one"], ["two"]]
