# SPDX-License-Identifier: Apache-2.0
"""Dockerfiles: all of their instructions, on any node, from bases that only other nodes have."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from devcluster import ORC, PATIENCE, Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

BASE = """\
FROM scratch AS tools
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
FROM tools
LABEL level=base
ONBUILD RUN echo triggered > /triggered
"""

WHOLE = """\
# escape=\\
ARG FLAVOUR=plain
ARG BASE=tools:1
FROM ${BASE} AS maker
ARG FLAVOUR
ENV MADE_BY=maker \\
    HOW="with care"
WORKDIR /work
RUN <<EOF
echo "$FLAVOUR $MADE_BY" > made
echo $HOW >> made
EOF
ADD archive.tar /unpacked/
FROM nowhere:1 AS unused
RUN false
FROM $BASE
ARG FLAVOUR=none
ARG TARGETARCH
LABEL flavour=$FLAVOUR arch=$TARGETARCH
COPY --from=maker --chown=7:8 /work/made /srv/made
COPY --from=maker /unpacked /srv/
COPY --chmod=0640 --from=tools:1 /bin/busybox /srv/busybox
COPY . /srv/context/
RUN --mount=type=secret,id=token test "$(cat /run/secrets/token)" = s3cret
RUN --mount=type=bind,from=maker,source=/work,target=/mnt grep -q care /mnt/made
RUN grep -q 192.0.2.7 /etc/hosts && echo "worker:x:1234:1234::/:/bin/sh" > /etc/passwd
SHELL ["/bin/sh", "-e", "-c"]
VOLUME /data
EXPOSE 8080/tcp
STOPSIGNAL SIGUSR1
HEALTHCHECK --interval=7s --retries=2 CMD test -e /srv/made
USER worker
WORKDIR /srv
ENTRYPOINT ["/bin/sh", "-c"]
CMD ["id -u; pwd; cat made; ls -A context unpacked.txt; stat -c '%u:%g %a' made busybox"]
"""


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    (folder / "sub").mkdir(parents=True)
    shutil.copy("/usr/bin/busybox", folder)
    (folder / "kept").write_text("kept\n")
    (folder / "sub" / "dropped.key").write_text("key\n")
    (folder / "unpacked.txt").write_text("unpacked\n")
    subprocess.run(["tar", "-C", folder, "-cf", folder / "archive.tar", "unpacked.txt"], check=True)
    (folder / ".dockerignore").write_text(
        "# all but what is needed\n*\n!busybox\n!archive.tar\n!kept\n!sub\n**/*.key\n"
    )
    (folder / "Dockerfile.base").write_text(BASE)
    (folder / "Dockerfile").write_text(WHOLE)
    (folder / "token").write_text("s3cret")
    return folder


@pytest.fixture
def tools(cluster: Cluster, context: Path) -> Iterator[str]:
    """A base that node1 alone has."""
    base = str(context / "Dockerfile.base")
    cluster.orc("build", "-q", "-t", "tools:1", "--node", "node1", "-f", base, str(context))
    yield "tools:1"
    for name in ("whole:1", "whole:2", "tools:1"):
        cluster.orc("rmi", "-f", name, ok=False)
    cluster.orc("image", "prune", "-f")


def _image(cluster: Cluster, name: str) -> dict[str, Any]:
    (document,) = json.loads(cluster.orc("image", "inspect", name).stdout)
    return dict(document)


def test_all_instructions_on_a_base_of_another_node(
    cluster: Cluster, tools: str, context: Path, tmp_path: Path
) -> None:
    done = cluster.orc(
        "build", "-t", "whole:1", "-t", "whole:2", "--node", "node2",
        "--build-arg", "FLAVOUR=sweet", "--secret", f"id=token,src={context}/token",
        "--add-host", "else.where:192.0.2.7",
        "--network", "none", "--label", "by=us", "--platform", "linux/amd64",
        "--iidfile", str(tmp_path / "id"), str(context),
    )  # fmt: skip
    assert f"FROM {tools}" in done.stderr
    document = _image(cluster, "whole:1")
    assert document["names"] == ["whole:1", "whole:2"]
    assert document["id"] == (tmp_path / "id").read_text()
    assert document["nodes"] == ["node2"]
    config = document["config"]
    assert config["Labels"].items() >= {
        "level": "base", "flavour": "sweet", "arch": "amd64", "by": "us",
    }.items()  # fmt: skip
    assert config["Healthcheck"] == {
        "Test": ["CMD-SHELL", "test -e /srv/made"], "Interval": 7_000_000_000, "Retries": 2,
    }  # fmt: skip
    assert config["Shell"] == ["/bin/sh", "-e", "-c"]
    assert config["StopSignal"] == "SIGUSR1"
    assert set(config["Volumes"]) == {"/data"}
    assert set(config["ExposedPorts"]) == {"8080/tcp"}
    # And it runs as it says, on any node.
    said = cluster.orc("run", "--rm", "--node", "node3", "whole:2").stdout.splitlines()
    assert said == [
        "1234", "/srv", "sweet maker", "with care",
        "unpacked.txt", "", "context:", "archive.tar", "busybox", "kept", "sub",
        "7:8 644", "0:0 640",
    ]  # fmt: skip
    found = cluster.orc("run", "--rm", "whole:1", "cat /triggered; ls /srv/context/sub; id -g")
    assert found.stdout.splitlines() == ["triggered", "1234"]


def test_the_second_build_takes_nothing_but_the_cache_which_can_be_emptied(
    cluster: Cluster, tools: str, context: Path
) -> None:
    (context / "Dockerfile").write_text(f"FROM {tools}\nRUN echo first time\nCOPY kept /\n")
    build = ("build", "-t", "whole:1", "--node", "node3", str(context))
    assert "first time" in cluster.orc(*build).stderr.splitlines()
    again = cluster.orc(*build).stderr
    assert "Using cache" in again
    assert "first time" not in again.splitlines()
    (before,) = [row for row in cluster.json("builder", "du") if row["node"] == "node3"]
    assert before["entries"] > 0
    freed = cluster.orc("builder", "prune", "-a", "-f", "--node", "node3").stdout
    assert freed.startswith("freed ")
    (after,) = cluster.json("builder", "du", "--node", "node3")
    assert (after["entries"], after["size"] < before["size"]) == (0, True)
    assert "first time" in cluster.orc(*build).stderr.splitlines()
    assert "no node that is ready is linux/riscv64" in cluster.refused(
        "build", "--platform", "linux/riscv64", str(context)
    )


def test_ctrl_c_ends_a_build_on_its_node(cluster: Cluster, tools: str, context: Path) -> None:
    mark = f"98{os.getpid()}"
    (context / "Dockerfile").write_text(f"FROM {tools}\nRUN echo at it; exec sleep {mark}\n")
    with subprocess.Popen(
        [ORC, "build", "-t", "whole:1", "--node", "node2", str(context)],
        env=cluster.env,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert any(line == "at it\n" for line in process.stderr)
        assert cluster.exec("node2", "pgrep", "-f", f"sleep {mark}").stdout
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    data = cluster.data("node2")

    def nothing_left() -> bool:
        found = cluster.exec("node2", "pgrep", "-f", f"sleep {mark}", ok=False).stdout
        folders = ("uploads", "build/tmp", "build/storage/root/overlay-containers")
        left = [each for name in folders for each in (data / name).glob("*") if each.is_dir()]
        assert (found, left) == ("", [])
        return True

    eventually(nothing_left)
    assert "no image 'whole:1'" in cluster.refused("image", "inspect", "whole:1")
