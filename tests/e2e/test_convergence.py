# SPDX-License-Identifier: Apache-2.0
"""A service has converged when its tasks have stayed up, and what a user sees when they crash."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from devcluster import SERVES, Cluster

pytestmark = [pytest.mark.root, pytest.mark.e2e]

CRASHES = "echo about to fail; exit 7"
LATE = "echo serving; sleep 2; echo out of ideas; exit 7"


@pytest.fixture
def users(cluster: Cluster) -> Cluster:
    """The cluster as a user has it: its commands wait until tasks have stayed up."""
    return replace(cluster, env={k: v for k, v in cluster.env.items() if k != "ORC_MONITOR"})


def create(cluster: Cluster, image: str, script: str, *flags: str) -> tuple[int, list[str]]:
    """Create `bad`, whose tasks run a shell script; the exit status, and what stderr says."""
    done = cluster.orc(
        "service", "create", "--name", "bad", "--entrypoint", "/bin/busybox",
        "--stop-grace-period", "100ms", *flags, image, "sh", "-c", script, ok=False,
    )  # fmt: skip
    return done.returncode, done.stderr.splitlines()


def test_a_service_that_crashes_at_once(users: Cluster, hello: str) -> None:
    done = users.orc("service", "create", "--name", "bad", "--entrypoint", "/bin/busybox", hello,
                     "false", ok=False)  # fmt: skip
    assert done.returncode == 3
    lines = done.stderr.splitlines()
    assert lines[-1] == (
        "orc: service 'bad' has not converged: bad.1 failed within 5s of its start: exit status 1; "
        "see 'orc service ps bad' and 'orc service logs bad'"
    )
    assert any(line.startswith("bad.1 on node") and "logged nothing" in line for line in lines)


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--restart-condition", "none"),
        ("--restart-condition", "on-failure", "--restart-max-attempts", "1"),
    ],
    ids=lambda flags: flags[1] if flags else "any",
)
def test_a_service_that_crashes_after_two_seconds(
    users: Cluster, hello: str, flags: tuple[str, ...]
) -> None:
    status, lines = create(users, hello, LATE, *flags)
    assert status == 3
    assert lines[-3:-1] == ["  serving", "  out of ideas"]
    assert "bad.1 failed within 5s of its start: exit status 7" in lines[-1]
    assert any("bad: 1 of 1 running, verifying for " in line for line in lines)


def test_monitor_period_applies_to_running_tasks_without_a_health_check(
    users: Cluster, hello: str
) -> None:
    status, lines = create(users, hello, "sleep 3600", "--update-monitor", "1s")
    assert (status, lines[-1]) == (0, "bad: 1 of 1 running, converged")
    assert "bad: 1 of 1 running, verifying for 1s that tasks stay up" in lines
    healthy = users.orc("service", "create", "--name", "web", *SERVES,
                        hello)  # fmt: skip
    assert healthy.stderr.splitlines()[-1] == "web: 1 of 1 running, converged"
    assert "verifying" not in healthy.stderr
    for change in (
        ("service", "scale", "bad=1"),
        ("service", "update", "--label-add", "a=1", "bad"),
    ):
        assert "verifying" not in users.orc(*change).stderr, "nothing was started"
    users.orc("service", "create", "-d", "--name", "young", "--entrypoint", "/bin/busybox",
              "--stop-grace-period", "100ms", "--replicas", "2", "--update-monitor", "1h", hello,
              "sleep", "3600")  # fmt: skip
    users.await_running("young", 2)
    assert "verifying" not in users.orc("service", "scale", "young=1").stderr


def test_an_update_that_crashes_is_paused_or_rolled_back(users: Cluster, hello: str) -> None:
    create(users, hello, "sleep 3600", "--monitor", "0s")
    update = ("service", "update", "--args", f"sh -c '{LATE}'")
    done = users.orc(*update, "bad", ok=False)
    assert done.returncode == 3, done.stderr
    lines = done.stderr.splitlines()
    assert lines[-2] == "  out of ideas"
    assert lines[-1].startswith(
        "orc: the update of service 'bad' is paused: 1 of 1 failed: bad.1: exit status 7"
    )
    users.orc("service", "rollback", "--monitor", "0s", "bad")
    done = users.orc(*update, "--update-failure-action", "rollback", "--rollback-monitor", "0s",
                     "bad", ok=False)  # fmt: skip
    assert done.returncode == 4, done.stderr
    lines = done.stderr.splitlines()
    assert lines[-2] == "  out of ideas"
    assert lines[-1] == ("orc: service 'bad' was rolled back: 1 of 1 failed: bad.1: exit status 7")


def test_a_stack_of_which_one_service_crashes(users: Cluster, hello: str, tmp_path: Path) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text(
        f"""
services:
  good:
    image: {hello}
    entrypoint: [/bin/busybox, sleep, "3600"]
    stop_grace_period: 100ms
    deploy: {{update_config: {{monitor: 0s}}}}
  bad:
    image: {hello}
    entrypoint: [/bin/busybox, sh, -c, "{CRASHES}"]
    restart: "no"
    deploy: {{update_config: {{monitor: 2s}}}}
  after:
    image: {hello}
    depends_on: {{bad: {{condition: service_completed_successfully}}}}
"""
    )
    deploy = ("stack", "deploy", "-c", str(file), "shop")
    done = users.orc(*deploy, ok=False)
    assert done.returncode == 3
    lines = done.stderr.splitlines()
    assert "shop_good: 1 of 1 running, converged" in lines
    assert lines[-4] == "  about to fail"
    assert "shop_bad.1 failed within 2s of its start: exit status 7" in lines[-3]
    assert lines[-2:] == [
        "orc: service 'shop_after' was skipped: it depends on 'shop_bad'",
        "orc: 2 of 3 services of stack shop have not converged",
    ]
    works = file.read_text().replace(CRASHES, "exec sleep 3600").partition("  after:")[0]
    file.write_text(works)
    done = users.orc(*deploy, "--prune")
    assert "shop_bad: 1 of 1 running, verifying for" in done.stderr
    done = users.orc(*deploy)
    assert "stack shop is up to date" in done.stderr
    assert "verifying" not in done.stderr
    users.orc("stack", "rm", "shop")


def test_a_job_that_fails(users: Cluster, hello: str) -> None:
    done = users.orc("job", "run", "--name", "sums", "--retries", "0", "--entrypoint",
                     "/bin/busybox", hello, "sh", "-c", CRASHES, ok=False)  # fmt: skip
    assert done.returncode == 3
    lines = done.stderr.splitlines()
    assert lines[-2] == "  about to fail"
    assert lines[-1].startswith("orc: job 'sums' failed: sums.1 failed: exit status 7")
    users.orc("job", "rm", "sums")
