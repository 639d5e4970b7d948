# SPDX-License-Identifier: Apache-2.0
"""`orc service create`, `update`, `scale`, `rollback` and `promote`: change a service and wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import click

from orchestrator.cli.app.command_groups import example
from orchestrator.cli.app.completion_names import completes, file_option
from orchestrator.cli.app.errors import CliError, Refused
from orchestrator.cli.app.option_groups import GroupedCommand
from orchestrator.cli.flags.container_flags import logging_options, repeatable_options
from orchestrator.cli.flags.flag_types import DURATION
from orchestrator.cli.flags.mount_flags import mount_options
from orchestrator.cli.flags.network_flags import network_options
from orchestrator.cli.flags.placement_flags import placement_edit_options, placement_options
from orchestrator.cli.flags.secret_config_flags import document_options
from orchestrator.cli.flags.spec_builder import edit_options, edited_spec, new_spec, scaled_spec
from orchestrator.cli.flags.spec_flags import validated_spec
from orchestrator.cli.flags.spec_settings import setting_options
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.formats.spec_diff import describe_differences, differences
from orchestrator.model.services import Service
from orchestrator.model.specs import ServiceMode, ServiceSpec
from orchestrator.pb import control_pb2

F = TypeVar("F", bound=Callable[..., Any])

MAX_CONFLICTS = 5
"""Maximum attempts of an edit after conflicts."""

WAIT_TIMEOUT = 120.0
"""Default timeout of a wait in seconds, added to the monitor period."""


def wait_options(function: F) -> F:
    """`--detach`, `--quiet` and `--timeout` of a command that waits for convergence."""
    function = click.option(
        "--timeout",
        type=DURATION,
        help="How long to wait; then the exit status is 3.  "
        "[default: 2m and the monitor period; no limit for a job]",
    )(function)
    function = click.option("--quiet", "-q", is_flag=True, help="No progress.")(function)
    return click.option("--detach", "-d", is_flag=True, help="Do not wait for convergence.")(
        function
    )


def monitor_option(function: F) -> F:
    """`--monitor` of a command that waits for services."""
    return click.option(
        "--monitor",
        type=DURATION,
        envvar="ORC_MONITOR",
        help="Time that tasks without a health check must stay up; 0s: they need only run.  "
        "[default: ORC_MONITOR, or the service's --update-monitor]",
    )(function)


def resolve_options(function: F) -> F:
    """`--no-resolve-image` and `--with-registry-auth`."""
    function = click.option(
        "--no-resolve-image",
        is_flag=True,
        help="Let each node resolve the image's tag, instead of the manager once.",
    )(function)
    return click.option(
        "--with-registry-auth",
        is_flag=True,
        help="Log the cluster in with this user's Docker credentials for the image's registry.",
    )(function)


def share_credentials(client: Client, values: Mapping[str, Any]) -> None:
    """Implement `--with-registry-auth`: nodes that pull get the cluster's credentials."""
    if values["with_registry_auth"] and values["image"]:
        from orchestrator.cli.image.registry_commands import share_login

        share_login(client, values["image"])


@click.command(
    cls=GroupedCommand,
    context_settings={"allow_interspersed_args": False},
    epilog=example(
        "orc service create --name web --replicas 3 -p 8080:80 hello:1",
        "orc service create --name sums --mode replicated-job --replicas 10 --max-concurrent 3 "
        "sums:1",
    ),
)
@click.option(
    "--name", metavar="NAME", help="The service's name.  [default: generated from the image's]"
)
@click.option(
    "--mode",
    type=click.Choice([mode.name.lower().replace("_", "-") for mode in ServiceMode]),
    default="replicated",
    show_default=True,
    help="A number of tasks, or one on each node; tasks of a job run to completion.",
)
@click.option(
    "--publish", "-p", multiple=True, metavar="PUBLISHED:TARGET[/udp]", help="Publish a port."
)
@network_options
@click.option(
    "--env",
    "-e",
    multiple=True,
    metavar="KEY[=VALUE]",
    help="Set an environment variable; repeatable.",
)
@file_option("--env-file", multiple=True, help="File of environment variables, one per line.")
@click.option(
    "--label", "-l", multiple=True, metavar="KEY=VALUE", help="Label of the service; repeatable."
)
@click.option(
    "--container-label", multiple=True, metavar="KEY=VALUE", help="Label of its containers."
)
@click.option(
    "--constraint",
    multiple=True,
    metavar="RULE",
    help="Only nodes that match, such as node.labels.zone==a; repeatable.",
)
@click.option(
    "--placement-pref",
    multiple=True,
    metavar="spread=ATTRIBUTE",
    help="Spread evenly over the values of an attribute; repeatable, in order of precedence.",
)
@placement_options
@resolve_options
@mount_options
@document_options
@logging_options
@repeatable_options
@setting_options
@wait_options
@monitor_option
@click.argument("image", shell_complete=completes("images"))
@click.argument("command", nargs=-1)
@pass_client
def create(client: Client, **values: Any) -> None:
    """Create a service from an image, and wait until it runs.

    Its tasks must be healthy or, without a probe, stay up for the monitor period. Exits with 3 if
    one crashes."""
    spec = new_spec(values)
    share_credentials(client, values)
    request = control_pb2.CreateServiceRequest(
        spec=to_proto(spec), no_resolve_image=values["no_resolve_image"]
    )
    wait_for(client, [client.call("CreateService", request)], values)


@click.command(
    cls=GroupedCommand,
    epilog=example(
        "orc service update --image hello:2 web", "orc service update --env-add LEVEL=debug web"
    ),
)
@edit_options
@placement_edit_options
@resolve_options
@setting_options
@wait_options
@monitor_option
@click.argument("service", shell_complete=completes("services"))
@pass_client
def update(client: Client, **values: Any) -> None:
    """Update a service, and wait until the update has completed.

    New tasks must be healthy or, without a probe, stay up for the monitor period. Exits with 3 if
    one crashes, with 4 if the service was rolled back."""
    share_credentials(client, values)
    changed = change(
        client,
        values["service"],
        lambda spec: edited_spec(spec, values),
        resolve_image=values["image"] is not None,
        no_resolve_image=values["no_resolve_image"],
        force=values["force"],
    )
    wait_for(client, [changed], values)


@click.command(epilog=example("orc service rollback web", "orc service rollback --to 3 web"))
@click.option(
    "--to",
    "version",
    type=click.INT,
    default=0,
    metavar="VERSION",
    help="Revision to restore, of those listed by 'orc service inspect'.  [default: the previous]",
)
@wait_options
@monitor_option
@click.argument("service", shell_complete=completes("services"))
@pass_client
def rollback(client: Client, service: str, version: int, **values: Any) -> None:
    """Restore an earlier spec of a service, and wait until it runs. The number of replicas is
    kept."""
    request = control_pb2.RollbackServiceRequest(service=service, version=version)
    wait_for(client, [client.call("RollbackService", request)], values)


@click.command(epilog=example("orc service promote web"))
@wait_options
@monitor_option
@click.argument("service", shell_complete=completes("services"))
@pass_client
def promote(client: Client, service: str, **values: Any) -> None:
    """Continue an update that is paused at its canaries, and wait until all tasks run."""
    request = control_pb2.PromoteServiceRequest(service=service)
    wait_for(client, [client.call("PromoteService", request)], values)


def _scales(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> tuple[str, ...]:
    if len(words) == 2 and "=" not in words[0] and words[1].isdecimal():
        raise click.UsageError(
            f"write it as one argument: 'orc service scale {words[0]}={words[1]}'"
        )
    return words


@click.command(epilog=example("orc service scale web=12", "orc service scale web=3 api=5"))
@wait_options
@monitor_option
@click.argument(
    "scales",
    metavar="SERVICE=REPLICAS...",
    callback=_scales,
    nargs=-1,
    required=True,
    shell_complete=completes("service_scales"),
)
@pass_client
def scale(client: Client, scales: tuple[str, ...], **values: Any) -> None:
    """Set the number of replicas of services, and wait until they run."""
    wanted = [_scale(text) for text in scales]
    changed = [
        change(client, name, partial(scaled_spec, replicas=replicas)) for name, replicas in wanted
    ]
    wait_for(client, changed, values)


def _scale(text: str) -> tuple[str, int]:
    name, equals, number = text.partition("=")
    try:
        if not name or not equals:
            raise ValueError
        replicas = int(number)
    except ValueError:
        raise click.UsageError(
            f"{text!r} is not of the form SERVICE=REPLICAS, such as web=6"
        ) from None
    # Validate like any other spec, before anything is changed.
    if replicas < 0:
        raise click.UsageError(f"replicas {replicas} is negative; 0 is the least")
    return name, replicas


def change(
    client: Client,
    name: str,
    edit: Callable[[ServiceSpec], ServiceSpec],
    *,
    resolve_image: bool = False,
    no_resolve_image: bool = False,
    force: bool = False,
) -> Any:
    """Read a service, edit its spec and store it. After a conflict, retry if other fields were
    modified, or in any case with `force`. `resolve_image`: resolve the image's tag again, or on
    each node with `no_resolve_image`."""
    base: ServiceSpec | None = None
    for _ in range(MAX_CONFLICTS):
        service = _read(client, name)
        if base is not None and base != service.spec:
            _report_conflict(service.spec, base, edit(base), force=force)
        base = service.spec
        update = control_pb2.UpdateServiceRequest(
            service=service.id,
            spec=to_proto(validated_spec(edit(base))),
            base=to_proto(base),
            revision=service.revision,
            resolve_image=resolve_image,
            no_resolve_image=no_resolve_image,
        )
        try:
            return client.call("UpdateService", update)
        except Refused as refused:
            if not refused.conflict:
                raise
    raise CliError(f"service '{name}' is modified concurrently; retry")


def _read(client: Client, name: str) -> Service:
    rows = client.call("ListServices", control_pb2.ListServicesRequest(service=name)).services
    if not rows:
        raise CliError(f"no service '{name}'; see 'orc service ls'")
    service: Service = from_proto(rows[0].service)
    return service


def _report_conflict(
    now: ServiceSpec, base: ServiceSpec, mine: ServiceSpec, *, force: bool
) -> None:
    """Print what was modified concurrently since we read `base`. Raises CliError if our edit
    conflicts, unless it overrides."""
    both = set(differences(base, now)) & set(differences(base, mine)) - {"force"}
    theirs = describe_differences(base, now)
    what = f"conflict: service '{now.name}' was modified concurrently: {theirs}"
    if both and not force:
        raise CliError(
            f"{what}; nothing was done, as this would modify {', '.join(sorted(both))} again: see "
            f"'orc service inspect {now.name}', then try again, or override it with "
            "'orc service update --force'"
        )
    click.echo(f"{what}; {'this overrides it' if both else 'that is kept'}", err=True)


def monitor_period(service: Any, monitor: float | None) -> float:
    """The monitor period in seconds: `--monitor` if given, else the service's own."""
    declared: float = from_proto(service).policy.monitor
    return declared if monitor is None else monitor


def wait_for(client: Client, services: list[Any], values: dict[str, Any]) -> None:
    """Print ids (of created services) or names, and wait for each unless detached."""
    for service in services:
        click.echo(service.id)
    if values["detach"]:
        return
    from orchestrator.cli.service.convergence import until_converged
    from orchestrator.cli.service.job_runs import until_done

    for service in services:
        if from_proto(service).spec.mode.is_job:
            until_done(client, service, values["timeout"], values["quiet"])
        else:
            monitor, timeout = values.get("monitor"), values["timeout"]
            if timeout is None:
                timeout = WAIT_TIMEOUT + monitor_period(service, monitor)
            until_converged(client, service, timeout, values["quiet"], monitor=monitor)
