# SPDX-License-Identifier: Apache-2.0
"""A manager's services, called over mutual TLS; errors as one line for the user.

Endpoints are tried in order until one accepts a connection, so that a refused or silent one is
named with the operating system's own reason within about three seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from orchestrator.cli.app.completion_names import completes
from orchestrator.cli.app.contexts import Context, load_context
from orchestrator.cli.app.errors import CliError, ManagerLost, Refused
from orchestrator.cli.rpc.certificate_renewal import renew_if_due

if TYPE_CHECKING:
    from orchestrator.cli.rpc.calls import Call, Method, RpcError
    from orchestrator.cli.rpc.http2_connection import Connection, ConnectionBroken


F = TypeVar("F", bound=Callable[..., Any])

MANAGER_NAME = "manager.orc"
"""The DNS name that every manager's certificate carries."""

REACH_TIMEOUT = 3.0
"""Timeout in seconds for connecting to some manager."""

CALL_TIMEOUT = 30.0
"""Default timeout of a call in seconds."""


RECONNECT_PAUSE = 0.5
"""Seconds between two attempts to reach a lost manager."""


class Client:
    """Calls of one cluster's services. Nothing is opened before the first call.

    `reach` is how long, in seconds, some manager has for accepting a connection.
    A method is named `Method` of the Control service, or `Service.Method` of another.
    """

    is_dry_run = False
    """Whether changes are only recorded for a dry run (`orc plan`)."""

    def __init__(self, context: Context, reach: float = REACH_TIMEOUT) -> None:
        self._context = context
        self._reach = reach
        self._connection: Connection | None = None
        self._methods: dict[str, Method] = {}
        self._tried: list[str] = []
        """Endpoints that failed, with the reason, until one answers."""
        self._endpoints = list(context.endpoints)
        self.trace = ""
        """The command's trace context (traceparent)."""
        self._spoke = False
        """Whether a manager has answered: then the certificates are right."""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        if self._spoke and not self.is_dry_run:
            renew_if_due(self._context, self.call)
        self.close()

    @property
    def context(self) -> Context:
        """The cluster that is called."""
        return self._context

    @property
    def endpoint(self) -> str:
        """`HOST:PORT` of the manager that is called, or will be."""
        return self._endpoints[0]

    def close(self) -> None:
        """Drop the connection; the next call opens another."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def record_step(self, step: Any) -> None:
        """Called with each step before it is made; a dry run records it."""

    def call(self, method: str, request: Any, timeout: float = CALL_TIMEOUT) -> Any:
        """Call a unary method. Raises CliError (ManagerLost when no manager could be reached)."""
        from orchestrator.cli.rpc.calls import RpcError
        from orchestrator.cli.rpc.http2_connection import ConnectionBroken

        while True:
            try:
                reply = self._begin(method, request, timeout).one()
                self._spoke = True
                return reply
            except RpcError as error:
                self._raise(error, timeout)
            except ConnectionBroken as broken:
                self._next_or_raise(broken)

    def stream(
        self,
        method: str,
        request: Any,
        timeout: float | None = None,
        opened: Callable[[Any], None] = lambda call: None,
    ) -> Generator[Any]:
        """Call a method that streams its answer; `request` may be an iterable of messages, and
        what that raises is raised here.

        `opened` is given the call, which other threads may cancel. `timeout` bounds the whole
        stream: when it has passed, TimeoutError is raised. Closing the iterator cancels the call.
        Raises CliError like `call`.
        """
        from orchestrator.cli.rpc.calls import Code, RpcError
        from orchestrator.cli.rpc.http2_connection import ConnectionBroken

        call: Call | None = None
        try:
            call = self._begin(method, request, timeout)
            opened(call)
            for message in call:
                self._spoke = True
                yield message
        except RpcError as error:
            if timeout is not None and error.code is Code.DEADLINE_EXCEEDED:
                raise TimeoutError from None
            self._raise(error, timeout or 0.0)
        except ConnectionBroken as broken:
            self._raise_broken(broken)
        finally:
            if call is not None:
                call.cancel()

    def _begin(self, name: str, request: Any, timeout: float | None) -> Call:
        from orchestrator.cli.rpc.calls import Call, Method

        connection = self._open()
        if name not in self._methods:
            service, _, method = name.rpartition(".")
            self._methods[name] = Method(service or "Control", method)
        return Call(connection, self._methods[name], request, timeout, self.trace)

    def _open(self) -> Connection:
        """A connection to the first endpoint, from the current one on, that is a manager."""
        from orchestrator.cli.rpc import calls

        if self._connection is not None:
            return self._connection
        context = self._context
        share = self._reach / max(1, len(self._endpoints))
        timeout = max(self._reach / REACH_TIMEOUT, share)
        while self._endpoints:
            endpoint = self._endpoints[0]
            try:
                self._connection = self._connect(timeout)
                return self._connection
            except calls.WrongCertificate as error:
                raise CliError(
                    f"the certificate of {endpoint} is not of this cluster ({error}); context "
                    f"{context.name!r} is of another cluster, or another program listens there"
                ) from None
            except calls.NotTls:
                raise CliError(
                    f"{endpoint} does not speak TLS 1.3 as a manager does; does another program "
                    "listen there?"
                ) from None
            except calls.BadContext:
                raise CliError(
                    f"the certificates of context {context.name!r} cannot be read; make a new one "
                    "with 'orc context create'"
                ) from None
            except OSError as error:
                self._skip(_reason(error))
        raise self._unreachable()

    def _skip(self, reason: str) -> None:
        self._tried.append(f"{self._endpoints.pop(0)}: {reason}")

    def _unreachable(self) -> ManagerLost:
        ports = sorted({endpoint.rpartition(":")[2] for endpoint in self._context.endpoints})
        text = (
            f"cannot reach a manager at {', '.join(self._tried)}; is 'orc manager' running there, "
            f"and is port {' and '.join(ports)} open?"
        )
        # The next call starts over.
        self._endpoints, self._tried = list(self._context.endpoints), []
        return ManagerLost(text)

    def _next_or_raise(self, broken: ConnectionBroken) -> None:
        """Try the next endpoint if this one never answered; else raise."""
        reason = "no answer" if broken.silent else self._gone(broken)
        if self._spoke or broken.greeted or not reason:
            self._raise_broken(broken)
        self.close()
        self._skip(reason)
        if not self._endpoints:
            raise self._unreachable()

    def _raise_broken(self, broken: ConnectionBroken) -> NoReturn:
        self.close()
        endpoint = self._endpoints[0]
        if not (self._spoke or broken.greeted or broken.silent) and self._refused():
            # The handshake succeeded; our certificate was rejected right after it.
            raise CliError(
                f"the manager at {endpoint} refused the certificate of context "
                f"{self._context.name!r}; it has expired or is of another cluster, so make a new "
                "one with 'orc cluster admin', on a manager's host"
            )
        raise ManagerLost(
            f"the connection to the manager at {endpoint} broke; is it still running?"
        )

    def _gone(self, broken: ConnectionBroken) -> str:
        """Why the manager does not accept connections; empty if it does, or spoke HTTP/2."""
        from orchestrator.cli.rpc import calls

        if broken.greeted:
            return ""
        try:
            calls.check_reachable(_split(self._endpoints[0]), within=self._reach)
        except OSError as error:
            return _reason(error)
        return ""

    def _refused(self) -> bool:
        """Whether the manager rejects our certificate: then it closes each connection before its
        first frame. A manager that died does so once."""
        from orchestrator.cli.rpc import calls

        try:
            connection = self._connect(self._reach)
        except (OSError, calls.WrongCertificate, calls.NotTls):
            return False
        try:
            return not connection.await_greeting(self._reach)
        except TimeoutError:
            return False
        finally:
            connection.close()

    def _connect(self, within: float) -> Connection:
        """A connection to the current endpoint; see `calls.connect`."""
        from orchestrator.cli.rpc import calls

        return calls.connect(
            _split(self._endpoints[0]),
            name=MANAGER_NAME,
            ca=self._context.ca,
            certificate=self._context.certificate,
            key=self._context.key,
            within=within,
        )

    def _raise(self, error: RpcError, timeout: float) -> NoReturn:
        from orchestrator.cli.rpc.calls import Code

        endpoint, code, details = self._endpoints[0], error.code, error.details
        if code is Code.CANCELLED:
            self.close()
            raise ManagerLost(f"the manager at {endpoint} ended the call; try again")
        if code is Code.DEADLINE_EXCEEDED:
            raise ManagerLost(
                f"the manager at {endpoint} did not answer within {timeout:g} seconds; "
                "see its log, and try again"
            )
        if code is Code.UNIMPLEMENTED:
            raise CliError(
                f"the manager at {endpoint} does not support this command; is it an older version?"
            )
        if code is Code.UNAVAILABLE:
            raise ManagerLost(details or f"the manager at {endpoint} cannot serve; try again")
        if code is Code.UNKNOWN:
            raise CliError(f"the manager at {endpoint} failed: {details}; see its log")
        refused = Refused(details or f"the manager refused: {code.name.lower()}")
        refused.conflict = code is Code.ABORTED
        refused.missing = code is Code.NOT_FOUND
        raise refused


_TRACING = (
    "TRACEPARENT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
)
"""Environment variables of OpenTelemetry that enable traces of commands."""

CLIENT_FACTORY = "orchestrator.cli.rpc.client"
"""Key of click's `meta`: the factory of commands' clients, by default `Client`."""


def pass_client(function: F) -> F:
    """Give a command the option `--context` and, as its first argument, a Client."""

    @click.option(
        "--context",
        "context_name",
        metavar="NAME",
        shell_complete=completes("contexts"),
        help="The context of the cluster to call.",
    )
    @click.pass_context
    def command(ctx: click.Context, /, context_name: str | None, **kwargs: Any) -> Any:
        name = context_name or ctx.find_root().params.get("context_name")
        kind: Callable[[Context], Client] = ctx.meta.get(CLIENT_FACTORY, Client)
        client = kind(load_context(name))
        if any(variable in os.environ for variable in _TRACING):
            client.trace = ctx.with_resource(_traced(ctx.command_path))
        ctx.with_resource(client)
        return ctx.invoke(function, client, **kwargs)

    return update_wrapper(command, function)  # type: ignore[return-value]


@contextmanager
def _traced(command: str) -> Iterator[str]:
    """The trace context of a command while it runs, below TRACEPARENT if set, as build systems do.
    A problem with traces never fails a command."""
    from orchestrator.tracing.configuration import tracer
    from orchestrator.tracing.spans import TracingError

    above = os.environ.get("TRACEPARENT", "")
    try:
        traces = tracer("orc", str(os.getpid()))
    except TracingError:
        yield above
        return
    if not traces.on:
        yield above
        return
    with closing(traces), traces.span(command, above, kind="client") as place:
        yield place


def upload(header: Any, chunks: Iterable[bytes]) -> Iterator[Any]:
    """Messages of an ImageUpload."""
    from orchestrator.pb import control_pb2

    yield control_pb2.ImageUpload(header=header)
    for chunk in chunks:
        yield control_pb2.ImageUpload(data=chunk)


def _reason(error: OSError) -> str:
    """The reason of a failed connection, in lower case."""
    if isinstance(error, TimeoutError):
        return "no answer"
    return (error.strerror or str(error)).lower()


def _split(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)
