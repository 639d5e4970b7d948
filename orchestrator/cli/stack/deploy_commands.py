# SPDX-License-Identifier: Apache-2.0
"""`orc stack deploy`, `rm` and `config`: the steps in order, and what is left if one fails."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import click

from orchestrator.cli.app.command_groups import example
from orchestrator.cli.app.completion_names import completes
from orchestrator.cli.app.errors import CliError, NotConverged, Refused
from orchestrator.cli.flags.flag_types import DURATION
from orchestrator.cli.output.listings import print_json
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.cli.service.change_commands import MAX_CONFLICTS, monitor_option
from orchestrator.cli.service.convergence import until_stopped
from orchestrator.cli.stack.stack_changes import (
    CHANGE,
    CREATE,
    Change,
    Conflict,
    Observed,
    changes,
    check_external,
    joined_steps,
    removals,
)
from orchestrator.cli.stack.stack_commands import no_stack, stack_names
from orchestrator.cli.stack.stack_files import checked_name, file_options, read_files
from orchestrator.compose.project.rendering import escaped, rendered
from orchestrator.compose.project.yaml_tree import dump
from orchestrator.compose.stack import Stack, StackFile, StackNetwork, StackService, StackVolume
from orchestrator.compose.tree import Node, to_python
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.dependencies import start_order
from orchestrator.model.documents import DocumentKind
from orchestrator.model.mounts import LOCAL_DRIVER
from orchestrator.model.objects import Network, Volume
from orchestrator.model.services import Service
from orchestrator.model.specs import ServiceSpec
from orchestrator.model.units import format_duration
from orchestrator.pb import control_pb2, documents_pb2, networks_pb2, volumes_pb2


def observe(client: Client) -> Observed:
    """The objects in the cluster."""
    services = client.call("ListServices", control_pb2.ListServicesRequest()).services
    networks = client.call("ListNetworks", control_pb2.ListNetworksRequest()).networks
    volumes = client.call("Volumes.ListVolumes", volumes_pb2.ListVolumesRequest()).volumes
    images = client.call("ListImages", control_pb2.ListImagesRequest()).images
    found: list[Service] = [from_proto(row.service) for row in services]
    nets: list[Network] = [from_proto(each) for each in networks]
    vols: list[Volume] = [from_proto(row.volume) for row in volumes if row.declared]
    return Observed(
        {each.spec.name: each for each in found},
        {each.name: each for each in nets},
        {each.name: each for each in vols},
        {name: image.id for image in images for name in image.names},
        frozenset(row.volume.id for row in volumes),
        {
            (kind, row.document.name): from_proto(row.document)
            for kind in DocumentKind
            for row in client.call(
                "Documents.ListDocuments", documents_pb2.ListDocumentsRequest(kind=cast(Any, kind))
            ).documents
        },
    )


def with_outdated(client: Client, there: Observed, stack: Stack) -> Observed:
    """The same, with the secrets and configs of the stack whose data differs: a manager compares,
    as it never returns the data of a secret."""
    found = set()
    for file in stack.files:
        key = file.kind, file.name
        if file.external or key not in there.documents:
            continue
        request = documents_pb2.UpdateDocumentRequest(
            kind=cast(Any, file.kind),
            document=there.documents[key].id,
            data=file.content,
            check_only=True,
        )
        if client.call("Documents.UpdateDocument", request).changed:
            found.add(key)
    return replace(there, outdated=frozenset(found))


class StackCalls:
    """The calls of a deployment."""

    def __init__(
        self,
        there: Observed,
        resolve: str,
        built: frozenset[str],
        is_dry_run: bool,
        detach: bool = False,
    ) -> None:
        """`detach`: networks and the like may be removed later, after the tasks of removed services
        have stopped."""
        self._there, self._resolve, self._pretends = there, resolve, is_dry_run
        self._detach = detach
        self._built = built
        """Names of services whose images are built first and cannot be resolved before."""

    def request(self, step: Change, checking: bool = False) -> tuple[str, Any]:
        """The method and the request of a step; `checking`: for validation only."""
        return _REQUESTS[step.action, step.kind](self, step, checking)

    def _create_network(self, step: Change, checking: bool) -> tuple[str, Any]:
        wanted: StackNetwork = step.wanted
        return "Networks.CreateNetwork", networks_pb2.CreateNetworkRequest(
            name=wanted.name,
            driver=wanted.driver,
            subnets=wanted.subnets,
            gateway=wanted.gateway,
            ip_range=wanted.ip_range,
            ipv6=wanted.ipv6,
            internal=wanted.internal,
            attachable=wanted.attachable,
            encrypted=wanted.encrypted,
            options=wanted.options,
            labels=wanted.labels,
            ipam_driver=wanted.ipam_driver,
            ipam_options=wanted.ipam_options,
        )

    def _create_volume(self, step: Change, checking: bool) -> tuple[str, Any]:
        wanted: StackVolume = step.wanted
        return "Volumes.CreateVolume", volumes_pb2.CreateVolumeRequest(
            name=wanted.name, driver=wanted.driver, options=wanted.options, labels=wanted.labels
        )

    def _create_service(self, step: Change, checking: bool) -> tuple[str, Any]:
        wanted: StackService = step.wanted
        return "CreateService", control_pb2.CreateServiceRequest(
            spec=to_proto(wanted.spec), no_resolve_image=self._unresolved(step, checking)
        )

    def _change_service(self, step: Change, checking: bool) -> tuple[str, Any]:
        wanted: StackService = step.wanted
        current = self._there.services[step.name]
        never = self._unresolved(step, checking)
        return "UpdateService", control_pb2.UpdateServiceRequest(
            service=current.id,
            spec=to_proto(wanted.spec),
            revision=current.revision,
            base=to_proto(current.spec),
            no_resolve_image=never,
            resolve_image="image" in step.keys and not never,
        )

    def _unresolved(self, step: Change, checking: bool) -> bool:
        """Whether the manager does not resolve the image's tag: nodes do, or the image is not built
        yet."""
        never: bool = self._resolve == "never"
        return never or ((checking or self._pretends) and step.name in self._built)

    def _remove_service(self, step: Change, checking: bool) -> tuple[str, Any]:
        return "RemoveService", control_pb2.RemoveServiceRequest(service=step.name)

    def _drop_network(self, step: Change, checking: bool) -> tuple[str, Any]:
        return "Networks.RemoveNetwork", networks_pb2.RemoveNetworkRequest(
            network=step.name, when_unused=self._detach
        )

    def _create_document(self, step: Change, checking: bool) -> tuple[str, Any]:
        wanted: StackFile = step.wanted
        return "Documents.CreateDocument", documents_pb2.CreateDocumentRequest(
            kind=cast(Any, wanted.kind),
            name=wanted.name,
            labels=wanted.labels,
            data=wanted.content,
            template_driver=wanted.template_driver,
        )

    def _change_document(self, step: Change, checking: bool) -> tuple[str, Any]:
        wanted: StackFile = step.wanted
        current = self._there.documents[wanted.kind, wanted.name]
        return "Documents.UpdateDocument", documents_pb2.UpdateDocumentRequest(
            kind=cast(Any, wanted.kind),
            document=current.id,
            data=wanted.content,
            label_add=wanted.labels,
            label_rm=sorted(current.labels.keys() - wanted.labels.keys()),
        )

    def _drop_document(self, step: Change, checking: bool) -> tuple[str, Any]:
        return "Documents.RemoveDocument", documents_pb2.RemoveDocumentRequest(
            kind=cast(Any, DocumentKind[step.kind.upper()]),
            document=step.name,
            when_unused=self._detach,
        )


_REQUESTS: dict[tuple[str, str], Callable[[StackCalls, Change, bool], tuple[str, Any]]] = {
    ("create", "network"): StackCalls._create_network,
    ("create", "volume"): StackCalls._create_volume,
    ("create", "service"): StackCalls._create_service,
    ("change", "service"): StackCalls._change_service,
    ("remove", "service"): StackCalls._remove_service,
    ("remove", "network"): StackCalls._drop_network,
    **{("create", kind.word): StackCalls._create_document for kind in DocumentKind},
    **{("change", kind.word): StackCalls._change_document for kind in DocumentKind},
    **{("remove", kind.word): StackCalls._drop_document for kind in DocumentKind},
}

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
@click.option(
    "--prune", is_flag=True, help="Remove services and networks not in the files; volumes are kept."
)
@click.option("--dry-run", is_flag=True, help="Only print the plan, like 'orc plan'.")
@click.option("--detach", "-d", is_flag=True, help="Do not wait for convergence.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@click.option(
    "--timeout",
    type=DURATION,
    default="5m",
    show_default=True,
    help="How long to wait for convergence; then the exit status is 3.",
)
@monitor_option
@click.option(
    "--resolve-image",
    type=click.Choice(["always", "changed", "never"]),
    default="always",
    show_default=True,
    help="When to resolve images' tags; never: each node does.",
)
@click.option(
    "--with-registry-auth",
    is_flag=True,
    help="Log the cluster in with this user's Docker credentials for the images' registries.",
)
@click.argument(
    "names",
    metavar="[DIR] [NAME]",
    nargs=-1,
    shell_complete=completes("stacks_and_folders"),
)
@pass_client
def deploy(client: Client, names: tuple[str, ...], dry_run: bool, **values: Any) -> None:
    """Deploy a stack from compose files, or from a folder with one (a chart): create and update
    what differs, and wait for convergence. Unchanged objects are not touched.

    The stack's name is NAME or, by default, COMPOSE_PROJECT_NAME, the files' `name`, or their
    folder's."""
    if dry_run and not client.is_dry_run:
        from orchestrator.cli.service.plan_command import show_stack

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
        click.echo(f"stack {given.name} is up to date", err=True)
    if not values["detach"]:
        deployment.wait()


def _without_removed(client: Client, stack: Stack, values: Mapping[str, Any]) -> Observed:
    """The objects in the cluster, after pending removals of an earlier `stack rm -d` are complete.
    Raises NotConverged after the timeout."""
    deadline, silent = time.monotonic() + values["timeout"], values["quiet"] or client.is_dry_run
    while True:
        there = observe(client)
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
        if not removed or client.is_dry_run:
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
    """The given folder and stack name; the name is empty if not given. Raises a usage error."""
    folder, rest = (None, names) if has_files else (names[0] if names else "", names[1:])
    alone = folder is not None and not rest
    if len(rest) > 1 or (alone and not os.path.isdir(folder or "")):
        raise click.UsageError(
            "name a file or folder and the stack: orc stack deploy -c FILE [NAME], or "
            "orc stack deploy DIR [NAME]"
        )
    return folder, checked_name(rest[0]) if rest else ""


def _of_cluster(client: Client) -> dict[str, str]:
    """The values of the variables of `stack_variables`."""
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
    help="Do not wait: networks, secrets and configs are removed after the last task has stopped.",
)
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@click.argument("names", nargs=-1, required=True, shell_complete=completes("stacks"))
@pass_client
def rm(client: Client, names: tuple[str, ...], detach: bool, quiet: bool) -> None:
    """Remove stacks, and wait until their containers and networks are gone. Services stop before
    their dependencies; volumes are kept."""
    there = observe(client)
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
        self._calls = StackCalls(there, resolve, built, client.is_dry_run, values["detach"])

    def check(self, steps: Sequence[Change]) -> None:
        """Validate all steps at a manager before the first is made. Raises CliError for a rejected
        one."""
        if self._client.is_dry_run:
            return
        if self._values["with_registry_auth"]:
            # Without credentials a manager may not resolve the images.
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
        """Build the images with a build section; name → id."""
        builds = {
            service.spec.task.container.image: service.build
            for service in self._stack.services
            if service.build is not None
        }
        if not builds:
            return {}
        from orchestrator.cli.stack.stack_images import build_images

        return build_images(self._client, builds, self._values["quiet"])

    def make(self, steps: Sequence[Change]) -> None:
        """Make the steps. Raises CliError, with completed and remaining steps, if one fails."""
        for index, step in enumerate(steps):
            self._client.record_step(step)
            try:
                self._make(step)
            except CliError as error:
                done, left = joined_steps(steps[:index]), joined_steps(steps[index:])
                raise type(error)(
                    f"{error.format_message()}; done: {done}; left: {left} "
                    "(rerun the same command to continue)"
                ) from None
            if not self._client.is_dry_run:
                self._say(f"{_PARTICIPLES[step.action]} {step}")

    def wait(self) -> None:
        """Wait until all services have converged and jobs have completed. Raises CliError on
        failures; services that depend on a failed one are skipped."""
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
                    f"service '{name}' was skipped: it depends on '{needed}'"
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
                f"{self._stack.name} have not converged"
            )

    def _wait_for(self, spec: ServiceSpec, timeout: float) -> None:
        from orchestrator.cli.service.convergence import until_converged
        from orchestrator.cli.service.job_runs import until_done

        written, changed = self._written.get(spec.name), True
        if written is None:
            written, changed = to_proto(self._there.services[spec.name]), False
        quiet, monitor = self._values["quiet"], self._values["monitor"]
        if spec.mode.is_job:
            until_done(self._client, written, timeout, quiet)
        else:
            until_converged(self._client, written, timeout, quiet, monitor=monitor, changed=changed)

    def await_gone(self) -> None:
        """Wait until the tasks of removed services are gone. Raises NotConverged."""
        if not self._client.is_dry_run:
            until_stopped(self._client, self._removed, self._values["quiet"])

    def _say(self, text: str) -> None:
        if not self._values["quiet"]:
            click.echo(text, err=True)

    def _share_logins(self) -> None:
        from orchestrator.cli.image.registry_commands import share_login
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
            if step.kind == "service" or not self._client.is_dry_run:
                self._client.call(method, request)
        except Refused as refused:
            if not refused.missing:
                raise
        if step.kind == "service":
            self._removed.add(self._there.services[step.name].id)

    def _write(self, step: Change, method: str, request: Any) -> Any:
        """Make the call of a step; retried after a conflict in which only a service's status, or
        the version of its secrets, was modified."""
        for _ in range(MAX_CONFLICTS):
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
        raise CliError(f"service '{step.name}' is modified concurrently; retry")


_PLANNED = {
    "Networks.CreateNetwork": "create_network",
    "Documents.CreateDocument": "create_document",
    "Documents.UpdateDocument": "update_document",
    "CreateService": "create_service",
    "UpdateService": "update_service",
    "RemoveService": "remove_service",
}
"""Calls that a manager can validate in advance → their field of a PlannedChange."""


@click.command(
    epilog=example(
        "orc stack config -c compose.yaml",
        "orc stack config -c compose.yaml -c production.yaml --format json",
    )
)
@file_options
@click.option(
    "--skip-interpolation", "--no-interpolate", is_flag=True, help="Do not interpolate variables."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["yaml", "json"]),
    default="yaml",
    show_default=True,
    help="Output format.",
)
@click.option("--quiet", "-q", is_flag=True, help="Only validate.")
@click.argument("folder", required=False, shell_complete=completes("folders"))
def config(
    folder: str | None, skip_interpolation: bool, form: str, quiet: bool, **values: Any
) -> None:
    """Print compose files as one: merged, with variables interpolated and in canonical long form.
    No cluster is called."""
    given = read_files(values, folder, interpolate=not skip_interpolation)
    if not skip_interpolation:
        given.stack()
    for note in given.notes:
        click.echo(f"note: {note}", err=True)
    if quiet:
        return
    document: Node = given.document
    if not skip_interpolation:
        document = escaped(rendered(given.document, given.name))
    if form == "json":
        print_json(to_python(document))
    else:
        click.echo(dump(document), nl=False)
