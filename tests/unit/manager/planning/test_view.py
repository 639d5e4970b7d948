# SPDX-License-Identifier: Apache-2.0
"""An evolved view equals a view made from scratch."""

from __future__ import annotations

from dataclasses import fields, replace

from builders import node, service, task
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.objects import Cluster, Image, Network, Object
from orchestrator.model.states import TaskState

_ids = st.sampled_from("abc")
_objects: st.SearchStrategy[Object] = st.one_of(
    st.builds(
        lambda id, state, home, name: task(id, state, node_id=home, of=service(name)),
        st.sampled_from(["t1", "t2", "t3", "t4"]),
        st.sampled_from([TaskState.PENDING, TaskState.ASSIGNED, TaskState.FAILED]),
        st.sampled_from(["", "a", "b"]),
        _ids,
    ),
    st.builds(lambda id: node(f"n-{id}"), _ids),
    st.builds(lambda id, name: replace(service(name), id=f"s-{id}"), _ids, _ids),
    st.builds(lambda id, name: Network(id=f"net-{id}", name=name), _ids, _ids),
    st.builds(
        lambda id, names: Image(id=f"i-{id}", names=tuple(sorted(names))), _ids, st.sets(_ids)
    ),
    st.builds(lambda id: Cluster(id=id), st.just("cluster")),
)


@given(st.lists(st.lists(st.tuples(_objects, st.booleans()), max_size=5), max_size=8))
def test_evolved_view_equals_a_new_one(batches: list[list[tuple[Object, bool]]]) -> None:
    view, stored = ClusterView(), dict[str, Object]()
    for batch in batches:
        before = {field.name: getattr(view, field.name) for field in fields(view)}
        frozen = ClusterView.of(view.objects())
        changes = []
        for item, gone in batch:
            if gone and item.id not in stored:
                continue
            old = stored.pop(item.id, None)
            changes.append(Change(old, None if gone else item))
            if not gone:
                stored[item.id] = item
        after = view.evolve(changes)
        assert after == ClusterView.of(stored.values())
        assert before == {field.name: getattr(view, field.name) for field in fields(view)}
        assert view == frozen, "the view that was evolved has changed"
        view = after


def test_look_ups() -> None:
    web, old = service("web"), replace(service("web"), id="old", removed=True)
    one = task("t1", node_id="a", of=web)
    two = task("t2", TaskState.PENDING, of=web)
    view = ClusterView.of([web, old, one, two, Network(id="n", name="back")])
    assert view.service_by_name("web") is web
    assert view.service_by_name("wbe") is None
    assert view.tasks_of_service(web.id) == {"t1": one, "t2": two}
    assert view.tasks_of_node("a") == {"t1": one}
    assert view.tasks_of_node("b") == {}
    assert view.pending == {"t2": two}
    found = view.network_by_name("back")
    assert found is not None
    assert found.id == "n"
    assert view.network_by_name("front") is None


def test_a_name_that_moves_to_a_newer_image() -> None:
    first = Image(id="i1", names=("web:1",), created_at=1.0)
    second = Image(id="i2", names=("web:1", "web:2"), created_at=2.0)
    view = ClusterView.of([second, first])
    assert view.image_by_name("web:1") is second
    view = view.evolve([Change(second, None)])
    assert view.image_by_name("web:1") is first
    assert view.image_by_name("web:2") is None
