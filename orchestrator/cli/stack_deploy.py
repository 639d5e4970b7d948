"""`orc stack deploy` and `rm`: one step after the other, and what is left if one fails."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import click

from orchestrator.cli import completion
from orchestrator.cli.client import Client, Refused, pass_client
from orchestrator.cli.flag_types import DURATION
from orchestrator.cli.groups import CliError, NotConverged, example
from orchestrator.cli.service_change import CONFLICTS, monitor_option
from orchestrator.cli.service_removal import until_stopped
from orchestrator.cli.stack_calls import StackCalls, observed, with_outdated
from orchestrator.cli.stack_changes import (
    CHANGE,
    CREATE,
    Change,
    Conflict,
    Observed,
    changes,
    check_external,
    left,
    removals,
)
from orchestrator.cli.stack_files import checked_name, file_options, read_files
from orchestrator.cli.stack_rows import no_stack, stack_names
from orchestrator.compose.stack import Stack
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.dependencies import start_order
from orchestrator.model.mounts import LOCAL_DRIVER
from orchestrator.model.specs import ServiceSpec
from orchestrator.model.units import format_duration
from orchestrator.pb import control_pb2

_PARTICIPLES = {"create": "created", "change": "changed", "remove": "removed"}
CHECK_TIMEOUT = 120.0
"""Seconds: registries may be asked for images."""


@click.command(
    epilog=example(
        "orc stack deploy -c compose.yaml shop",
        "orc stack deploy -c compose.yaml -c production.yaml --prune shop",
        "orc stack deploy --set tag=2 charts/hello hello",
    )
)
@file_options
@click.option("--prune", is_flag=True, help="Remove what the files have no more; volumes stay.")
@click.option("--dry-run", is_flag=True, help="Only show the plan, as 'orc plan' does.")
@click.option("--detach", "-d", is_flag=True, help="Do not wait until it runs.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@click.option(
    "--timeout",
    type=DURATION,
    default="5m",
    show_default=True,
    help="How long to wait for all of it to run; then the exit status is 3.",
)
@monitor_option
@click.option(
    "--resolve-image",
    type=click.Choice(["always", "changed", "never"]),
    default="always",
    show_default=True,
    help="When to look up what an image's tag stands for; never: each node does it.",
)
@click.option(
    "--with-registry-auth",
    is_flag=True,
    help="Log the cluster in with what this user's Docker has for the images' registries.",
)
@click.argument(
    "names",
    metavar="[DIR] [NAME]",
    nargs=-1,
    shell_complete=completion.deployed,
)
@pass_client
def deploy(client: Client, names: tuple[str, ...], dry_run: bool, **values: Any) -> None:
    """Deploy a stack from compose files, or from a folder with one (a chart): make and change what
    differs, and wait until it runs. What is the same is not touched.

    The stack is called NAME or, where none is given, COMPOSE_PROJECT_NAME, the files' `name`, or
    their folder."""
    if dry_run and not client.pretends:
        from orchestrator.cli.plan import show_stack

        show_stack(client.context, lambda planning: _deploy(planning, names, values))
    else:
        _deploy(client, names, values)


def _deploy(client: Client, names: tuple[str, ...], values: dict[str, Any]) -> None:
    folder, name = _named(names, bool(values["files"]))
    given = read_files(values, folder, name, cluster=lambda: _of_cluster(client))
    stack = given.stack()
    for note in given.notes:
        click.echo(f"note: {note}", err=True)
    there = with_outdated(client, _without_removed(client, stack, values), stack)
    prune, resolve = values["prune"], values["resolve_image"] == "always"
    try:
        check_external(stack, there)
        steps = changes(stack, there, prune=prune, resolve=resolve)
    except Conflict as conflict:
        raise CliError(str(conflict)) from None
    deployment = _Deployment(client, stack, there, values)
    deployment.check(steps)
    if built := deployment.build():
        there = replace(there, images={**there.images, **built})
        steps = changes(stack, there, prune=prune, resolve=resolve, built=frozenset(built))
    deployment.make(steps)
    if not steps and not values["quiet"]:
        click.echo(f"stack {given.name} is as the files say already", err=True)
    if not values["detach"]:
        deployment.wait()


def _without_removed(client: Client, stack: Stack, values: Mapping[str, Any]) -> Observed:
    """What is there once nothing of the stack's is being removed any more, as an earlier
    `stack rm -d` asked. Raises NotConverged after the timeout."""
    deadline, silent = time.monotonic() + values["timeout"], values["quiet"] or client.pretends
    while True:
        there = observed(client)
        removed = [
            f"network '{each.name}'"
            for each in stack.networks
            if (network := there.networks.get(each.name)) and network.remove_when_unused
        ] + [
            f"{each.kind.word} '{each.name}'"
            for each in stack.files
            if (document := there.documents.get((each.kind, each.name)))
            and document.remove_when_unused
        ]
        if not removed or client.pretends:
            return there
        if time.monotonic() > deadline:
            raise NotConverged(
                f"{', '.join(removed)}: still being removed after "
                f"{format_duration(values['timeout'])}; see 'orc service ps' and 'orc node ls'"
            )
        if not silent:
            click.echo(f"waiting until {' and '.join(removed)} have been removed", err=True)
            silent = True
        time.sleep(0.1)


def _named(names: tuple[str, ...], has_files: bool) -> tuple[str | None, str]:
    """The folder and the stack's name that were given; the name is empty if none was. Raises a
    usage error."""
    folder, rest = (None, names) if has_files else (names[0] if names else "", names[1:])
    alone = folder is not None and not rest
    if len(rest) > 1 or (alone and not os.path.isdir(folder or "")):
        raise click.UsageError(
            "say which file and how the stack is called: orc stack deploy -c FILE [NAME], or "
            "orc stack deploy DIR [NAME]"
        )
    return folder, checked_name(rest[0]) if rest else ""


def _of_cluster(client: Client) -> dict[str, str]:
    """What the variables of `stack_values` stand for."""
    about = client.call("GetCluster", control_pb2.GetClusterRequest())
    return {
        "ORC_MANAGER": about.web_address,
        "ORC_CA": about.ca_certificate,
        "ORC_SCRAPE_TOKEN": about.scrape_token,
        "ORC_CLUSTER": about.id,
    }


@click.command(epilog=example("orc stack rm shop"))
@click.option(
    "--detach",
    "-d",
    is_flag=True,
    help="Do not wait: networks, secrets and configs go when the last task has stopped.",
)
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@click.argument("names", nargs=-1, required=True, shell_complete=completion.stacks)
@pass_client
def rm(client: Client, names: tuple[str, ...], detach: bool, quiet: bool) -> None:
    """Remove stacks, and wait until their containers and networks are gone. Services stop before
    those that they wait for; volumes stay."""
    there = observed(client)
    known = stack_names(there)
    for name in names:
        if name not in known:
            raise no_stack(name, known)
    for name in names:
        nothing = Stack(name, (), (), (), ())
        deployment = _Deployment(client, nothing, there, {"detach": detach, "quiet": quiet})
        deployment.make(removals(name, there))
        if not detach:
            deployment.await_gone()


class _Deployment:
    """The steps of one deployment, or of a removal."""

    def __init__(
        self, client: Client, stack: Stack, there: Observed, values: Mapping[str, Any]
    ) -> None:
        self._client, self._stack, self._there, self._values = client, stack, there, values
        self._written: dict[str, Any] = {}
        """Services as a manager has stored them."""
        self._removed: set[str] = set()
        """Ids of services."""
        built = frozenset(each.spec.name for each in stack.services if each.build)
        resolve = values.get("resolve_image", "never")
        self._calls = StackCalls(there, resolve, built, client.pretends, values["detach"])

    def check(self, steps: Sequence[Change]) -> None:
        """Have a manager look at all steps before the first is made. Raises CliError for one that
        it would refuse."""
        if self._client.pretends:
            return
        if self._values["with_registry_auth"]:
            # Without it a manager may not find the images.
            self._share_logins()
        planned = []
        for step in steps:
            method, request = self._calls.request(step, checking=True)
            if (field := _PLANNED.get(method)) is not None:
                planned.append(control_pb2.PlannedChange(**{field: request}))
        request = control_pb2.PlanRequest(changes=planned, check_only=True)
        self._client.call("Plan", request, timeout=CHECK_TIMEOUT)
        wanted = {step.wanted.driver: step.name for step in steps if step.kind == "volume"}
        if drivers := wanted.keys() - {"", LOCAL_DRIVER}:
            nodes = self._client.call("ListNodes", control_pb2.ListNodesRequest()).nodes
            known = {name for row in nodes for name in row.node.description.volume_drivers}
            for driver in sorted(drivers - known):
                raise CliError(
                    f"volume '{wanted[driver]}' is of driver '{driver}', which no node has; start "
                    "its plugin"
                )

    def build(self) -> dict[str, str]:
        """Build the images that the files say how to build; their names, and their ids."""
        builds = {
            service.spec.task.container.image: service.build
            for service in self._stack.services
            if service.build is not None
        }
        if not builds:
            return {}
        from orchestrator.cli.stack_build import build_images

        return build_images(self._client, builds, self._values["quiet"])

    def make(self, steps: Sequence[Change]) -> None:
        """Make the steps. Raises CliError, with what was done and what is left, if one fails."""
        for index, step in enumerate(steps):
            self._client.intends(step)
            try:
                self._make(step)
            except CliError as error:
                done = left(steps[:index])
                raise type(error)(
                    f"{error.format_message()}; done: {done}; left: {left(steps[index:])} "
                    "(the same command goes on from there)"
                ) from None
            if not self._client.pretends:
                self._say(f"{_PARTICIPLES[step.action]} {step}")

    def wait(self) -> None:
        """Wait until all services run, and jobs are done. Raises CliError if one does not; what
        depends on it is not waited for."""
        deadline = time.monotonic() + self._values["timeout"]
        failed: dict[str, CliError] = {}
        specs = {service.spec.name: service.spec for service in self._stack.services}
        needs = {
            name: [each.service for each in spec.depends_on if not each.optional]
            for name, spec in specs.items()
        }
        for name in start_order(needs):
            if needed := next((each for each in needs[name] if each in failed), None):
                failed[name] = NotConverged(
                    f"service '{name}' was not waited for: it depends on '{needed}'"
                )
                continue
            try:
                self._wait_for(specs[name], max(deadline - time.monotonic(), 1.0))
            except CliError as error:
                failed[name] = error
        if len(failed) == 1:
            raise next(iter(failed.values()))
        for each in failed.values():
            click.echo(f"orc: {each.format_message()}", err=True)
        if failed:
            kinds = {type(each) for each in failed.values()}
            kind = kinds.pop() if len(kinds) == 1 else NotConverged
            raise kind(
                f"{len(failed)} of {len(self._stack.services)} services of stack "
                f"{self._stack.name} do not run as the files say"
            )

    def _wait_for(self, spec: ServiceSpec, timeout: float) -> None:
        from orchestrator.cli.job_wait import until_done
        from orchestrator.cli.wait import until_converged

        written, changed = self._written.get(spec.name), True
        if written is None:
            written, changed = to_proto(self._there.services[spec.name]), False
        quiet, monitor = self._values["quiet"], self._values["monitor"]
        if spec.mode.is_job:
            until_done(self._client, written, timeout, quiet)
        else:
            until_converged(self._client, written, timeout, quiet, monitor=monitor, changed=changed)

    def await_gone(self) -> None:
        """Wait until the tasks of the services that were removed are gone. Raises NotConverged."""
        if not self._client.pretends:
            until_stopped(self._client, self._removed, self._values["quiet"])

    def _say(self, text: str) -> None:
        if not self._values["quiet"]:
            click.echo(text, err=True)

    def _share_logins(self) -> None:
        from orchestrator.cli.image_registry import share_login
        from orchestrator.model.names import parse_image

        images = [service.spec.task.container.image for service in self._stack.services]
        by_registry = {parse_image(image).registry: image for image in images}
        for image in by_registry.values():
            share_login(self._client, image)

    def _make(self, step: Change) -> None:
        method, request = self._calls.request(step)
        if step.action in (CREATE, CHANGE):
            reply = self._write(step, method, request)
            if step.kind == "service":
                self._written[step.name] = reply
            return
        if step.kind != "service" and not self._values["detach"]:
            self.await_gone()
        try:
            if step.kind == "service" or not self._client.pretends:
                self._client.call(method, request)
        except Refused as refused:
            if not refused.missing:
                raise
        if step.kind == "service":
            self._removed.add(self._there.services[step.name].id)

    def _write(self, step: Change, method: str, request: Any) -> Any:
        """Make the call of a step; anew if only what was observed of a service, or the version of a
        secret that it has, has changed since we read it."""
        for _ in range(CONFLICTS):
            try:
                return self._client.call(method, request, timeout=90.0)
            except Refused as refused:
                if not refused.conflict or step.kind != "service":
                    raise
                read = control_pb2.ListServicesRequest(service=request.service)
                (row,) = self._client.call("ListServices", read).services
                if from_proto(row.service).spec != self._there.services[step.name].spec:
                    raise
                request.revision = row.service.revision
        raise CliError(f"service '{step.name}' is being changed all the time; try again")


_PLANNED = {
    "Networks.CreateNetwork": "create_network",
    "Documents.CreateDocument": "create_document",
    "Documents.UpdateDocument": "update_document",
    "CreateService": "create_service",
    "UpdateService": "update_service",
    "RemoveService": "remove_service",
}
"""Calls that a manager can look at before they are made → their field of a PlannedChange."""
