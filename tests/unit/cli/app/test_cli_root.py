# SPDX-License-Identifier: Apache-2.0
"""The root: help, near misses, statuses, completion, contexts, errors of reaching a manager."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import grpc
import pytest
from click.testing import Result
from contextkit import a_context
from scripted_manager import Authority, Refusal

from orchestrator import __version__
from orchestrator.cli.app.contexts import (
    Context,
    current_context,
    list_contexts,
    load_context,
    save_context,
)
from orchestrator.cli.app.errors import CliError
from orchestrator.cli.main import orc
from orchestrator.cli.rpc import client as client_module
from orchestrator.pb import control_pb2 as pb
from orchestrator.pb import types_pb2
from tests.freeports import free_ports

Run = Callable[..., Result]
Refused = Callable[..., str]

OURS = ("node", "service", "network", "context", "cluster", "build", "images", "load")
OURS += ("version", "completion")


def commands() -> Iterator[tuple[list[str], click.Command]]:
    """Every command of this package, with its words."""
    root = click.Context(orc)
    for name in OURS:
        command = orc.get_command(root, name)
        assert command is not None
        yield [name], command
        if isinstance(command, click.Group):
            for sub, child in command.commands.items():
                yield [name, sub], child


@pytest.mark.parametrize("words", [words for words, _ in commands()], ids=" ".join)
def test_every_help_has_an_example(run: Run, words: list[str]) -> None:
    result = run(*words, "--help")
    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert f"orc {words[0]}" in result.stdout.partition("Example")[2]


def test_command_table_matches_the_commands(run: Run) -> None:
    text = run("--help").stdout
    for name in (*OURS, "dev", "manager", "agent"):
        assert f"  {name}" in text
    assert "Daemons and administration:" in text


@pytest.mark.parametrize("words", [(), ("node",), ("service",)])
def test_a_group_alone_shows_its_help(run: Run, words: tuple[str, ...]) -> None:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == run(*words, "--help").stdout


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("help",), ()),
        (("help", "service", "create"), ("service", "create")),
        (("-h",), ()),
    ],
)
def test_alternative_spellings_of_help(
    run: Run, asked: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert run(*asked).stdout == run(*words, "--help").stdout


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (("node", "ls", "--quiet=true"), ("node", "ls", "--quiet")),
        (("node", "ls", "--quiet=false", "--no-trunc=1"), ("node", "ls", "--no-trunc")),
        (("--context", "test", "node", "ls", "--quiet=T"), ("node", "ls", "-q")),
    ],
)
def test_boolean_flag_with_a_value(
    manager: Any, run: Run, words: tuple[str, ...], same: tuple[str, ...]
) -> None:
    node = {"id": "abcdefghijklmnop", "description": {"hostname": "node1"}}
    manager.script.answers["ListNodes"] = pb.ListNodesReply(nodes=[{"node": node}])
    done = run(*words)
    assert (done.exit_code, done.stdout) == (0, run(*same).stdout)


def test_boolean_flag_set_to_false(manager: Any, run: Run, refused: Refused) -> None:
    manager.script.answers["CreateNetwork"] = types_pb2.Network(id="net3")
    run("network", "create", "--internal=true", "--ipv6=false", "back")
    made = manager.script.request("CreateNetwork")
    assert (made.internal, made.ipv6) == (True, False)
    assert refused("node", "ls", "--quiet=maybe", status=2) == (
        "--quiet: 'maybe' is not a boolean; write true or false"
    )


def test_each_command_has_the_short_form_of_help() -> None:
    # A process of its own: click keeps the help option that a command had at first.
    command = [sys.executable, "-m", "orchestrator.cli.main", "node", "ls", "-h"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: orc node ls")


def test_the_short_forms_of_the_root(manager: Any, run: Run, refused: Refused) -> None:
    assert run("-v").stdout == f"orc {__version__}\n"
    assert "no context 'nosuch'" in refused("-c", "nosuch", "node", "ls")
    assert refused("run", "-h", status=2) == "-h needs a value; see 'orc run --help'"


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ("node list", "node ls"),
        ("network remove", "network rm"),
        ("container ps", "container ls"),
        ("image list", "image ls"),
    ],
)
def test_docker_command_aliases(run: Run, other: str, name: str) -> None:
    assert run(*other.split(), "--help").stdout == run(*name.split(), "--help").stdout


def test_help_imports_no_heavy_module() -> None:
    code = (
        "import sys; from orchestrator.cli.main import orc\n"
        "try: orc.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'grpc', 'rich', 'google.protobuf', 'cryptography', 'asyncio'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nod", "ls"], "'orc nod' is not a command; did you mean 'orc node'?"),
        (["zzzz"], "'orc zzzz' is not a command"),
        (
            ["service", "crate"],
            "'orc service crate' is not a command; did you mean 'orc service create'?",
        ),
        (["node", "ls", "--fromat", "json"], "has no option --fromat; did you mean --format?"),
        (["node", "ls", "--format", "xml"], "--format: 'xml' is not one of 'table', 'json'"),
        (["node", "inspect"], "NODES... is missing; see 'orc node inspect --help'"),
        (
            ["service", "update", "web", "--image"],
            "--image needs a value; see 'orc service update --help'",
        ),
        (["tag", "a"], "NAME is missing; see 'orc tag --help'"),
        (["run", "-rm", "hello:1"], "'orc run' has no option -r; did you mean --rm?"),
        (["run", "-net=back", "hello:1"], "'orc run' has no option -n; did you mean --net?"),
        (["run", "-x", "hello:1"], "'orc run' has no option -x; see 'orc run --help'"),
        (["help", "crate"], "'orc crate' is not a command; did you mean 'orc create'?"),
        (["node", "remov"], "'orc node remov' is not a command"),
        (["ls"], "'orc ls' is not a command"),
        (["node", "ls", "--filter", "rol=x"], "filter 'rol' is unknown here; did you mean 'role'?"),
        (["node", "ls", "--filter", "role"], "filter 'role' is not of the form KEY=VALUE"),
    ],
)
def test_usage_errors(refused: Refused, words: list[str], line: str) -> None:
    assert line in refused(*words, status=2)


def test_no_cluster(refused: Refused) -> None:
    assert refused("node", "ls") == (
        "no cluster is set up here; run 'orc dev up' for one on this machine, or 'orc cluster init'"
    )


def test_debug_shows_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORC_DEBUG", "1")
    with pytest.raises(CliError):
        run("node", "ls")


def test_unforeseen_error_is_one_line(
    manager: Any, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(client_module.Client, "call", broken)
    assert refused("node", "ls") == "RuntimeError: first second; set ORC_DEBUG=1 to see where"


def test_broken_pipe_is_silent(manager: Any) -> None:
    manager.script.answers["ListNodes"] = pb.ListNodesReply()
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli.main", "node", "ls"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    # Quiet, with click's status for it.
    assert (done.returncode, done.stderr) == (1, "")


# --- version, completion


def test_version(manager: Any, run: Run) -> None:
    manager.script.answers["GetCluster"] = pb.ClusterInfo(id="c1", version="9.9")
    document = json.loads(run("version", "--format", "json").stdout)
    assert document["client"]["version"] == __version__
    assert document["server"] == {"version": "9.9", "cluster": "c1"}
    assert run("--version").stdout == f"orc {__version__}\n"


def test_version_without_a_cluster(run: Run) -> None:
    result = run("version", "--format", "json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["server"] is None


def test_version_with_an_unreachable_manager(manager: Any, run: Run) -> None:
    manager.script.answers["GetCluster"] = lambda _: (_ for _ in ()).throw(RuntimeError("x"))
    result = run("version")
    assert result.exit_code == 1
    assert f"Client: {__version__}" in result.stdout
    assert "failed" in result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(run: Run, shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert "_ORC_COMPLETE" in result.stdout


def complete(run: Run, *words: str) -> list[str]:
    """What a shell would be offered for these words, the last of which is being typed."""
    env = {"_ORC_COMPLETE": "bash_complete", "ORC_LINE": " ".join(["orc", *words])}
    lines = run(env=env).stdout.splitlines()
    return [line.split("\t")[1] for line in lines if line]


def test_completion_of_commands(run: Run) -> None:
    assert complete(run, "ser") == ["service"]
    assert complete(run, "service", "sc") == ["scale"]


def test_completion_of_live_names(manager: Any, run: Run) -> None:
    answers = manager.script.answers
    answers["ListServices"] = pb.ListServicesReply(
        services=[{"service": {"spec": {"name": name}}} for name in ("web", "worker", "db")]
    )
    answers["ListNodes"] = pb.ListNodesReply(
        nodes=[{"node": {"description": {"hostname": "node1"}}}]
    )
    answers["ListNetworks"] = pb.ListNetworksReply(networks=[{"name": "front"}])
    answers["ListImages"] = pb.ListImagesReply(images=[{"names": ["hello:1"]}])
    assert complete(run, "service", "ps", "w") == ["web", "worker"]
    assert complete(run, "service", "scale", "we") == ["web="]
    assert complete(run, "node", "inspect", "") == ["node1"]
    assert complete(run, "network", "inspect", "") == ["front"]
    assert complete(run, "service", "create", "he") == ["hello:1"]
    assert complete(run, "context", "use", "") == ["test"]


def test_completion_is_silent_when_nothing_can_be_reached(run: Run) -> None:
    assert complete(run, "service", "ps", "") == []


# --- contexts


def test_context_is_kept_private(config: Path) -> None:
    save_context(a_context())
    file = config / "contexts" / "one.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert load_context() == load_context("one") == a_context()
    assert [path.name for path in file.parent.iterdir()] == ["one.json"]


def test_context_is_chosen_by_flag_environment_and_file(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two", "three"):
        save_context(a_context(name), use=name == "one")
    assert load_context().name == "one"
    monkeypatch.setenv("ORC_CONTEXT", "two")
    assert load_context().name == "two"
    assert load_context("three").name == "three"


def test_context_commands(run: Run, config: Path) -> None:
    save_context(a_context("one"))
    save_context(a_context("two"), use=False)
    assert run("context", "ls").stdout.splitlines() == [
        "NAME    MANAGERS",
        "one *   10.0.0.1:7420",
        "two     10.0.0.1:7420",
    ]
    assert run("context", "use", "two").exit_code == 0
    assert json.loads(run("context", "ls", "--format", "json").stdout)[1] == {
        "id": "two",
        "name": "two",
        "endpoints": ["10.0.0.1:7420"],
        "current": True,
    }
    assert run("context", "rm", "two").exit_code == 0
    assert current_context() is None
    assert run("context", "ls", "-q").stdout == "one\n"


def test_previous_context_becomes_current_again(run: Run, refused: Refused, config: Path) -> None:
    assert refused("context", "use", "-") == "there is no previous context; see 'orc context ls'"
    for name in ("prod", "one", "two"):
        save_context(a_context(name))
    assert run("context", "use", "-").stdout == "one\n"
    assert run("context", "use", "-").stdout == "two\n"
    run("context", "rm", "--back", "one")
    assert current_context() == "two"
    run("context", "rm", "--back", "two")
    assert current_context() == "prod"
    run("context", "rm", "--back", "prod")
    assert current_context() is None


def test_context_errors(refused: Refused, config: Path) -> None:
    save_context(a_context("prod"))
    assert refused("context", "use", "prd") == "no context 'prd'; did you mean 'prod'?"
    assert "see 'orc context ls'" in refused("context", "rm", "zz")
    assert refused("--context", "prd", "node", "ls") == "no context 'prd'; did you mean 'prod'?"
    (config / "contexts" / "prod.json").write_text("{")
    assert refused("node", "ls") == (
        "context 'prod' is broken; remove it with 'orc context rm prod'"
    )
    with pytest.raises(CliError, match=r"context name '\.\./x' is not a DNS label"):
        save_context(a_context("../x"))


def test_context_create(run: Run, refused: Refused, tmp_path: Path, authority: Any) -> None:
    pair = authority.issue("admin")
    files = {"ca": authority.pem, "cert": pair.certificate, "key": pair.key}
    words = ["context", "create", "new", "--endpoint", "10.0.0.1"]
    for kind, text in files.items():
        (tmp_path / kind).write_text(text)
        words += [f"--{kind}", str(tmp_path / kind)]
    assert run(*words).stdout == "new\n"
    assert load_context().endpoints == ("10.0.0.1:7420",)
    assert load_context().key == pair.key
    assert "context 'new' exists already" in refused(*words)
    words[2] = "other"
    words[words.index("--ca") + 1] = str(tmp_path / "key")
    assert "holds no PEM certificate" in refused(*words)
    words[words.index("--ca") + 1] = str(tmp_path / "none")
    assert "No such file" in refused(*words)
    assert list_contexts() == ["new"]


# --- reaching a manager


def test_unreachable_manager(refused: Refused) -> None:
    port = free_ports()
    save_context(a_context(endpoint=f"127.0.0.1:{port}"))
    assert refused("node", "ls") == (
        f"cannot reach a manager at 127.0.0.1:{port}: connection refused; "
        f"is 'orc manager' running there, and is port {port} open?"
    )


def test_silent_manager(manager: Any, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something accepts the connection and then says nothing, as a stopped process does."""
    monkeypatch.setattr(client_module.Client.__init__, "__defaults__", (0.3,))
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
        save_context(Context(**{**_fields(manager.context), "endpoints": (endpoint,)}))
        assert f"cannot reach a manager at {endpoint}: no answer" in refused("node", "ls")


def _fields(context: Context) -> dict[str, Any]:
    return {name: getattr(context, name) for name in Context.__slots__}


def test_next_endpoint_is_tried(manager: Any, run: Run) -> None:
    manager.script.answers["ListNodes"] = pb.ListNodesReply()
    endpoints = (f"127.0.0.1:{free_ports()}", *manager.context.endpoints)
    save_context(Context(**{**_fields(manager.context), "endpoints": endpoints}))
    assert run("node", "ls", "-q").exit_code == 0


def test_manager_of_another_cluster(manager: Any, refused: Refused) -> None:
    foreign = Authority()
    save_context(Context(**{**_fields(manager.context), "ca": foreign.pem}))
    line = refused("node", "ls")
    assert f"the certificate of {manager.context.endpoints[0]} is not of this cluster" in line
    assert "context 'test' is of another cluster" in line


def test_our_certificate_is_refused(manager: Any, refused: Refused) -> None:
    pair = Authority().issue("admin")
    fields = {**_fields(manager.context), "certificate": pair.certificate, "key": pair.key}
    save_context(Context(**fields))
    assert (
        "refused the certificate of context 'test'; it has expired, is from before a rotation of "
        "the CA, or is of another cluster"
    ) in refused("node", "ls")


def test_our_certificate_has_expired(manager: Any, refused: Refused, authority: Any) -> None:
    pair = authority.issue("admin", expired=True)
    fields = {**_fields(manager.context), "certificate": pair.certificate, "key": pair.key}
    save_context(Context(**fields))
    assert "refused the certificate of context 'test'" in refused("node", "ls")


def test_another_program_listens(manager: Any, refused: Refused) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(100)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
        save_context(Context(**{**_fields(manager.context), "endpoints": (endpoint,)}))
        line = refused("node", "ls")
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert f"{endpoint} does not speak TLS 1.3 as a manager does" in line


def test_proxy_of_the_environment_is_not_used(
    manager: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_ports()}")
    manager.script.answers["ListNodes"] = pb.ListNodesReply()
    assert run("node", "ls").exit_code == 0


@pytest.mark.parametrize(
    ("code", "details", "line"),
    [
        ("NOT_FOUND", "no service 'weeb'; did you mean 'web'?", None),
        ("UNAVAILABLE", "no manager leads at the moment; try again in a few seconds", None),
        ("PERMISSION_DENIED", "a certificate with the role 'worker' may not call this", None),
        ("UNAUTHENTICATED", "this needs a certificate of the cluster", None),
        ("RESOURCE_EXHAUSTED", "", "the manager refused: resource_exhausted"),
        ("UNIMPLEMENTED", "Method not found!", "does not support this command; is it an older"),
        ("INTERNAL", "the manager failed: KeyError('x'); see its log", None),
        ("UNKNOWN", "boom", "failed: boom; see its log"),
    ],
)
def test_error_codes_of_a_manager(
    manager: Any, refused: Refused, code: str, details: str, line: str | None
) -> None:
    manager.script.answers["ListTasks"] = Refusal(grpc.StatusCode[code], details)
    shown = refused("service", "ps", "weeb")
    assert shown == details if line is None else line in shown


def test_slow_manager(manager: Any, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    manager.script.answers["ListNodes"] = lambda _: release.wait(10) and pb.ListNodesReply()
    monkeypatch.setattr(client_module.Client.call, "__defaults__", (0.2,))
    line = refused("node", "ls")
    release.set()
    assert "did not answer within 0.2 seconds; see its log" in line
