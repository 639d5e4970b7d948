# SPDX-License-Identifier: Apache-2.0
"""Dataclasses and messages: exact round trips, the same fields, clear errors, speed."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.model import (
    dependencies,
    documents,
    hooks,
    jobs,
    mounts,
    nodes,
    objects,
    placement,
    services,
    specs,
    tasks,
)
from orchestrator.model.administration import access, backups, managers, orphans
from orchestrator.model.convert import (
    ConvertError,
    UnknownEnumNumber,
    decode,
    encode,
    from_proto,
    to_proto,
)
from orchestrator.model.extensible import known_fields
from orchestrator.model.nodes import Node
from orchestrator.model.objects import Image
from orchestrator.model.scheduling import affinities, autoscaling, disruptions, queues
from orchestrator.model.services import Service
from orchestrator.model.specs import (
    ContainerSpec,
    PortSpec,
    ServiceSpec,
    TaskSpec,
)
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task, TaskStatus
from orchestrator.pb import types_pb2

MODULES = (affinities, dependencies, hooks, jobs, mounts, placement, specs, documents)
MODULES += (
    autoscaling,
    queues,
    disruptions,
    nodes,
    placement,
    services,
    tasks,
    objects,
    access,
    managers,
    backups,
    orphans,
)
CLASSES = [
    value
    for module in MODULES
    for _, value in inspect.getmembers(module, dataclasses.is_dataclass)
    if value.__module__ == module.__name__
]
STORED = [cls for cls in CLASSES if "revision" in {f.name for f in dataclasses.fields(cls)}]
INT32 = {"published", "target", "max_attempts", "parallelism", "blob_port", "exit_code", "slot"}
INT32 |= {
    "metrics_port",
    "peer_port",
    "port",
    "attempt",
    "node_prefix",
    "tmpfs_mode",
    "run",
    "restarts",
    "retries",
    "canary",
    "weight",
    "drain_most",
}
INT32 |= {"job_run", "number", "skipped", "history", "keep", "kept"}

text = st.text(st.characters(codec="utf-8"), max_size=8)


def values_of(cls: Any) -> st.SearchStrategy[Any]:
    """Any object of a class of the model, made from its type hints."""
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{f.name: _value(f.name, hints[f.name]) for f in known_fields(cls)})


def _value(name: str, hint: Any) -> st.SearchStrategy[Any]:
    if typing.get_origin(hint) is tuple:
        most = 1 if name == "history" else 3  # each is as large as all the rest
        return st.lists(_value(name, typing.get_args(hint)[0]), max_size=most).map(tuple)
    if typing.get_origin(hint) is dict:
        return st.dictionaries(text, _value(name, typing.get_args(hint)[1]), max_size=3)
    if dataclasses.is_dataclass(hint):
        return values_of(hint)
    if issubclass(hint, IntEnum):
        return st.sampled_from(list(hint))
    if hint is bool:
        return st.booleans()
    if hint is int:
        bits = 31 if name in INT32 else 63
        return st.integers(-(2**bits), 2**bits - 1)
    if hint is float:
        return st.floats(allow_nan=False)
    assert hint is str
    return text


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_fields_are_those_of_the_message(cls: Any) -> None:
    message = getattr(types_pb2, cls.__name__).DESCRIPTOR
    assert [f.name for f in known_fields(cls)] == [f.name for f in message.fields], (
        f"{cls.__module__}.{cls.__name__} and proto/orchestrator/v1/types.proto must have the same "
        "fields in the same order"
    )


def test_every_message_has_a_class() -> None:
    names = {cls.__name__ for cls in CLASSES}
    assert set(types_pb2.DESCRIPTOR.message_types_by_name) == names


@pytest.mark.parametrize("name", list(types_pb2.DESCRIPTOR.enum_types_by_name))
def test_enum_numbers_are_the_same(name: str) -> None:
    proto = types_pb2.DESCRIPTOR.enum_types_by_name[name]
    python: Any = next(found for module in MODULES if (found := getattr(module, name, None)))
    assert {value.number for value in proto.values} == {int(member) for member in python}
    for value in proto.values:
        assert value.name.endswith("_" + python(value.number).name)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_round_trip(cls: Any) -> None:
    @settings(max_examples=25, suppress_health_check=list(HealthCheck))
    @given(values_of(cls))
    def check(obj: Any) -> None:
        assert from_proto(to_proto(obj)) == obj

    check()


@pytest.mark.parametrize("cls", STORED, ids=lambda cls: cls.__name__)
def test_store_gives_the_revision(cls: Any) -> None:
    obj = cls(id="a", revision=7)
    assert to_proto(obj).revision == 7
    assert decode(cls, encode(obj)).revision == 0
    assert decode(cls, encode(obj), revision=9) == dataclasses.replace(obj, revision=9)


def test_absent_message_reads_as_the_default() -> None:
    assert from_proto(types_pb2.TaskSpec()) == TaskSpec()
    assert from_proto(types_pb2.TaskSpec()).restart.delay == 5.0


def test_empty_message_reads_as_zeros() -> None:
    message = types_pb2.TaskSpec()
    message.restart.SetInParent()
    assert from_proto(message).restart.delay == 0.0


def test_bytes_do_not_depend_on_the_order_of_maps() -> None:
    one = Node(labels={str(n): "x" for n in range(20)})
    two = Node(labels={str(n): "x" for n in reversed(range(20))})
    assert encode(one) == encode(two)


@pytest.mark.parametrize("cls", STORED, ids=lambda cls: cls.__name__)
def test_fields_of_a_newer_version_survive_a_change(cls: Any) -> None:
    @settings(max_examples=25, suppress_health_check=list(HealthCheck))
    @given(values_of(cls), st.data())
    def check(obj: Any, data: st.DataObject) -> None:
        message = to_proto(dataclasses.replace(obj, revision=0))
        numbers = iter(range(1, 1 << 20))
        for part in messages_in(message):
            if data.draw(st.booleans()):
                part.MergeFromString(unknown_field(next(numbers), data.draw(st.binary())))
        changed = dataclasses.replace(decode(cls, message.SerializeToString(), 3), id="other")
        message.id = "other"
        assert encode(changed) == message.SerializeToString(deterministic=True)
        assert encode(dataclasses.replace(from_proto(message), id="other")) == encode(changed)

    check()


def messages_in(message: Any) -> Iterator[Any]:
    """A message and all that are in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for part in value if isinstance(value, Sequence) else [value]:
            yield from messages_in(part)


def unknown_field(number: int, value: bytes) -> bytes:
    """`value` in a field that no message has, as a varint or as bytes."""
    tag = 100_000 + number
    if len(value) % 2:
        return _varint(tag << 3) + _varint(number)
    return _varint(tag << 3 | 2) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    found = b""
    while number > 0x7F:
        found += bytes([number & 0x7F | 0x80])
        number >>= 7
    return found + bytes([number])


def test_unknown_fields_count_when_objects_are_compared() -> None:
    plain = encode(Node(id="a"))
    assert decode(Node, plain + unknown_field(1, b"")) != decode(Node, plain)
    assert decode(Node, plain + unknown_field(1, b"")) == decode(
        Node, plain + unknown_field(1, b"")
    )


def test_unknown_enum_number() -> None:
    message = types_pb2.TaskStatus(state=513)  # type: ignore[arg-type]
    with pytest.raises(UnknownEnumNumber, match=r"TaskStatus.state is 513, which is no TaskState"):
        from_proto(message, strict=True)
    with pytest.raises(UnknownEnumNumber):
        decode(TaskStatus, message.SerializeToString())


def test_unknown_enum_number_is_kept() -> None:
    message = types_pb2.Task(id="a", status=types_pb2.TaskStatus(state=513))  # type: ignore[arg-type]
    for task in (
        from_proto(message),
        decode(Task, message.SerializeToString(), strict=False),
    ):
        assert task.status.state not in list(TaskState)
        assert task.status.state.name == "UNRECOGNIZED_513"
        written = encode(dataclasses.replace(task, id="b"))
        assert types_pb2.Task.FromString(written).status.state == 513


def test_value_out_of_range() -> None:
    with pytest.raises(ConvertError, match="cannot write a PortSpec"):
        to_proto(PortSpec(published=1 << 40))
    with pytest.raises(ConvertError, match="cannot write a ContainerSpec"):
        to_proto(ContainerSpec(image="\udcff"))


def test_broken_bytes() -> None:
    with pytest.raises(ConvertError, match="not a Service"):
        decode(Service, b"\xff\xff\xff")


def test_foreign_classes() -> None:
    with pytest.raises(TypeError):
        to_proto("x")
    with pytest.raises(TypeError, match="a TaskSpec has no revision"):
        decode(TaskSpec, b"", revision=1)


def test_image_keeps_order_of_layers() -> None:
    image = Image(id="sha256:a", names=("b:1", "a:1"), layers=("z", "a"))
    assert decode(Image, encode(image)) == image


def test_specs_are_hidden_in_services_and_tasks() -> None:
    spec = ServiceSpec(name="web", task=TaskSpec(ports=(PortSpec(1, 2), PortSpec(3, 4))))
    assert from_proto(to_proto(Service(spec=spec))).spec == spec


def test_tasks_of_a_service_share_their_spec() -> None:
    spec = TaskSpec(container=ContainerSpec(image="web:1", labels={"a": "b"}))
    one, two = (decode(Task, encode(Task(id=id, spec=spec))) for id in "ab")
    assert one.spec == spec
    assert one.spec is two.spec
    other = decode(Task, encode(Task(spec=dataclasses.replace(spec, force=1))))
    assert other.spec != spec
