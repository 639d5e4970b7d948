# SPDX-License-Identifier: Apache-2.0
"""`orc job`: run-to-completion work, once or on a schedule."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import click

from orchestrator.cli.app.command_groups import OrcGroup, example
from orchestrator.cli.app.completion_names import completes
from orchestrator.cli.app.errors import CliError, StillRunning
from orchestrator.cli.app.option_groups import GroupedCommand
from orchestrator.cli.flags.spec_builder import new_spec
from orchestrator.cli.output.batch import attempts, inspect_options, one_by_one, print_inspected
from orchestrator.cli.output.listings import Row, listing_options, print_fields, print_list
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.cli.rpc.task_pages import list_tasks
from orchestrator.cli.service.change_commands import (
    change,
    create,
    share_credentials,
    wait_for,
    wait_options,
)
from orchestrator.cli.service.convergence import until_stopped
from orchestrator.cli.service.job_runs import (
    job_columns,
    job_document,
    job_fields,
    job_row,
    job_task_columns,
    job_task_rows,
    next_run_text,
)
from orchestrator.cli.service.log_commands import log_options, show_logs
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.names import near_miss
from orchestrator.model.specs import RestartCondition, RestartPolicy, ServiceMode, ServiceSpec
from orchestrator.pb import control_pb2, jobs_pb2


@click.group(
    cls=OrcGroup,
    epilog=example("orc job run --completions 10 --parallelism 3 --name sums sums:1"),
)
def job() -> None:
    """Manage jobs: containers that run to completion, once or on a schedule."""


_NOT_OF_JOBS = (
    "mode",
    "replicas",
    "endpoint_mode",
    "restart_window",
    "restart_condition",
    "monitor",
    "min_available",
    "max_unavailable",
)


@click.command(
    "run",
    cls=GroupedCommand,
    context_settings={"allow_interspersed_args": False},
    epilog=example(
        "orc job run --completions 10 --parallelism 3 --name sums sums:1",
        "orc job run --name backup --schedule '30 2 * * *' --time-zone Europe/Vienna backup:1",
        "orc job run --global --rm tools:1 fstrim /data",
    ),
)
@click.option(
    "--completions",
    "--replicas",
    "replicas",
    type=click.INT,
    help="Number of completions.  [default: 1]",
)
@click.option("--global", "everywhere", is_flag=True, help="One completion on each node.")
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    help="Retries of a failed completion, with exponential backoff.  [default: 3]",
)
@click.option(
    "--rm", "removed", is_flag=True, help="Remove the job after it has completed or failed."
)
@pass_client
def run(
    client: Client, everywhere: bool, retries: int | None, removed: bool, **values: Any
) -> None:
    """Run a job, and wait until it has completed. Exits with 3 if it failed.

    With a schedule, it runs at those times. Each task has its index from 1 in ORC_JOB_INDEX, and as
    {{.Task.Slot}} in variables, names of volumes and labels.
    """
    if removed and (values["detach"] or values["schedule"]):
        raise click.UsageError("--rm cannot be combined with --detach or --schedule")
    mode = ServiceMode.GLOBAL_JOB if everywhere else ServiceMode.REPLICATED_JOB
    absent = dict.fromkeys(_NOT_OF_JOBS)
    spec = new_spec({**absent, **values, "mode": mode.name.lower()})
    if retries is not None:
        spec = _with_retries(spec, retries)
    share_credentials(client, values)
    request = control_pb2.CreateServiceRequest(
        spec=to_proto(spec), no_resolve_image=values["no_resolve_image"]
    )
    written = client.call("CreateService", request)
    end = control_pb2.RemoveServiceRequest(service=written.id)
    try:
        wait_for(client, [written], values)
    except StillRunning:
        raise
    except CliError:
        if removed:
            client.call("RemoveService", end)
        raise
    if removed:
        client.call("RemoveService", end)


# All that a service can be given, which the job's tasks have as well.
run.params += [
    param
    for param in create.params
    if param.name not in _NOT_OF_JOBS
    and not str(param.name).startswith(("update_", "rollback_", "autoscale_"))
    and param.name not in {each.name for each in run.params}
]
job.add_command(run)


def _with_retries(spec: ServiceSpec, retries: int) -> ServiceSpec:
    condition = RestartCondition.ON_FAILURE if retries else RestartCondition.NONE
    restart: RestartPolicy = replace(spec.task.restart, condition=condition, max_attempts=retries)
    return replace(spec, task=replace(spec.task, restart=restart))


@job.command(epilog=example("orc job start backup"))
@wait_options
@click.argument("name", metavar="JOB", shell_complete=completes("jobs"))
@pass_client
def start(client: Client, name: str, **values: Any) -> None:
    """Run a job again now, and wait until it has completed. Its schedule is unaffected."""
    request = jobs_pb2.StartJobRequest(job=name)
    wait_for(client, [client.call("Jobs.StartJob", request)], values)


@job.command(epilog=example("orc job stop sums"))
@click.argument(
    "names", metavar="JOB...", nargs=-1, required=True, shell_complete=completes("jobs")
)
@pass_client
def stop(client: Client, names: tuple[str, ...]) -> None:
    """Stop the current runs of jobs. Their schedules continue."""
    one_by_one(names, lambda name: client.call("Jobs.StopJob", jobs_pb2.StopJobRequest(job=name)))


@job.command(epilog=example("orc job suspend backup"))
@click.argument(
    "names", metavar="JOB...", nargs=-1, required=True, shell_complete=completes("jobs")
)
@pass_client
def suspend(client: Client, names: tuple[str, ...]) -> None:
    """Suspend the schedules of jobs."""
    _suspend(client, names, True)


@job.command(epilog=example("orc job resume backup"))
@click.argument(
    "names", metavar="JOB...", nargs=-1, required=True, shell_complete=completes("jobs")
)
@pass_client
def resume(client: Client, names: tuple[str, ...]) -> None:
    """Resume the schedules of jobs. Missed runs are not made up for."""
    _suspend(client, names, False)


def _suspend(client: Client, names: Sequence[str], suspended: bool) -> None:
    with attempts() as attempt:
        for name in names:
            with attempt():
                click.echo(_with_suspended(client, name, suspended))


def _with_suspended(client: Client, name: str, suspended: bool) -> str:
    found = from_proto(_job(client, name).service)
    if not found.spec.job.schedule:
        raise CliError(f"job '{found.spec.name}' has no schedule")
    changed = change(
        client,
        found.id,
        lambda spec: replace(spec, job=replace(spec.job, suspended=suspended)),
    )
    text = next_run_text(from_proto(changed), time.time())
    return f"{found.spec.name}: {text if suspended else f'runs next at {text}'}"


@job.command("ls", epilog=example("orc job ls --filter state=failed"))
@listing_options("id", "name", "mode", "label", "state")
@click.option("--no-trunc", is_flag=True, help="Do not truncate ids.")
@pass_client
def list_jobs(
    client: Client, form: str, quiet: bool, filters: Mapping[str, Sequence[str]], no_trunc: bool
) -> None:
    """List the jobs, with their newest runs."""
    now = time.time()
    rows = [job_row(message, now) for message in _jobs(client)]
    rows.sort(key=lambda row: row["name"])
    print_list(rows, job_columns(no_trunc), form=form, quiet=quiet, filters=filters)


@job.command(epilog=example("orc job ps sums", "orc job ps --filter state=failed sums"))
@click.argument("jobs", nargs=-1, required=True, shell_complete=completes("jobs"))
@listing_options("id", "name", "node", "desired-state", "state", "run")
@click.option("--no-trunc", is_flag=True, help="Do not truncate ids.")
@pass_client
def ps(
    client: Client,
    jobs: tuple[str, ...],
    form: str,
    quiet: bool,
    filters: Mapping[str, Sequence[str]],
    no_trunc: bool,
) -> None:
    """List the tasks of jobs that are kept, those of the newest run first."""
    rows: list[Row] = []
    for name in jobs:
        found = _job(client, name).service.id
        reply = list_tasks(client, service=found)
        rows += job_task_rows(reply.tasks, reply.hostnames, time.time())
    print_list(rows, job_task_columns(no_trunc), form=form, quiet=quiet, filters=filters)


@job.command(epilog=example("orc job logs -f sums", "orc job logs --tail 10 sums.3"))
@log_options
@click.option("--raw", is_flag=True, help="Print raw lines, without the task's name.")
@click.argument("name", metavar="JOB|TASK", shell_complete=completes("jobs"))
@pass_client
def logs(client: Client, name: str, raw: bool, timestamps: bool, **values: Any) -> None:
    """Show the logs of a job's tasks, including finished ones."""
    show_logs(client, name, values, raw=raw, timestamps=timestamps, of_job=True)


@job.command(epilog=example("orc job inspect backup", "orc job inspect --pretty backup"))
@click.argument("jobs", nargs=-1, required=True, shell_complete=completes("jobs"))
@inspect_options
@pass_client
def inspect(client: Client, jobs: tuple[str, ...], form: str) -> None:
    """Show jobs with their specs and their runs."""
    messages = [_job(client, name) for name in jobs]
    now = time.time()
    print_inspected(messages, form, lambda job: print_fields(job_fields(job, now)), job_document)


@job.command(epilog=example("orc job rm sums"))
@click.option("--detach", "-d", is_flag=True, help="Do not wait until the tasks have stopped.")
@click.argument("jobs", nargs=-1, required=True, shell_complete=completes("jobs"))
@pass_client
def rm(client: Client, detach: bool, jobs: tuple[str, ...]) -> None:
    """Remove jobs and their history, and wait until their tasks have stopped."""
    removed: set[str] = set()

    def remove(name: str) -> None:
        found = _job(client, name).service.id
        client.call("RemoveService", control_pb2.RemoveServiceRequest(service=found))
        removed.add(found)

    try:
        one_by_one(jobs, remove)
    finally:
        if not detach and not client.is_dry_run:
            until_stopped(client, removed)


def _jobs(client: Client) -> list[Any]:
    """The rows of all jobs."""
    reply = client.call("ListServices", control_pb2.ListServicesRequest())
    return [row for row in reply.services if from_proto(row.service).spec.mode.is_job]


def _job(client: Client, word: str) -> Any:
    """The row of the job with this name, id or id prefix."""
    rows = _jobs(client)
    named = [row for row in rows if word in (row.service.spec.name, row.service.id)]
    begun = [row for row in rows if row.service.id.startswith(word)]
    if len(found := named or begun) == 1:
        return found[0]
    if found:
        raise CliError(f"'{word}' is a prefix of {len(found)} job ids; use a longer one")
    meant = near_miss(word, [row.service.spec.name for row in rows])
    hint = f"did you mean '{meant}'?" if meant else "see 'orc job ls'"
    raise CliError(f"no job '{word}'; {hint}")
