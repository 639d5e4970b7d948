"""A manager's services, called over mutual TLS; gRPC errors as one line for the user.

Endpoints are tried in order until one accepts a connection, so that a refused or silent one is
named with the operating system's own reason within about three seconds.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import update_wrapper
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from orchestrator.cli.context import Context, load_context
from orchestrator.cli.groups import CliError

if TYPE_CHECKING:
    import grpc

F = TypeVar("F", bound=Callable[..., Any])

MANAGER_NAME = "manager.orc"
"""The DNS name that every manager's certificate carries."""

REACH_TIMEOUT = 3.0
"""Seconds in which some manager must accept a connection."""

CALL_TIMEOUT = 30.0
"""Seconds that a manager may take for an answer."""

# What gRPC's core says of a connection that failed, as opposed to what a manager says itself.
_TRANSPORT_WORDS = (
    "failed to connect",
    "socket closed",
    "connection reset",
    "broken pipe",
    "recvmsg",
    "sendmsg",
    "goaway",
    "handshak",
    "keepalive",
    "ping timeout",
    "endpoint closing",
    "transport closed",
    "stream removed",
)


class ManagerLost(CliError):
    """No manager can be reached or can serve; trying again may help."""


class Client:
    """Calls of one cluster's services. Nothing is opened before the first call.

    A method is named `Method` of the Control service, or `Service.Method` of another.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._channel: grpc.Channel | None = None
        self._stubs: dict[str, Any] = {}
        self._tried: list[str] = []
        """Endpoints that failed, with the reason, until one has answered."""
        self._endpoints = list(context.endpoints)
        self._spoke = False
        """Whether a manager has answered: then the certificates are right."""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection; the next call opens another."""
        if self._channel is not None:
            self._channel.close()
        self._channel = None
        self._stubs.clear()

    def call(self, method: str, request: Any, timeout: float = CALL_TIMEOUT) -> Any:
        """Call a unary method. Raises CliError (ManagerLost when no manager could be reached)."""
        import grpc

        while True:
            rpc = self._method(method)
            try:
                reply = rpc(request, timeout=timeout)
                self._spoke = True
                return reply
            except grpc.RpcError as error:
                self._next_or_raise(error, timeout)

    def stream(
        self,
        method: str,
        request: Any,
        timeout: float | None = None,
        opened: Callable[[Any], None] = lambda call: None,
    ) -> Generator[Any]:
        """Call a method that streams its answer; `request` may be an iterator of messages.

        `opened` is given the gRPC call, which other threads may cancel. `timeout` bounds the whole
        stream: when it has passed, TimeoutError is raised. Closing the iterator cancels the call.
        Raises CliError like `call`.
        """
        import grpc

        messages = self._method(method)(request, timeout=timeout)
        opened(messages)
        try:
            for message in messages:
                self._spoke = True
                yield message
        except grpc.RpcError as error:
            if timeout is not None and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TimeoutError from None
            self._raise(error, timeout or 0.0)
        finally:
            messages.cancel()

    def _method(self, name: str) -> Any:
        """A method of a stub. Only the module of its service is imported: each takes its time."""
        service, _, method = name.rpartition(".")
        service = service or "Control"
        channel = self._open()
        if service not in self._stubs:
            module = import_module(f"orchestrator.pb.{service.lower()}_pb2_grpc")
            self._stubs[service] = getattr(module, f"{service}Stub")(channel)
        return getattr(self._stubs[service], method)

    def _open(self) -> grpc.Channel:
        if self._channel is not None:
            return self._channel
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        endpoint = self._reachable()
        import grpc

        context = self._context
        self._channel = grpc.secure_channel(
            endpoint,
            grpc.ssl_channel_credentials(
                context.ca.encode(), context.key.encode(), context.certificate.encode()
            ),
            options=[
                ("grpc.ssl_target_name_override", MANAGER_NAME),
                ("grpc.enable_http_proxy", 0),
                ("grpc.keepalive_time_ms", 2000),
                ("grpc.keepalive_timeout_ms", 2000),
                ("grpc.http2.max_pings_without_data", 0),
                ("grpc.max_receive_message_length", 64 << 20),
                # Also how long one attempt to connect may take.
                ("grpc.min_reconnect_backoff_ms", int(REACH_TIMEOUT * 1000)),
            ],
        )
        return self._channel

    def _reachable(self) -> str:
        """The first endpoint, from the one in turn, that accepts a connection."""
        timeout = max(1.0, REACH_TIMEOUT / max(1, len(self._endpoints)))
        while self._endpoints:
            endpoint = self._endpoints[0]
            try:
                socket.create_connection(_split(endpoint), timeout).close()
                return endpoint
            except TimeoutError:
                self._skip("no answer")
            except OSError as error:
                self._skip((error.strerror or str(error)).lower())
        raise self._unreachable()

    def _skip(self, reason: str) -> None:
        self._tried.append(f"{self._endpoints.pop(0)}: {reason}")

    def _unreachable(self) -> ManagerLost:
        ports = sorted({endpoint.rpartition(":")[2] for endpoint in self._context.endpoints})
        text = (
            f"cannot reach a manager at {', '.join(self._tried)}; is 'orc manager' running there, "
            f"and is port {' and '.join(ports)} open?"
        )
        # The next call, if there is one, begins anew.
        self._endpoints, self._tried = list(self._context.endpoints), []
        return ManagerLost(text)

    def _next_or_raise(self, error: grpc.RpcError, timeout: float) -> None:
        """Go on to the next endpoint if this one never spoke gRPC with us; else raise."""
        if self._spoke or not _connecting(error):
            self._raise(error, timeout)
        self.close()
        if problem := _tls_problem(self._endpoints[0], self._context):
            raise problem
        self._skip("no answer")
        if not self._endpoints:
            raise self._unreachable()

    def _raise(self, error: grpc.RpcError, timeout: float) -> NoReturn:
        import grpc

        endpoint, code = self._endpoints[0], error.code()
        details = (error.details() or "").strip()
        if code is grpc.StatusCode.CANCELLED:
            self.close()
            raise ManagerLost(f"the manager at {endpoint} ended the call; try again")
        if _connecting(error):
            self.close()
            problem = None if self._spoke else _tls_problem(endpoint, self._context)
            raise problem or ManagerLost(
                f"the connection to the manager at {endpoint} broke; is it still running?"
            )
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise ManagerLost(
                f"the manager at {endpoint} did not answer within {timeout:g} seconds; "
                "see its log, and try again"
            )
        if code is grpc.StatusCode.UNIMPLEMENTED:
            raise CliError(
                f"the manager at {endpoint} does not know this command; is it of an older version?"
            )
        if code is grpc.StatusCode.UNAVAILABLE:
            raise ManagerLost(details or f"the manager at {endpoint} cannot serve; try again")
        if code is grpc.StatusCode.UNKNOWN:
            raise CliError(f"the manager at {endpoint} failed: {details}; see its log")
        refused = Refused(details or f"the manager refused: {code.name.lower()}")
        refused.conflict = code is grpc.StatusCode.ABORTED
        raise refused


class Refused(CliError):
    """What a manager answered, in its own words."""

    conflict = False
    """What the request was made from has changed meanwhile: read again, and try again."""


def pass_client(function: F) -> F:
    """Give a command the option `--context` and, as its first argument, a Client."""

    @click.option("--context", "context_name", metavar="NAME", help="The cluster to speak to.")
    @click.pass_context
    def command(ctx: click.Context, /, context_name: str | None, **kwargs: Any) -> Any:
        name = context_name or ctx.find_root().params.get("context_name")
        client = ctx.with_resource(Client(load_context(name)))
        return ctx.invoke(function, client, **kwargs)

    return update_wrapper(command, function)  # type: ignore[return-value]


def upload(header: Any, chunks: Iterable[bytes], failed: list[BaseException]) -> Iterator[Any]:
    """Messages of an ImageUpload. gRPC drops what an iterator of requests raises, so it is put
    in `failed` for the caller to raise."""
    from orchestrator.pb import control_pb2

    try:
        yield control_pb2.ImageUpload(header=header)
        for chunk in chunks:
            yield control_pb2.ImageUpload(data=chunk)
    except Exception as error:
        failed.append(error)
        raise


def _split(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


def _is_transport(details: str) -> bool:
    lowered = details.lower()
    return any(word in lowered for word in _TRANSPORT_WORDS)


def _connecting(error: grpc.RpcError) -> bool:
    """Whether a call failed for want of a connection."""
    import grpc

    if error.code() is not grpc.StatusCode.UNAVAILABLE:
        return False
    return _is_transport(error.details() or "")


def _tls_problem(endpoint: str, context: Context) -> CliError | None:
    """Why TLS with an endpoint that accepts connections cannot work, if that is what it is."""
    # Takes its time, and is not needed where all is well.
    import ssl

    check = ssl.create_default_context(cadata=context.ca)
    try:
        with (
            socket.create_connection(_split(endpoint), REACH_TIMEOUT) as plain,
            check.wrap_socket(plain, server_hostname=MANAGER_NAME),
        ):
            pass
    except ssl.SSLCertVerificationError as error:
        return CliError(
            f"the certificate of {endpoint} is not of this cluster ({error.verify_message}); "
            f"context {context.name!r} is of another one, or something else listens there"
        )
    except TimeoutError:
        return None
    except ssl.SSLError:
        return CliError(
            f"{endpoint} does not speak TLS 1.3 as a manager does; does something else listen "
            "there?"
        )
    except OSError:
        return None
    # Without a certificate of ours the handshake gets this far; with it, it did not.
    return CliError(
        f"the manager at {endpoint} refused the certificate of context {context.name!r}; it has "
        "expired or is of another cluster, so make a new one with 'orc context create'"
    )
