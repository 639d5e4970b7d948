# SPDX-License-Identifier: Apache-2.0
"""Containers by the docker CLI: as scripts use it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from devcluster import eventually
from dockerclient import BOTH, Docker, Run

pytestmark = [pytest.mark.root, pytest.mark.e2e, BOTH]


def test_run_prints_output_and_exits_with_the_status_of_the_command(
    docker: Docker, box: str
) -> None:
    words = ("run", "--rm", box, "sh", "-c", "echo out; echo err >&2; exit 3")
    done = docker.run(*words, ok=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert docker("ps", "-aq") == ""


def test_run_passes_stdin_to_its_end(docker: Docker, box: str) -> None:
    text = "line\n" * 50_000
    assert docker("run", "--rm", "-i", box, "wc", "-c", stdin=text) == str(len(text))


def test_exit_statuses_of_commands_that_cannot_be_run(docker: Docker, box: str) -> None:
    assert "not found" in docker.refused("run", "--rm", box, "nosuch", status=127)
    assert "denied" in docker.refused("run", "--rm", box, "/www", status=126)
    assert docker("ps", "-aq") == ""


def test_exec_has_output_environment_and_exit_status(docker: Docker, run: Run) -> None:
    run("main", "trap exit TERM; while :; do sleep 0.1; done")
    done = docker.run(
        "exec", "-e", "A=b c", "-w", "/www", "main", "sh", "-c", 'echo "$A" $PWD; exit 5', ok=False
    )
    assert (done.returncode, done.stdout) == (5, "b c /www\n")
    assert docker("exec", "-i", "main", "cat", stdin="x\ny") == "x\ny"
    done = docker.run("exec", "main", "nosuch", ok=False)
    assert done.returncode == 126
    assert "executable file not found" in done.stdout


def test_logs_follow_both_streams_until_the_container_exits(
    docker: Docker, run: Run, tmp_path: Path
) -> None:
    script = "echo one; echo two >&2; until [ -e /go ]; do sleep 0.1; done; echo three"
    id = run("talker", script)
    eventually(lambda: "two" in docker.run("logs", "talker").stderr)
    with docker.following("logs", "-f", "talker") as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "one\n"
        docker("exec", "talker", "touch", "/go")
        assert follower.stdout.read() == "three\n"
    assert docker("wait", "talker") == "0"
    done = docker.run("logs", "talker")
    assert (done.stdout, done.stderr) == ("one\nthree\n", "two\n")
    assert docker("logs", "--tail", "1", id[:12]) == "three"
    stamped = docker("logs", "-t", "--tail", "1", "talker")
    moment, _, text = stamped.partition(" ")
    assert (text, moment[-1], moment[10]) == ("three", "Z", "T")
    assert docker("logs", "--since", moment, "talker") == "three"
    assert "three" not in docker("logs", "--until", moment[:19] + "Z", "talker")


def test_stop_kill_restart_and_start(docker: Docker, run: Run) -> None:
    run("main", "trap 'exit 7' TERM; while :; do sleep 0.1; done")
    assert docker("stop", "main") == "main"
    state = docker.inspect("main")["State"]
    assert (state["Status"], state["ExitCode"], state["Running"]) == ("exited", 7, False)
    docker("start", "main")
    first = docker.inspect("main")["State"]
    assert (first["Status"], first["Running"], first["Pid"] > 0) == ("running", True, True)
    docker("restart", "main")
    assert docker.inspect("main")["State"]["StartedAt"] > first["StartedAt"]
    docker("pause", "main")
    assert docker("ps", "--filter", "status=paused", "--format", "{{.Names}}") == "main"
    docker("unpause", "main")
    docker("kill", "main")
    assert docker("wait", "main") == "137"
    assert "is not running" in docker.refused("kill", "main")


def test_restart_policy_restarts_a_failed_container(docker: Docker, run: Run) -> None:
    run("flaky", "exit 4", "--restart", "on-failure:2")
    eventually(lambda: docker.inspect("flaky")["State"]["Status"] == "exited")
    found = docker.inspect("flaky")
    assert (found["RestartCount"], found["State"]["ExitCode"]) == (2, 4)
    assert found["HostConfig"]["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 2}
    docker("update", "--restart", "no", "flaky")
    assert docker.inspect("flaky")["HostConfig"]["RestartPolicy"]["Name"] == "no"


def test_inspect_has_the_fields_that_scripts_read(docker: Docker, run: Run, box: str) -> None:
    id = run(
        "main",
        "sleep 1000",
        *("-e", "A=1", "-l", "tier=web", "-w", "/www", "--hostname", "here", "-u", "0"),
        *("--memory", "64m", "--cpus", "0.5", "--pids-limit", "50", "--cap-add", "NET_ADMIN"),
        *("-p", "18090:80", "-v", "data:/data", "--tmpfs", "/scratch", "--read-only"),
        *("--health-cmd", "true", "--health-interval", "1s", "--restart", "unless-stopped"),
    )
    found = docker.inspect(id[:12])
    assert (found["Id"], found["Name"], len(id)) == (id, "/main", 64)
    assert (found["Path"], found["Args"]) == ("sh", ["-c", "sleep 1000"])
    config, host = found["Config"], found["HostConfig"]
    assert config["Image"] == box
    assert {"A=1", "PATH=/bin"} <= set(config["Env"])
    assert config["Labels"]["tier"] == "web"
    assert (config["WorkingDir"], config["Hostname"], config["User"]) == ("/www", "here", "0")
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (64 << 20, 500_000_000, 50)
    assert (host["CapAdd"], host["ReadonlyRootfs"]) == (["NET_ADMIN"], True)
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    [mount] = found["Mounts"]
    assert (mount["Type"], mount["Name"], mount["Destination"]) == ("volume", "data", "/data")
    assert mount["RW"] is True
    ports = found["NetworkSettings"]["Ports"]
    # dockerd binds it to `::`, too.
    assert ports["80/tcp"][0] == {"HostIp": "0.0.0.0", "HostPort": "18090"}
    assert docker.lines("port", "main")[0] == "80/tcp -> 0.0.0.0:18090"
    [endpoint] = found["NetworkSettings"]["Networks"].values()
    assert endpoint["IPAddress"] == found["NetworkSettings"]["IPAddress"] != ""
    assert docker("inspect", "-f", "{{.State.Running}}", "main") == "true"
    eventually(lambda: docker.inspect("main")["State"]["Health"]["Status"] == "healthy")
    assert found["Image"] == docker.inspect(box, "image")["Id"]


def test_ps_filters_and_formats(docker: Docker, run: Run, box: str) -> None:
    one = run("one", "sleep 1000", "-l", "tier=web")
    run("two", "exit 0", "-l", "tier=db")
    docker("wait", "two")
    assert docker("ps", "-q", "--no-trunc") == one
    assert set(docker.lines("ps", "-a", "--format", "{{.Names}}")) == {"one", "two"}
    for condition, names in {
        "name=on": {"one"},
        "label=tier": {"one", "two"},
        "label=tier=db": {"two"},
        "status=exited": {"two"},
        "exited=0": {"two"},
        f"id={one[:10]}": {"one"},
        f"ancestor={box}": {"one", "two"},
        "since=one": {"two"},
        "before=two": {"one"},
        "network=bridge": {"one", "two"},
        "volume=nosuch": set(),
    }.items():
        rows = docker.lines("ps", "-a", "--filter", condition, "--format", "{{.Names}}")
        assert set(rows) == names, condition
    assert docker("ps", "-n", "1", "--format", "{{.Names}}") == "two"
    [row] = map(json.loads, docker.lines("ps", "--format", "json"))
    assert (row["Names"], row["Image"], row["State"]) == ("one", box, "running")
    assert row["Status"].startswith("Up ")
    assert "invalid filter 'nosuch'" in docker.refused("ps", "--filter", "nosuch=1")


def test_names_prefixes_and_conflicts(docker: Docker, run: Run, box: str) -> None:
    id = run("main", "sleep 1000")
    assert docker.inspect(id[:6])["Name"] == "/main"
    line = docker.refused("create", "--name", "main", box)
    assert 'Conflict. The container name "/main" is already in use' in line
    docker("rename", "main", "other")
    assert docker.refused("stop", "main") == ("Error response from daemon: No such container: main")
    assert "stop the container before removing" in docker.refused("rm", "other")
    assert docker("rm", "-f", "other") == "other"
    assert docker("ps", "-aq") == ""


def test_copies_files_in_and_out(docker: Docker, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("A")
    (folder / "run").write_text("#!/bin/sh\n")
    (folder / "run").chmod(0o755)
    run("main", "sleep 1000")
    docker("cp", str(folder), "main:/tmp-in")
    assert docker("exec", "main", "cat", "/tmp-in/a") == "A"
    docker("exec", "main", "test", "-x", "/tmp-in/run")
    docker("exec", "main", "sh", "-c", "echo B > /tmp-in/b")
    docker("cp", "main:/tmp-in/.", str(tmp_path / "out"))
    assert {each.name for each in (tmp_path / "out").iterdir()} == {"a", "b", "run"}
    assert (tmp_path / "out" / "b").read_text() == "B\n"
    docker("stop", "main")
    docker("cp", "main:/tmp-in/a", str(tmp_path / "after"))
    assert (tmp_path / "after").read_text() == "A"
    assert "Could not find the file /nosuch" in docker.refused("cp", "main:/nosuch", str(tmp_path))
    assert "A /tmp-in" in docker.lines("diff", "main")


def test_top_and_stats_of_a_running_container(docker: Docker, run: Run) -> None:
    run("main", "sleep 1000", "--memory", "64m")
    titles, *rows = docker.lines("top", "main")
    assert {"PID", "CMD"} <= set(titles.split())
    assert any("sleep 1000" in row for row in rows)
    [row] = map(json.loads, docker.lines("stats", "--no-stream", "--format", "json"))
    assert (row["Name"], row["MemUsage"].partition(" / ")[2]) == ("main", "64MiB")
    assert float(row["MemPerc"].rstrip("%")) > 0


def test_wait_and_events_tell_of_an_exit(docker: Docker, run: Run) -> None:
    run("watched", "until [ -e /go ]; do sleep 0.1; done; exit 9")
    with (
        docker.following("wait", "watched") as waiter,
        docker.following(
            *("events", "--filter", "container=watched", "--filter", "event=die"),
            *("--format", "{{.Type}} {{.Action}} {{.Actor.Attributes.exitCode}}"),
        ) as listener,
    ):
        docker("exec", "watched", "touch", "/go")
        assert waiter.stdout is not None
        assert listener.stdout is not None
        assert waiter.stdout.read() == "9\n"
        assert listener.stdout.readline() == "container die 9\n"
    past = docker.lines(
        *(
            "events",
            "--since",
            "10m",
            "--until",
            f"{time.time():.9f}",
            "--filter",
            "container=watched",
        ),
        *("--format", "{{.Action}}"),
    )
    assert [each for each in past if each in ("create", "start", "die")] == [
        *("create", "start", "die")
    ]


def test_prune_removes_containers_that_have_ended(docker: Docker, run: Run) -> None:
    run("one", "sleep 1000")
    run("two", "exit 0")
    docker("wait", "two")
    assert "Total reclaimed space" in docker("container", "prune", "-f")
    assert docker("ps", "-a", "--format", "{{.Names}}") == "one"
