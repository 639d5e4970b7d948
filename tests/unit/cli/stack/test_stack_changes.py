# SPDX-License-Identifier: Apache-2.0
"""What a deployment does, from what a stack is to be and what there is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.cli.stack.stack_changes import (
    Change,
    Conflict,
    Observed,
    changes,
    check_external,
    removals,
)
from orchestrator.compose.stack import (
    Stack,
    StackFile,
    StackNetwork,
    StackService,
    StackVolume,
)
from orchestrator.compose.tree import Place
from orchestrator.model.dependencies import Dependency
from orchestrator.model.documents import Document, DocumentKind, FileReference
from orchestrator.model.formats.spec_diff import differences
from orchestrator.model.objects import Network, Volume
from orchestrator.model.services import Service
from orchestrator.model.specs import (
    STACK_LABEL,
    ContainerSpec,
    NetworkAttachment,
    PortSpec,
    PublishMode,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
)

PLACE = Place("compose.yaml", 1)
MINE = {STACK_LABEL: "s"}


def spec(name: str, *needs: str, image: str = "a:1") -> ServiceSpec:
    return ServiceSpec(
        name=f"s_{name}",
        labels=MINE,
        task=TaskSpec(
            container=ContainerSpec(image=image), networks=(NetworkAttachment("s_default"),)
        ),
        depends_on=tuple(Dependency(f"s_{each}") for each in needs),
    )


def stack(*specs: ServiceSpec, volumes: tuple[StackVolume, ...] = ()) -> Stack:
    services = tuple(StackService(each.name, each, PLACE) for each in specs)
    network = StackNetwork("s_default", PLACE, labels=MINE)
    return Stack("s", services, (network,), volumes, ())


def there(*specs: ServiceSpec, **images: str) -> Observed:
    services = {
        each.name: Service(id=each.name, spec=each, image_digest="sha256:1") for each in specs
    }
    network = Network(id="n", name="s_default", driver="overlay", labels=MINE)
    return Observed(services, {"s_default": network}, {}, {"a:1": images.get("a", "sha256:1")})


def steps(wanted: Stack, found: Observed, *, prune: bool = False) -> list[tuple[str, ...]]:
    return [
        (each.action, each.name, *each.keys)
        for each in changes(wanted, found, prune=prune, resolve=True)
    ]


def test_order_of_creation() -> None:
    volume = StackVolume("s_data", PLACE)
    wanted = stack(spec("db"), spec("web", "db"), volumes=(volume,))
    assert steps(wanted, Observed()) == [
        ("create", "s_default"),
        ("create", "s_data"),
        ("create", "s_db"),
        ("create", "s_web"),
    ]


def test_unchanged_objects_are_not_touched() -> None:
    db, web = spec("db"), spec("web", "db")
    assert steps(stack(db, web), there(db, web)) == []
    # A forced restart is counted in the spec, and no difference.
    forced = replace(web, task=replace(web.task, force=3))
    assert steps(stack(db, web), there(db, forced)) == []


def test_a_change_names_its_keys() -> None:
    web = spec("web")
    wanted = replace(web, replicas=3)
    assert steps(stack(wanted), there(web)) == [("change", "s_web", "replicas")]
    container = replace(web.task.container, env=("A=1",), user="me")
    wanted = replace(web, task=replace(web.task, container=container))
    assert steps(stack(wanted), there(web)) == [("change", "s_web", "env", "user")]


def test_moved_image_tag_is_a_change() -> None:
    web = spec("web")
    assert steps(stack(web), there(web, a="sha256:2")) == [("change", "s_web", "image")]
    found = there(web, a="sha256:2")
    assert changes(stack(web), found, prune=False, resolve=False) == []
    built = changes(stack(web), found, prune=False, resolve=False, built=frozenset({"a:1"}))
    assert [each.keys for each in built] == [("image",)]


def test_ports_on_bridge_networks_are_host_ports() -> None:
    web = spec("web")
    on_bridge = replace(
        web,
        task=replace(web.task, ports=(PortSpec(80, 80),), networks=(NetworkAttachment("bridge"),)),
    )
    stored = replace(
        on_bridge,
        task=replace(on_bridge.task, ports=(PortSpec(80, 80, mode=PublishMode.HOST),)),
    )
    found = there(stored)
    bridge = Network(id="b", name="bridge", driver="bridge")
    found = replace(found, networks={**found.networks, "bridge": bridge})
    assert steps(stack(on_bridge), found) == []


def test_pruning_removes_services_before_their_ports_are_reused() -> None:
    found = there(spec("web"), spec("old"), spec("older", "old"))
    other = replace(spec("web"), name="other", labels={STACK_LABEL: "other"})
    services = {**found.services, "other": Service(id="o", spec=other)}
    old = Network(id="m", name="s_back", labels=MINE)
    found = replace(found, services=services, networks={**found.networks, "s_back": old})
    wanted = stack(spec("web"), spec("new"))
    assert steps(wanted, found) == [("create", "s_new")]
    assert steps(wanted, found, prune=True) == [
        ("remove", "s_older"),
        ("remove", "s_old"),
        ("create", "s_new"),
        ("remove", "s_back"),
    ]


def test_pruning_removes_former_dependencies_last() -> None:
    found = there(spec("old"), spec("web", "old"))
    assert steps(stack(spec("web")), found, prune=True) == [
        ("change", "s_web", "depends_on"),
        ("remove", "s_old"),
    ]


def test_new_data_of_a_secret_updates_its_users() -> None:
    secret = StackFile(DocumentKind.SECRET, "s_pw", PLACE, content=b"new", labels=MINE)
    web = spec("web")
    container = replace(web.task.container, secrets=(FileReference("s_pw", "pw"),))
    web = replace(web, task=replace(web.task, container=container))
    wanted = replace(stack(spec("db"), web), files=(secret,))
    found = there(spec("db"), web)
    assert steps(wanted, found) == [("create", "s_pw")]

    key = (DocumentKind.SECRET, "s_pw")
    known = Document(id="d", name="s_pw", labels=MINE)
    found = replace(found, documents={key: known})
    assert steps(wanted, found) == []
    assert steps(wanted, replace(found, outdated=frozenset({key}))) == [
        ("change", "s_pw", "data"),
        ("change", "s_web", "secret s_pw"),
    ]
    labelled = replace(secret, labels={**MINE, "a": "b"})
    assert steps(replace(wanted, files=(labelled,)), found) == [("change", "s_pw", "labels")]
    assert steps(replace(wanted, files=()), found, prune=True) == [("remove", "s_pw")]
    assert ("secret", "s_pw") in [(each.kind, each.name) for each in removals("s", found)]

    theirs = replace(found, documents={key: replace(known, labels={})})
    assert "secret 's_pw' exists already, and it is of no stack" in conflict(wanted, theirs)


def test_removal_order_of_a_stack() -> None:
    found = there(spec("db"), spec("cache"), spec("web", "db", "cache"))
    assert [(each.kind, each.name) for each in removals("s", found)] == [
        ("service", "s_web"),
        ("service", "s_cache"),
        ("service", "s_db"),
        ("network", "s_default"),
    ]
    assert removals("other", found) == []


def conflict(wanted: Stack, found: Observed) -> str:
    with pytest.raises(Conflict) as caught:
        changes(wanted, found, prune=False, resolve=True)
    return str(caught.value)


def test_objects_of_other_owners_are_conflicts() -> None:
    web = spec("web")
    theirs = replace(web, labels={STACK_LABEL: "t"})
    line = conflict(stack(web), there(theirs))
    assert "service 's_web' exists already, and it is of stack 't'" in line
    theirs = replace(web, labels={})
    assert "it is of no stack" in conflict(stack(web), there(theirs))
    found = there()
    network = replace(found.networks["s_default"], labels={STACK_LABEL: "t"})
    found = replace(found, networks={"s_default": network})
    assert "network 's_default' exists already, and it is of stack 't'" in conflict(
        stack(web), found
    )


def test_immutable_fields_are_conflicts() -> None:
    web = spec("web")
    assert "is replicated and is to be global" in conflict(
        stack(replace(web, mode=ServiceMode.GLOBAL)), there(web)
    )
    inner = replace(stack(web).networks[0], internal=True, subnets=("10.9.0.0/16",))
    wanted = replace(stack(web), networks=(inner,))
    assert "differs from the file in internal, subnet" in conflict(wanted, there(web))
    volume = StackVolume("s_data", PLACE, driver="nfs")
    found = replace(there(), volumes={"s_data": Volume(id="s_data", driver="local")})
    assert "'s_data' exists with another driver" in conflict(stack(web, volumes=(volume,)), found)


def test_missing_external_objects_are_conflicts() -> None:
    def missing(**parts: object) -> str:
        with pytest.raises(Conflict) as caught:
            check_external(replace(stack(spec("web")), **parts), there())  # type: ignore[arg-type]
        return str(caught.value)

    network = StackNetwork("s_defalt", PLACE, external=True)
    assert "does not exist; did you mean 's_default'?" in missing(networks=(network,))
    network = StackNetwork("host", PLACE, external=True)
    assert "write network_mode: host at the service" in missing(networks=(network,))
    config = StackFile(DocumentKind.CONFIG, "site", PLACE, external=True)
    assert "config 'site' is external and does not exist" in missing(files=(config,))
    volume = StackVolume("data", PLACE, external=True)
    assert "volume 'data' is external and does not exist" in missing(volumes=(volume,))


def test_differences_use_flag_like_paths() -> None:
    old = spec("web")
    new = replace(old, update=replace(old.update, delay=3.0), max_per_node=2)
    assert differences(old, new) == ["update.delay", "max_per_node"]
    assert str(Change("change", "service", "s_web", ("env",))) == "service s_web (env)"
