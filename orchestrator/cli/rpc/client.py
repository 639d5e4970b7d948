# SPDX-License-Identifier: Apache-2.0
"""A manager's services, called over mutual TLS; errors as one line for the user.

Endpoints are tried in order until one accepts a connection, for about three seconds; then each is
named with the operating system's own reason. That bridges the restart of a manager that is the
only one, as does the repetition of calls in progress.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from orchestrator import __version__
from orchestrator.cli.app.completion_names import context_option
from orchestrator.cli.app.contexts import Context, learn_endpoints, list_contexts, load_context
from orchestrator.cli.app.errors import CliError, ManagerLost, Refused, Unsupported
from orchestrator.cli.rpc.certificate_renewal import renew_if_due
from orchestrator.cli.rpc.managers_seen import (
    AVOIDED_FOR,
    ManagersSeen,
    by_preference,
    load_seen,
    save_seen,
)
from orchestrator.cli.rpc.retries import changes, may_repeat

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


REPEAT_WITHIN = 10.0
"""Seconds after a call's beginning within which it is repeated when a manager cannot serve it."""

_RETRY = "orc-retry"
"""Trailer of a call that the same manager can probably serve in a moment."""

_PING_AFTER_WITH_ALTERNATIVES = 1.0
"""Seconds of silence after which a manager is pinged, if there are others."""

RECONNECT_PAUSE = 0.5
"""Seconds between two attempts to reach a lost manager."""


class Client:
    """Calls of one cluster's services. Nothing is opened before the first call.

    `reach` is how long, in seconds, some manager has for accepting a connection.
    A method is named `Method` of the Control service, or `Service.Method` of another.

    A manager that fails is left for another one, and calls that may be repeated (`retries`) are. If
    no other is left, they are repeated at the same ones within `REPEAT_WITHIN`. Every reply names
    the managers that serve, which the context learns.
    """

    is_dry_run = False
    """Whether changes are only recorded for a dry run (`orc plan`)."""

    def __init__(self, context: Context, reach: float = REACH_TIMEOUT) -> None:
        self._context = context
        self._reach = reach
        self._connection: Connection | None = None
        self._methods: dict[str, Method] = {}
        self._seen = load_seen(context.name)
        self._managers = self._seen.managers
        """As named by the newest reply."""
        self._revision = self._seen.revision
        """Newest store revision that a reply has shown."""
        self._wrote = False
        self._silent = dict(self._seen.silent)
        self._endpoints = by_preference(context.endpoints, self._seen)
        """The first is the one that is called."""
        self._failed: dict[str, str] = {}
        """Endpoints that failed, with the reason, until one answers."""
        self.trace = ""
        """The command's trace context (traceparent)."""
        self._spoke = False
        self._renew = False
        """Whether a manager has answered: then the certificates are right."""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.renew()
        self.close()
        self._remember()

    def renew(self) -> None:
        """Renew the context's certificate in its file, if that is due and a manager has answered.
        What goes wrong is retried later."""
        if self._spoke and not self.is_dry_run:
            renew_if_due(self._context, self.call, at_once=self._renew)

    @property
    def context(self) -> Context:
        """The cluster that is called."""
        return self._context

    @property
    def revision(self) -> int:
        """The newest store revision that a reply has shown; 0: unknown. Replies are not older."""
        return self._revision

    @revision.setter
    def revision(self, revision: int) -> None:
        self._revision = revision

    @property
    def endpoint(self) -> str:
        """`HOST:PORT` of the manager that is called, or will be."""
        return self._endpoints[0]

    @property
    def has_alternatives(self) -> bool:
        """Whether there are further endpoints to try."""
        return len(self._endpoints) + len(self._failed) > 1

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

        request_id, attempt = os.urandom(8).hex(), 0
        repeats, until = may_repeat(_full_name(method)), time.monotonic() + REPEAT_WITHIN
        while True:
            attempt += 1
            metadata = self._metadata(request_id, attempt)
            sent: list[Call] = []
            try:
                sent.append(self._begin(method, request, timeout, metadata))
                reply = sent[0].one()
                self._take(sent[0], metadata, changes(_full_name(method)))
                return reply
            except RpcError as error:
                endpoint, late = self.endpoint, time.monotonic() > until
                if late or not (repeats and self._may_recover(error, sent[0])):
                    self._raise(error, timeout, endpoint)
            except ConnectionBroken as broken:
                if (not sent or repeats) and self._leave(broken):
                    continue
                if not (repeats and self._starts_over(broken, until)):
                    self._next_or_raise(broken)
            except ManagerLost:
                # None could be reached. The first attempt has waited for one.
                if attempt == 1 or time.monotonic() > until:
                    raise
                time.sleep(RECONNECT_PAUSE)

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
        Raises CliError like `call`; ManagerLost once the answer has begun, as the caller alone
        knows where to go on.
        """
        from orchestrator.cli.rpc.calls import Code, RpcError
        from orchestrator.cli.rpc.http2_connection import ConnectionBroken

        repeats = hasattr(request, "SerializeToString") and may_repeat(_full_name(method))
        request_id, attempt, begun = os.urandom(8).hex(), 0, False
        until = time.monotonic() + REPEAT_WITHIN
        while True:
            call: Call | None = None
            attempt += 1
            try:
                metadata = self._metadata(request_id, attempt)
                call = self._begin(method, request, timeout, metadata)
                opened(call)
                for message in call:
                    if not begun:
                        self._take(call, metadata, changes(_full_name(method)))
                    begun = True
                    yield message
                return
            except RpcError as error:
                if timeout is not None and error.code is Code.DEADLINE_EXCEEDED:
                    raise TimeoutError from None
                assert call is not None
                endpoint, late = self.endpoint, begun or time.monotonic() > until
                if not (repeats and self._may_recover(error, call, late)) or late:
                    self._raise(error, timeout or 0.0, endpoint)
            except ConnectionBroken as broken:
                left = self._leave(broken)
                # With the headers, the caller has a position from which it goes on.
                begun = begun or (call is not None and "orc-revision" in call.metadata)
                if begun or not repeats:
                    self._raise_broken(broken, left)
                if not left and not self._starts_over(broken, until):
                    self._next_or_raise(broken)
            except ManagerLost:
                if attempt == 1 or begun or time.monotonic() > until:
                    raise
                time.sleep(RECONNECT_PAUSE)
            finally:
                if call is not None:
                    call.cancel()

    def _metadata(self, request_id: str, attempt: int) -> dict[str, str]:
        found = {
            "orc-version": __version__,
            "orc-request-id": request_id,
            "orc-attempt": str(attempt),
        }
        if self._revision:
            found["orc-revision"] = str(self._revision)
        if self.trace:
            found["traceparent"] = self.trace
        return found

    def _take(self, call: Call, asked: Mapping[str, str], wrote: bool) -> None:
        """Process a reply's metadata."""
        self._spoke = True
        self._renew |= "orc-renew" in call.metadata
        if self._failed:
            # They are tried again after this one.
            self._endpoints += self._failed
            self._failed = {}
        self._wrote |= wrote
        revision = call.metadata.get("orc-revision", "")
        if revision.isdecimal():
            shown, wanted = int(revision), int(asked.get("orc-revision", "0"))
            # A lower one than was asked for: the cluster was restored from a backup.
            self._revision = shown if shown < wanted else max(shown, self._revision)
        managers = tuple(filter(None, call.metadata.get("orc-managers", "").split(",")))
        if managers and managers != self._managers and (len(managers) > 1 or self._managers):
            self._endpoints = [
                each
                for number, each in enumerate(self._endpoints)
                if number == 0 or each in managers or each not in self._managers
            ]
            self._endpoints += [each for each in managers if each not in self._endpoints]
            self._managers = managers

    def _remember(self) -> None:
        """Keep what was learnt about the managers."""
        if not self._spoke or not (self._managers or len(self._context.endpoints) > 1):
            return
        if self._managers != self._seen.managers:
            learn_endpoints(self._context, self._managers, self._seen.managers)
        revision = self._revision if self._wrote else self._seen.revision
        now = time.time()
        silent = {each: until for each, until in self._silent.items() if until > now}
        newest = ManagersSeen(revision, self._managers, silent)
        if newest != self._seen and self._context.name in list_contexts():
            save_seen(self._context.name, newest)

    def _begin(
        self, name: str, request: Any, timeout: float | None, metadata: Mapping[str, str]
    ) -> Call:
        from orchestrator.cli.rpc.calls import Call, Method

        connection = self._open()
        if name not in self._methods:
            service, _, method = name.rpartition(".")
            self._methods[name] = Method(service or "Control", method)
        return Call(connection, self._methods[name], request, timeout, metadata.items())

    def _may_recover(self, error: RpcError, call: Call, late: bool = False) -> bool:
        """Prepare another attempt where a manager could not serve, if it may succeed: at another
        manager, or if none is left, and unless it is `late`, at the same ones after a pause."""
        from orchestrator.cli.rpc.calls import Code

        if error.code not in (Code.UNAVAILABLE, Code.CANCELLED):
            return False
        if len(self._endpoints) > 1:
            self.close()
            self._skip(error.details or "it ended the call")
            return True
        # Without a status, the manager reset the stream, as one that stops does.
        ended = error.code is Code.CANCELLED or "grpc-status" not in call.metadata
        if late or not (ended or _RETRY in call.metadata):
            return False
        self._start_over()
        return True

    def _starts_over(self, broken: ConnectionBroken, until: float) -> bool:
        """Prepare another attempt after a pause, unless the peer never spoke as a manager, or it is
        later than `until`."""
        if time.monotonic() > until or not (broken.greeted or self._spoke):
            return False
        self._start_over()
        return True

    def _start_over(self) -> None:
        """Wait until it is time to try all managers again, in the same order."""
        self.close()
        self._endpoints, self._failed = [*self._failed, *self._endpoints], {}
        time.sleep(RECONNECT_PAUSE)

    def _leave(self, broken: ConnectionBroken) -> bool:
        """Leave a manager whose connection broke for another one, if one is left that has not
        failed."""
        if len(self._endpoints) < 2 or not (broken.greeted or self._spoke):
            return False
        self.close()
        self._skip("no answer" if broken.silent else "the connection broke", broken.silent)
        return True

    def _open(self) -> Connection:
        """A connection to the first endpoint, from the current one on, that is a manager. Endpoints
        that refuse are tried again until `reach` is over: a manager may be restarting."""
        until = time.monotonic() + self._reach
        while self._connection is None:
            refusing = self._try_endpoints()
            if self._connection is None:
                if not refusing or time.monotonic() + RECONNECT_PAUSE > until:
                    raise self._unreachable()
                self._start_over()
        return self._connection

    def _try_endpoints(self) -> bool:
        """Connect to the first endpoint that accepts it; return whether one refused."""
        from orchestrator.cli.rpc import calls

        context, refusing = self._context, False
        share = self._reach / max(1, len(self._endpoints) + len(self._failed))
        timeout = max(self._reach / REACH_TIMEOUT, share)
        while self._endpoints:
            endpoint = self._endpoints[0]
            try:
                self._connection = self._connect(timeout)
                break
            except calls.WrongCertificate as error:
                raise CliError(
                    f"the certificate of {endpoint} is not of this cluster ({error}); context "
                    f"{context.name!r} is of another cluster or from before a rotation of its CA "
                    "(then make a new one with 'orc cluster admin', on a manager's host), or "
                    "another program listens there"
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
                refusing |= isinstance(error, ConnectionError)
                self._skip(_reason(error), isinstance(error, TimeoutError))
        return refusing

    def _skip(self, reason: str, silent: bool = False) -> None:
        """Do not call the current endpoint again until another one has answered, or all failed."""
        endpoint = self._endpoints.pop(0)
        self._failed[endpoint] = reason
        if silent:
            self._silent[endpoint] = time.time() + AVOIDED_FOR

    def _unreachable(self) -> ManagerLost:
        ports = sorted({endpoint.rpartition(":")[2] for endpoint in self._failed})
        tried = ", ".join(f"{endpoint}: {reason}" for endpoint, reason in self._failed.items())
        if any(reason.startswith("etcd is unavailable") for reason in self._failed.values()):
            text = f"no manager can serve the call: {tried}"  # one answered: its ports are open
        else:
            text = (
                f"cannot reach a manager at {tried}; is 'orc manager' running there, "
                f"and is port {' and '.join(ports)} open?"
            )
        # The next call starts over.
        self._endpoints, self._failed = list(self._failed), {}
        return ManagerLost(text)

    def _next_or_raise(self, broken: ConnectionBroken) -> None:
        """Try the next endpoint if this one never answered; else raise."""
        reason = "no answer" if broken.silent else self._gone(broken)
        if self._spoke or broken.greeted or not reason:
            self._raise_broken(broken)
        self.close()
        self._skip(reason, broken.silent)
        if not self._endpoints:
            raise self._unreachable()

    def _raise_broken(self, broken: ConnectionBroken, left: bool = False) -> NoReturn:
        """`left`: another manager is already chosen."""
        self.close()
        endpoint = list(self._failed)[-1] if left else self._endpoints[0]
        if not left and not (self._spoke or broken.greeted or broken.silent) and self._refused():
            # The handshake succeeded; our certificate was rejected right after it.
            raise CliError(
                f"the manager at {endpoint} refused the certificate of context "
                f"{self._context.name!r}; it has expired, is from before a rotation of the CA, "
                "or is of another cluster, so make a new one with 'orc cluster admin', on a "
                "manager's host"
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
            ping_after=_PING_AFTER_WITH_ALTERNATIVES if self.has_alternatives else None,
        )

    def _raise(self, error: RpcError, timeout: float, endpoint: str) -> NoReturn:
        from orchestrator.cli.rpc.calls import Code

        code, details = error.code, error.details
        if code is Code.CANCELLED:
            self.close()
            raise ManagerLost(f"the manager at {endpoint} ended the call; try again")
        if code is Code.DEADLINE_EXCEEDED:
            raise ManagerLost(
                f"the manager at {endpoint} did not answer within {timeout:g} seconds; "
                "see its log, and try again"
            )
        if code is Code.UNIMPLEMENTED:
            raise Unsupported(
                f"the manager at {endpoint} does not support this command; is it an older version?"
            )
        if code is Code.UNAVAILABLE:
            raise ManagerLost(details or f"the manager at {endpoint} cannot serve; try again")
        if code is Code.UNKNOWN:
            raise CliError(f"the manager at {endpoint} failed: {details}; see its log")
        refused = Refused(details or f"the manager refused: {code.name.lower()}")
        refused.conflict = code is Code.ABORTED
        refused.missing = code is Code.NOT_FOUND
        refused.code = int(code)
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

    @context_option()
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


def _full_name(method: str) -> str:
    return method if "." in method else f"Control.{method}"


def _split(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)
