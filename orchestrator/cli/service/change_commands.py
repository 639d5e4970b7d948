"""`orc service create`, `update` and `scale`: the commands that change what runs, and wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import click

from orchestrator.cli.app.command_groups import example
from orchestrator.cli.app.completion_names import completes, file_option
from orchestrator.cli.app.errors import CliError, Refused
from orchestrator.cli.app.option_groups import GroupedCommand
from orchestrator.cli.flags.container_flags import logging_options, many_options
from orchestrator.cli.flags.flag_types import DURATION
from orchestrator.cli.flags.mount_flags import mount_options
from orchestrator.cli.flags.network_flags import network_options
from orchestrator.cli.flags.placement_flags import placement_edit_options, placement_options
from orchestrator.cli.flags.secret_config_flags import document_options
from orchestrator.cli.flags.spec_builder import edit_options, edited, new_spec, scaled
from orchestrator.cli.flags.spec_flags import checked
from orchestrator.cli.flags.spec_settings import setting_options
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.services import Service
from orchestrator.model.spec_diff import differences, told
from orchestrator.model.specs import ServiceMode, ServiceSpec
from orchestrator.pb import control_pb2

F = TypeVar("F", bound=Callable[..., Any])

CONFLICTS = 5
"""How often an edit is made anew on a newer spec before we give up."""

PATIENCE = 120.0
"""Seconds that services are waited for, besides their monitor period, unless told otherwise."""


def wait_options(function: F) -> F:
    """`--detach`, `--quiet` and `--timeout` of a command that waits for convergence."""
    function = click.option(
        "--timeout",
        type=DURATION,
        help="How long to wait; then the exit status is 3.  "
        "[default: 2m and the monitor period; no limit for a job]",
    )(function)
    function = click.option("--quiet", "-q", is_flag=True, help="No progress.")(function)
    return click.option("--detach", "-d", is_flag=True, help="Do not wait.")(function)


def monitor_option(function: F) -> F:
    """`--monitor` of a command that waits for services."""
    return click.option(
        "--monitor",
        type=DURATION,
        envvar="ORC_MONITOR",
        help="How long tasks without a health check must stay up; 0s: they need only run.  "
        "[default: ORC_MONITOR, or the service's --update-monitor]",
    )(function)


def resolve_options(function: F) -> F:
    """`--no-resolve-image` and `--with-registry-auth`."""
    function = click.option(
        "--no-resolve-image",
        is_flag=True,
        help="Let each node resolve the image's tag, instead of once for all.",
    )(function)
    return click.option(
        "--with-registry-auth",
        is_flag=True,
        help="Log the cluster in with what this user's Docker has for the image's registry.",
    )(function)


def share_credentials(client: Client, values: Mapping[str, Any]) -> None:
    """Do as `--with-registry-auth` says: the cluster's own credentials go to whoever pulls."""
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
    "--name", metavar="NAME", help="The service's name.  [default: made from the image's]"
)
@click.option(
    "--mode",
    type=click.Choice([mode.name.lower().replace("_", "-") for mode in ServiceMode]),
    default="replicated",
    show_default=True,
    help="A number of tasks, or one on each node; the tasks of a job do their work and end.",
)
@click.option(
    "--publish", "-p", multiple=True, metavar="PUBLISHED:TARGET[/udp]", help="Publish a port."
)
@network_options
@click.option(
    "--env", "-e", multiple=True, metavar="KEY[=VALUE]", help="Set a variable; repeatable."
)
@file_option("--env-file", multiple=True, help="Variables, one a line.")
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
    help="Spread evenly over the values of an attribute; repeatable, the first counts most.",
)
@placement_options
@resolve_options
@mount_options
@document_options
@logging_options
@many_options
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
    """Change a service, and wait until it runs as changed.

    New tasks must be healthy or, without a probe, stay up for the monitor period. Exits with 3 if
    one crashes, with 4 if the service was rolled back."""
    share_credentials(client, values)
    changed = change(
        client,
        values["service"],
        lambda spec: edited(spec, values),
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
    help="One of the last ten that 'orc service inspect' lists; else the one before this.",
)
@wait_options
@monitor_option
@click.argument("service", shell_complete=completes("services"))
@pass_client
def rollback(client: Client, service: str, version: int, **values: Any) -> None:
    """Bring an earlier spec of a service back, and wait until it runs. Its number of replicas
    stays."""
    request = control_pb2.RollbackServiceRequest(service=service, version=version)
    wait_for(client, [client.call("RollbackService", request)], values)


@click.command(epilog=example("orc service promote web"))
@wait_options
@monitor_option
@click.argument("service", shell_complete=completes("services"))
@pass_client
def promote(client: Client, service: str, **values: Any) -> None:
    """Let an update that stands at its canaries go on, and wait until all tasks run."""
    request = control_pb2.PromoteServiceRequest(service=service)
    wait_for(client, [client.call("PromoteService", request)], values)


def _scales(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> tuple[str, ...]:
    if len(words) == 2 and "=" not in words[0] and words[1].isdecimal():
        raise click.UsageError(f"write it as one word: 'orc service scale {words[0]}={words[1]}'")
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
        change(client, name, partial(scaled, replicas=replicas)) for name, replicas in wanted
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
    # The same words as for any other spec, and before anything is changed.
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
    """Read a service, edit its spec and store it; once more if somebody else was faster and changed
    something else, or in any case with `force`.
    `resolve_image`: what the image's tag stands for is looked up again, or by each node for itself
    with `no_resolve_image`."""
    base: ServiceSpec | None = None
    for _ in range(CONFLICTS):
        service = _read(client, name)
        if base is not None and base != service.spec:
            _tell(service.spec, base, edit(base), force=force)
        base = service.spec
        update = control_pb2.UpdateServiceRequest(
            service=service.id,
            spec=to_proto(checked(edit(base))),
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
    raise CliError(f"service '{name}' is being changed by others all the time; try again")


def _read(client: Client, name: str) -> Service:
    rows = client.call("ListServices", control_pb2.ListServicesRequest(service=name)).services
    if not rows:
        raise CliError(f"no service '{name}'; see 'orc service ls'")
    service: Service = from_proto(rows[0].service)
    return service


def _tell(now: ServiceSpec, base: ServiceSpec, mine: ServiceSpec, *, force: bool) -> None:
    """Say what somebody else has changed since we read `base`. Raises CliError if we were about to
    change the same, unless that is to be overridden."""
    both = set(differences(base, now)) & set(differences(base, mine)) - {"force"}
    what = f"somebody else changed service '{now.name}' meanwhile: {told(base, now)}"
    if both and not force:
        raise CliError(
            f"{what}; nothing was done, as {', '.join(sorted(both))} would be changed again: look "
            f"at 'orc service inspect {now.name}', then try again, or override it with "
            "'orc service update --force'"
        )
    click.echo(f"{what}; {'this overrides it' if both else 'that stays'}", err=True)


def monitored(service: Any, monitor: float | None) -> float:
    """The monitor period in seconds: `--monitor` if given, else the service's own."""
    declared: float = from_proto(service).policy.monitor
    return declared if monitor is None else monitor


def wait_for(client: Client, services: list[Any], values: dict[str, Any]) -> None:
    """Print the ids (of what was created) or names, and wait for each unless told not to."""
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
                timeout = PATIENCE + monitored(service, monitor)
            until_converged(client, service, timeout, values["quiet"], monitor=monitor)
