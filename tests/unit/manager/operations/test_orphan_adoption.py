# SPDX-License-Identifier: Apache-2.0
"""How an orphan becomes a task, and which are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from builders import World, node, service, task, task_spec

from orchestrator.manager.errors import RequestError
from orchestrator.manager.operations.workloads.orphans import Adoption, adoption
from orchestrator.manager.planning.task_filling import filled_in
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.administration.orphans import Orphan
from orchestrator.model.objects import Network, Object
from orchestrator.model.services import JobRun, JobStatus, Service
from orchestrator.model.specs import NetworkAttachment, ServiceMode
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task

NOW = 1000.0
WEB = service(replicas=2)


def orphan(found: Task, **fields: Any) -> Orphan:
    return Orphan(id=found.id, node_id=found.node_id, task=found, **fields)


def adopted(view: ClusterView, found: Orphan, **choice: Any) -> Adoption:
    return adoption(view, found, NOW, **{"standalone": False, "name": "", **choice})


def refused(view: ClusterView, found: Orphan, **choice: Any) -> str:
    with pytest.raises(RequestError) as refusal:
        adopted(view, found, **choice)
    return str(refusal.value)


def view(*objects: Object) -> ClusterView:
    return ClusterView.of([node("n1"), node("n2"), *objects])


def test_a_replica_beyond_those_of_the_backup_is_one_more() -> None:
    first, second = (task(f"t{n}", slot=n, node_id="n1", of=WEB) for n in (1, 2))
    third = orphan(task("t3", slot=3, node_id="n2", of=WEB))
    before = view(WEB, first, second, third)
    world = World(*before.evolve(adopted(before, third).changes).objects())
    assert world.view.services[WEB.id].spec.replicas == 3
    assert not world.view.orphans
    world.settle()
    # The planner leaves all as it is.
    assert {id: each.desired_state for id, each in world.view.tasks.items()} == dict.fromkeys(
        ("t1", "t2", "t3"), TaskState.RUNNING
    )
    assert world.view.tasks["t3"].node_id == "n2"


def test_only_what_is_adopted_is_added() -> None:
    """No other replica is started, whatever number a node reports: slots may have gaps."""
    first, second = (task(f"t{n}", slot=n, node_id="n1", of=WEB) for n in (1, 2))
    ninth = orphan(task("t9", slot=9, node_id="n2", of=WEB))
    before = view(WEB, first, second, ninth)
    world = World(*before.evolve(adopted(before, ninth).changes).objects())
    world.settle()
    assert world.view.services[WEB.id].spec.replicas == 3
    assert sorted(each.slot for each in world.view.tasks.values()) == [1, 2, 9]
    beyond = orphan(task("t9", slot=1 << 30, node_id="n2", of=WEB))
    assert "has no replicas" in refused(view(WEB, beyond), beyond)


def test_an_orphan_takes_its_slot_from_the_task_that_was_started_since() -> None:
    lost = task("t1", TaskState.FAILED, slot=1, node_id="n1", of=WEB, created_at=1.0)
    started = task("t2", slot=1, node_id="n2", of=WEB, created_at=900.0)
    pending = task("t4", TaskState.PENDING, slot=1, of=WEB, created_at=901.0)
    other = task("t3", slot=2, node_id="n1", of=WEB)
    found = orphan(task("t0", slot=1, node_id="n1", of=WEB, created_at=500.0))
    before = view(WEB, lost, started, pending, other, found)
    after = before.evolve(adopted(before, found).changes)
    assert after.services[WEB.id].spec.replicas == 2
    assert after.tasks["t2"].desired_state is TaskState.SHUTDOWN
    assert after.tasks["t4"].status.state is TaskState.SHUTDOWN
    assert after.tasks["t3"] == other
    assert after.tasks["t0"].created_at > 901.0, "it is the newest of its slot"


def test_an_orphan_of_a_global_service_takes_the_slot_of_its_node() -> None:
    everywhere = service("logs", mode=ServiceMode.GLOBAL)
    first = task("t1", slot=1, node_id="n1", of=everywhere)
    started = task("t2", slot=2, node_id="n2", of=everywhere, created_at=900.0)
    found = orphan(task("t3", slot=1, node_id="n2", of=everywhere, created_at=500.0))
    before = view(everywhere, first, started, found)
    world = World(*before.evolve(adopted(before, found).changes).objects())
    assert world.view.tasks["t3"].slot == 2, "another node's task has its number"
    world.settle()
    desired = {id: each.desired_state for id, each in world.view.tasks.items()}
    assert desired == {
        "t1": TaskState.RUNNING,
        "t2": TaskState.SHUTDOWN,
        "t3": TaskState.RUNNING,
    }


def test_an_orphan_of_a_global_service_is_the_first_task_on_its_node() -> None:
    everywhere = service("logs", mode=ServiceMode.GLOBAL)
    first = task("t1", slot=1, node_id="n1", of=everywhere)
    third = orphan(task("t3", slot=3, node_id="n2", of=everywhere))
    assert adopted(view(everywhere, first, third), third).task.slot == 3
    same = orphan(task("t3", slot=1, node_id="n2", of=everywhere))
    assert adopted(view(everywhere, first, same), same).task.slot == 2


def test_a_global_service_does_not_get_an_orphan_on_a_node_that_it_excludes() -> None:
    elsewhere = service("logs", mode=ServiceMode.GLOBAL, constraints=["node.hostname==host-n1"])
    found = orphan(task("t1", node_id="n2", of=elsewhere))
    assert "may not run on host-n2" in refused(view(elsewhere, found), found)


def job(**fields: Any) -> Service:
    run = JobRun(number=2, started_at=900.0, since=900.0, **fields)
    return service("job", replicas=3, mode=ServiceMode.REPLICATED_JOB, job=JobStatus(runs=(run,)))


def test_an_orphan_of_a_job_works_on_its_index_in_its_run() -> None:
    work = job(completed="1")
    started = task("t2", slot=2, node_id="n1", of=work, job_run=2, created_at=900.0)
    former = task("t9", TaskState.COMPLETE, slot=2, node_id="n1", of=work, job_run=1)
    ordered = task("t1", slot=2, node_id="n2", of=work, job_run=2, created_at=500.0)
    found = orphan(filled_in(view(work), ordered))  # its node has the variables of a job
    before = view(work, started, former, found)
    world = World(*before.evolve(adopted(before, found).changes).objects())
    world.settle()
    assert world.view.tasks["t2"].desired_state is TaskState.SHUTDOWN
    kept = world.view.tasks["t1"]
    assert (kept.slot, kept.job_run, kept.desired_state) == (2, 2, TaskState.RUNNING)
    of_index = [each for each in world.view.tasks.values() if (each.job_run, each.slot) == (2, 2)]
    assert {each.id for each in of_index} == {"t1", "t2"}, "the index is not started again"


def test_an_orphan_of_a_job_is_refused_once_its_work_is_done() -> None:
    work = job(completed="2")
    done = orphan(task("t1", slot=2, node_id="n2", of=work, job_run=2))
    assert "has already completed what orphan 'job.2' works on" in refused(view(work, done), done)
    earlier = orphan(task("t1", slot=3, node_id="n2", of=work, job_run=1))
    assert "has no run 1 in progress" in refused(view(work, earlier), earlier)
    beyond = orphan(task("t1", slot=4, node_id="n2", of=work, job_run=2))
    assert "has no replicas" in refused(view(work, beyond), beyond)


def test_the_service_may_have_been_created_anew() -> None:
    again = replace(WEB, id="another-id")
    found = orphan(task("t1", node_id="n1", of=WEB))
    task_ = adopted(view(again, found), found).task
    assert (task_.service_id, task_.name) == ("another-id", "web.1")


@pytest.mark.parametrize(
    ("present", "said"),
    [
        (service(spec=task_spec(image="web:2")), "another spec, image or secret"),
        (service(image_digest="sha256:2"), "another spec, image or secret"),
        (service(mode=ServiceMode.REPLICATED_JOB), "has no run 0 in progress"),
    ],
)
def test_a_service_that_would_replace_it_does_not_get_it(present: Any, said: str) -> None:
    found = orphan(task("t1", node_id="n1", of=WEB))
    reason = refused(view(present, found), found)
    assert said in reason
    assert "--standalone" in reason
    alone = adopted(view(present, found), found, standalone=True).task
    assert (alone.service_id, alone.name, alone.spec) == ("", "web.1", found.task.spec)


def test_without_a_service_it_is_a_standalone_container() -> None:
    found = orphan(task("t1", node_id="n1", of=WEB))
    alone = adopted(view(found), found, name="shell").task
    assert (alone.name, alone.standalone, alone.node_id) == ("shell", True, "n1")
    assert alone.run == alone.status.run, "it is not restarted"
    assert "not valid" in refused(view(found), found, name="/")


def test_what_cannot_go_on_is_refused() -> None:
    ended = orphan(task("t1", TaskState.FAILED, node_id="n1", of=WEB))
    assert "has ended" in refused(view(WEB, ended), ended)
    leaving = orphan(task("t1", node_id="n1", of=WEB), removing=True)
    assert "is being removed" in refused(view(WEB, leaving), leaving)
    named = orphan(task("t1", node_id="n1", of=WEB))
    assert "--standalone, too" in refused(view(WEB, named), named, name="x")


def test_addresses_of_a_network_that_was_created_anew_are_refused() -> None:
    spec = task_spec(networks=(NetworkAttachment(network="back"),))
    web = service(spec=spec)
    made = task("t1", node_id="n1", of=web)
    found = orphan(replace(made, status=replace(made.status, addresses={"back": "10.5.1.7"})))
    back = Network(id="b", name="back", subnet="10.5.0.0/16", slices={"n1": "10.5.1.0/24"})
    assert adopted(view(web, back, found), found).task.status.addresses == {"back": "10.5.1.7"}
    anew = replace(back, slices={"n1": "10.5.2.0/24"})
    assert "were created anew" in refused(view(web, anew, found), found)
