# SPDX-License-Identifier: Apache-2.0
"""Building Dockerfiles with the real buildah."""

# ruff: noqa: ASYNC110, ASYNC221, ASYNC240 (a test may block its own loop)

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agent.builds.build_cgroup import BuildGroups, BuildLimits
from orchestrator.agent.builds.builder import Builder, BuildSpec
from orchestrator.agent.builds.sandbox import NONE, Sandboxes
from orchestrator.agent.images.image_errors import BuildError, ImageError
from orchestrator.agent.images.staging import IncomingBlob
from orchestrator.agent.images.store import ImageStore
from orchestrator.agent.runtime.resources.cgroups import BUILDS, CgroupMode, Cgroups, detect
from orchestrator.agent.runtime.spec.privileges import DEFAULT_CAPABILITIES
from orchestrator.model.objects import Image
from orchestrator.model.validation.confinement import CAPABILITIES

pytestmark = pytest.mark.root

HELLO = Path(__file__).parents[2] / "charts" / "hello"
BUSYBOX = "/usr/bin/busybox"
MORE = "i=0; while [ $i -lt 4000 ]; do echo 0123456789012345678901234567890; i=$((i+1)); done"
"""In a shell: prints more than a pipe holds."""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ImageStore]:
    async with ImageStore(tmp_path / "store") as store:
        yield store


def builder_of(store: ImageStore, top: Path, sandboxes: Sandboxes) -> Builder:
    """A builder on a node that has no others to ask."""

    async def provide(name: str, fresh: bool, progress: Callable[[str], None]) -> str:
        if (digest := store.resolve(name)) is None:
            raise ImageError(f"no node has the image {name}")
        return digest

    return Builder(
        store, top / "build", top / "secrets", provide, sandboxes, BuildGroups(cgroups_of(top))
    )


MADE: set[str] = set()
"""Parents of the cgroups of the test's builders."""


def cgroups_of(top: Path) -> Cgroups:
    parent = f"/orc-builds-{hashlib.sha256(bytes(top)).hexdigest()[:12]}"
    MADE.add(parent)
    return Cgroups(detect(), parent)


@pytest.fixture(autouse=True)
def cgroups(tmp_path: Path) -> Iterator[Cgroups]:
    """Those that builds are made among; none is left of a build."""
    yield cgroups_of(tmp_path)
    left: set[str] = set()
    while MADE:
        parent = MADE.pop()
        builds = Cgroups(detect(), f"{parent}/{BUILDS}")
        left |= builds.ids()
        builds.remove_parent()
        Cgroups(detect(), parent).remove_parent()
    assert not left


@pytest.fixture
async def sandboxes() -> AsyncIterator[Sandboxes]:
    async with Sandboxes() as sandboxes:
        yield sandboxes


@pytest.fixture
def builder(store: ImageStore, tmp_path: Path, sandboxes: Sandboxes) -> Builder:
    return builder_of(store, tmp_path, sandboxes)


async def built(
    builder: Builder, context: Path, name: str, progress: Callable[[str], None], **more: Any
) -> Image:
    return await builder.build(context, BuildSpec(names=(name,), **more), progress)


def context(top: Path, dockerfile: str, **files: str) -> Path:
    """A build context as a tar."""
    folder = top / "context"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(BUSYBOX, folder / "busybox")
    for name, text in {"Dockerfile": dockerfile, **files}.items():
        (folder / name).write_text(text)
    archive = top / "context.tar"
    subprocess.run(["tar", "-C", folder, "-cf", archive, "."], check=True)
    return archive


async def no_fetch(blob: IncomingBlob) -> None:
    raise AssertionError(f"{blob.digest} was fetched")


async def test_building_an_image_from_scratch(
    tmp_path: Path, store: ImageStore, builder: Builder
) -> None:
    lines: list[str] = []
    text = 'FROM scratch\nARG WHO=nobody\nCOPY busybox /bin/sh\nENV WHO=$WHO\nCMD ["/bin/sh"]\n'
    image = await built(
        builder, context(tmp_path, text), "made:1", lines.append, build_args={"WHO": "me"}
    )
    assert image.names == ("made:1",)
    assert store.resolve("made:1") == image.id
    local = await store.ensure(image.id, no_fetch)
    assert "WHO=me" in local.config.env
    assert (local.layers[0] / "bin/sh").read_bytes() == Path(BUSYBOX).read_bytes()
    assert any("STEP 3/5: COPY busybox /bin/sh" in line for line in lines)
    # Once more: from the cache, except the second time.
    for no_cache, cached in ((False, True), (True, False)):
        lines.clear()
        await built(builder, context(tmp_path, text), "made:1", lines.append, no_cache=no_cache,
            build_args={"WHO": "me"},
        )  # fmt: skip
        assert any("Using cache" in line for line in lines) is cached
    assert os.listdir(tmp_path / "build/tmp") == []


async def test_a_run_uses_copied_files_and_shows_its_output(
    tmp_path: Path, store: ImageStore, builder: Builder
) -> None:
    lines: list[str] = []
    text = f"FROM scratch\nCOPY busybox /bin/sh\nRUN {MORE}; echo made > /file; echo out\n"
    image = await built(builder, context(tmp_path, text), "ran:1", lines.append)
    assert "out" in lines
    local = await store.ensure(image.id, no_fetch)
    assert (local.layers[-1] / "file").read_text() == "made\n"


@pytest.mark.parametrize(
    ("step", "line"),
    [
        (f"RUN {MORE}; echo in vain; exit 7", 4),
        (f'RUN ["/bin/sh", "-c", \\\n  "{MORE}; echo in vain; exit 7"]', 4),
        (f"RUN {MORE}; echo in vain; \\\n  # a remark\n  exit 7", 4),
    ],
)
async def test_a_failing_run_shows_its_output_and_line(
    tmp_path: Path, store: ImageStore, builder: Builder, step: str, line: int
) -> None:
    lines: list[str] = []
    text = f"FROM scratch\nCOPY busybox /bin/sh\n# RUN exit 7\n{step}\nRUN true\n"
    with pytest.raises(BuildError) as caught:
        await built(builder, context(tmp_path, text), "bad:1", lines.append)
    assert "in vain" in lines
    assert f"Dockerfile:{line}: RUN" in str(caught.value)
    assert "exit status 7" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert store.inventory() == ()
    assert os.listdir(tmp_path / "build/tmp") == []


@pytest.mark.parametrize(
    ("text", "dockerfile", "words"),
    [
        ("FROM scratch\nCOPY lacking /\n", "", "Dockerfile:2: COPY lacking /: .*lacking"),
        (
            "FROM scratch\nCOPYY a b\n",
            "",
            "^Dockerfile:2: there is no .* COPYY; did you mean COPY\\?$",
        ),
        ("", "", "build failed"),
        ("FROM scratch\n", "other/Dockerfile", "no other/Dockerfile: name one with -f"),
        ("FROM scratch\n", "../../../etc/passwd", "no .*passwd: name one"),
        ("FROM 127.0.0.1:1/lacking:1\n", "", "127.0.0.1:1"),
    ],
)
async def test_invalid_dockerfiles(
    tmp_path: Path, store: ImageStore, builder: Builder, text: str, dockerfile: str, words: str
) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        await built(
            builder, context(tmp_path, text), "bad:1", lambda line: None, dockerfile=dockerfile
        )
    assert "\n" not in str(caught.value)
    assert store.inventory() == ()


async def test_a_dockerfile_that_links_out_of_the_context_is_not_read(
    tmp_path: Path, builder: Builder
) -> None:
    archive = context(tmp_path, "")
    folder = tmp_path / "context"
    (folder / "Dockerfile").unlink()
    (folder / "Dockerfile").symlink_to("/etc/passwd")
    subprocess.run(["tar", "-C", folder, "-cf", archive, "."], check=True)
    with pytest.raises(ImageError, match="no Dockerfile or Containerfile"):
        await built(builder, archive, "bad:1", lambda line: None)


async def test_from_an_image_that_the_node_has(
    tmp_path: Path, store: ImageStore, builder: Builder
) -> None:
    base = "FROM scratch\nCOPY busybox /bin/sh\nENV BASE=1\n"
    for number, name in enumerate(["base:1", "base:1", "registry.test:5000/team/base"]):
        # The second time, the name stands for another image: the new one is taken.
        await built(builder, context(tmp_path, f"{base}ENV N={number}\n"), name, lambda line: None)
        text = f"FROM {name}\nCOPY extra /extra\n"
        image = await built(
            builder, context(tmp_path, text, extra="more"), f"derived:{number}", lambda line: None
        )
        local = await store.ensure(image.id, no_fetch)
        assert {"BASE=1", f"N={number}"} <= set(local.config.env)
        assert (local.layers[-1] / "extra").read_text() == "more"


async def test_dockerignore(tmp_path: Path, store: ImageStore, builder: Builder) -> None:
    archive = context(
        tmp_path, "FROM scratch\nCOPY . /\n", keep="1", secret="2", **{".dockerignore": "secret\n"}
    )
    image = await built(builder, archive, "ignored:1", lambda line: None)
    local = await store.ensure(image.id, no_fetch)
    there = {name for layer in local.layers for name in os.listdir(layer)}
    assert "keep" in there
    assert "secret" not in there


async def test_concurrent_builds_on_several_nodes_and_on_one(
    tmp_path: Path, sandboxes: Sandboxes
) -> None:
    text = "FROM scratch\nCOPY busybox /bin/sh\nRUN echo $0 > /file\n"
    archive = context(tmp_path, text)

    async def node(name: str) -> None:
        async with ImageStore(tmp_path / name / "store") as store:
            builder = builder_of(store, tmp_path / name, sandboxes)
            await asyncio.gather(
                built(builder, archive, "a:1", lambda line: None),
                built(builder, archive, "b:1", lambda line: None),
            )
            assert {n for i in store.inventory() for n in i.names} == {"a:1", "b:1"}

    await asyncio.gather(node("one"), node("two"))


async def test_a_cancelled_build_leaves_nothing(
    tmp_path: Path, store: ImageStore, builder: Builder
) -> None:
    running = asyncio.Event()

    def progress(line: str) -> None:
        if line == "running":
            running.set()

    mark = f"97{os.getpid()}"
    text = (
        "FROM scratch\nCOPY busybox /bin/busybox\n"
        f'RUN ["/bin/busybox", "sh", "-c", "echo running; exec /bin/busybox sleep {mark}"]\n'
    )
    build = asyncio.create_task(built(builder, context(tmp_path, text), "gone:1", progress))
    async with asyncio.timeout(60):
        await running.wait()
        while not processes_with(mark):
            await asyncio.sleep(0.01)
    build.cancel()
    await asyncio.wait([build])
    assert build.cancelled()
    assert not processes_with(mark)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert os.listdir(tmp_path / "build/tmp") == []
    left = (tmp_path / "build/cache/root/overlay-containers").iterdir()
    assert [path for path in left if path.is_dir()] == []


async def test_a_build_ends_with_its_agent(tmp_path: Path, sandboxes: Sandboxes) -> None:
    mark, parent = f"96{os.getpid()}", cgroups_of(tmp_path).parent
    context(tmp_path, f"FROM scratch\nCOPY busybox /bin/sh\nRUN echo at it; exec sleep {mark}\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BUILD, str(tmp_path), parent,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(60):
        async for line in process.stdout:
            if line == b"at it\n":
                break
        while not processes_with(mark):  # the shell becomes it after it has spoken
            await asyncio.sleep(0.01)
        process.kill()
        await process.wait()
        while processes_with(mark):
            await asyncio.sleep(0.02)
        # The next agent removes what is left of it.
        async with ImageStore(tmp_path / "inner") as store:
            assert os.listdir(tmp_path / "secrets") != []
            assert len(replace(cgroups_of(tmp_path), parent=f"{parent}/{BUILDS}").ids()) == 1
            await builder_of(store, tmp_path, sandboxes).recover()
    assert os.listdir(tmp_path / "secrets") == []
    left = (tmp_path / "build/cache/root/overlay-containers").iterdir()
    assert [path for path in left if path.is_dir()] == []
    assert os.listdir(tmp_path / "build/tmp") == []


def processes_with(word: str) -> list[str]:
    """Ids of processes with this word on their command line, buildah's and unshare's too."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if word.encode() in (process / "cmdline").read_bytes().split(b"\0"):
                found.append(process.name)
    return found


BUILD = """
import asyncio, sys
from pathlib import Path
from orchestrator.agent.builds.builder import Builder, BuildSpec
from orchestrator.agent.builds.build_cgroup import BuildGroups
from orchestrator.agent.builds.sandbox import Sandboxes
from orchestrator.agent.images.store import ImageStore
from orchestrator.agent.runtime.resources.cgroups import Cgroups, detect
async def main(top):
    async with ImageStore(top / "inner") as store, Sandboxes() as sandboxes:
        groups = BuildGroups(Cgroups(detect(), sys.argv[2]))
        builder = Builder(store, top / "build", top / "secrets", None, sandboxes, groups)
        def said(line): print(line, flush=True)
        print((await builder.build(top / "context.tar", BuildSpec(("inner:1",)), said)).names)
asyncio.run(main(Path(sys.argv[1])))
"""


async def test_building_on_a_dev_host(tmp_path: Path) -> None:
    context(tmp_path, "FROM scratch\nCOPY busybox /bin/sh\nRUN echo inside\n")
    script = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"'
    command = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
               "--propagation", "private", "sh", "-c", script, "sh",
               sys.executable, "-c", BUILD, str(tmp_path), cgroups_of(tmp_path).parent]  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert b"('inner:1',)" in output, output.decode()
    assert b"inside" in output


async def test_building_the_demo_image(tmp_path: Path, store: ImageStore, builder: Builder) -> None:
    demo = tmp_path / "hello"
    shutil.copytree(HELLO, demo)
    for command in ([demo / "prepare"], ["tar", "-C", demo, "-cf", tmp_path / "d.tar", "."]):
        await (await asyncio.create_subprocess_exec(*command)).wait()
    image = await built(builder, tmp_path / "d.tar", "hello:1", lambda line: None)
    local = await store.ensure(image.id, no_fetch)
    names = {str(p.relative_to(layer)) for layer in local.layers for p in layer.rglob("*")}
    assert {"bin/busybox", "bin/entrypoint", "www/cgi-bin/index.cgi"} <= names
    assert image.size < 2 << 20


async def test_fields_of_dockers_format_only(
    tmp_path: Path, store: ImageStore, builder: Builder
) -> None:
    text = (
        "FROM scratch\nCOPY busybox /bin/sh\nHEALTHCHECK --interval=5s CMD /bin/true\n"
        'SHELL ["/bin/sh", "-e", "-c"]\nONBUILD RUN echo triggered > /triggered\n'
        "STOPSIGNAL SIGQUIT\n"
    )
    image = await built(builder, context(tmp_path, text), "base:1", lambda line: None)
    config = config_of(store, image)
    assert config["Healthcheck"] == {"Test": ["CMD-SHELL", "/bin/true"], "Interval": 5_000_000_000}
    assert config["Shell"] == ["/bin/sh", "-e", "-c"]
    assert config["StopSignal"] == "SIGQUIT"
    # What is set for those that build on it happens there.
    lines: list[str] = []
    above = await built(builder, context(tmp_path, "FROM base:1\n"), "above:1", lines.append)
    local = await store.ensure(above.id, no_fetch)
    assert (local.layers[-1] / "triggered").read_text() == "triggered\n"
    assert any("FROM base:1" in line for line in lines)
    plain = await built(builder, context(tmp_path, text), "plain:1", lambda line: None, oci=True)
    assert "Healthcheck" not in config_of(store, plain)


def config_of(store: ImageStore, image: Image) -> dict[str, Any]:
    path = store.blob_path(image.config_digest)
    assert path is not None
    return dict(json.loads(path.read_bytes())["config"])


async def test_view_of_a_run(tmp_path: Path, store: ImageStore, builder: Builder) -> None:
    lines: list[str] = []
    text = (
        "FROM scratch\nCOPY busybox /bin/busybox\nCOPY busybox /bin/sh\n"
        "RUN --mount=type=secret,id=token busybox cat /run/secrets/token; echo\n"
        "RUN busybox cat /etc/hosts /proc/net/dev\n"
    )
    image = await built(
        builder, context(tmp_path, text), "seen:1", lines.append, secrets={"token": b"s3cret"},
        add_hosts=("else.where:192.0.2.7",), network=NONE,
    )  # fmt: skip
    assert "s3cret" in lines
    assert ["192.0.2.7", "else.where"] in [line.split() for line in lines]
    assert [line.split()[0] for line in lines if len(line.split()) == 17 and ":" in line] == ["lo:"]
    local = await store.ensure(image.id, no_fetch)
    found = [path for layer in local.layers for path in layer.rglob("*") if path.is_file()]
    assert not any(b"s3cret" in path.read_bytes() for path in found)
    kept = subprocess.run(
        ["grep", "-rlF", "s3cret", tmp_path / "build", tmp_path / "secrets"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert kept.stdout == b""


async def test_base_images_by_variable_and_stage(
    tmp_path: Path, store: ImageStore, builder: Builder
) -> None:
    await built(builder, context(tmp_path, "FROM scratch\nCOPY busybox /bb\n"), "base:1",
                lambda line: None)  # fmt: skip
    text = (
        "ARG NAME=base\nFROM nowhere:1 AS unused\nFROM ${NAME}:1 AS one\nFROM scratch\n"
        "COPY --from=one /bb /a\nCOPY --from=base:1 /bb /b\nCOPY --from=1 /bb /c\n"
    )
    image = await built(builder, context(tmp_path, text), "made:1", lambda line: None)
    local = await store.ensure(image.id, no_fetch)
    assert {name for layer in local.layers for name in os.listdir(layer)} == {"a", "b", "c"}
    with pytest.raises(BuildError, match="Dockerfile:2: no node has the image nowhere:1"):
        await built(builder, context(tmp_path, text), "made:1", lambda line: None, target="unused")
    several = BuildSpec(names=("one:1", "two:2"), content=b"FROM base:1\nCOPY Dockerfile /\n")
    image = await builder.build(tmp_path / "context.tar", several, lambda line: None)
    assert image.names == ("one:1", "two:2")


async def test_usage_and_pruning_of_the_cache(tmp_path: Path, builder: Builder) -> None:
    text = "FROM scratch\nCOPY busybox /bin/sh\nRUN echo 1\n"
    await built(builder, context(tmp_path, text), "a:1", lambda line: None)
    await built(builder, context(tmp_path, "FROM a:1\nRUN echo 2\n"), "b:1", lambda line: None)
    before = await builder.cache()
    assert before.entries >= 3
    assert before.size > 1 << 20
    freed = await builder.prune(everything=True)
    after = await builder.cache()
    assert after.entries == 0
    assert freed == before.size - after.size
    assert after.size < 1 << 18
    lines: list[str] = []
    await built(builder, context(tmp_path, text), "a:1", lines.append)
    assert not any("Using cache" in line for line in lines)


async def test_a_signature_policy_does_not_apply_to_local_images(
    tmp_path: Path, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / "home/.config/containers/policy.json"
    policy.parent.mkdir(parents=True)
    policy.write_text('{"default": [{"type": "reject"}]}')
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    await built(builder, context(tmp_path, "FROM scratch\nCOPY busybox /\n"), "a:1",
                lambda line: None)  # fmt: skip
    await built(builder, context(tmp_path, "FROM a:1\nENV A=1\n"), "b:1", lambda line: None)


async def test_output_and_status_of_every_run_are_complete_on_a_busy_node(
    tmp_path: Path, store: ImageStore, builder: Builder
) -> None:
    steps = 2
    runs = "".join(f"RUN busybox seq 15000; echo last of {step}\n" for step in range(steps))
    text = (
        "FROM scratch\nCOPY busybox /bin/busybox\nCOPY busybox /bin/sh\n"
        f"{runs}RUN busybox seq 15000; echo in vain; exit 7\n"
    )
    archive = context(tmp_path, text)
    busy = [
        await asyncio.create_subprocess_exec(BUSYBOX, "sh", "-c", "while :; do :; done")
        for _ in range(2)
    ]
    try:
        outputs = await asyncio.gather(*(failing(builder, archive) for _ in range(3)))
    finally:
        for process in busy:
            process.kill()
            await process.wait()
    for lines, error in outputs:
        assert "exit status 7" in error
        spoken = [line for line in lines if line.startswith(("last of", "in vain"))]
        assert spoken == [*(f"last of {step}" for step in range(steps)), "in vain"]
        numbers = [line for line in lines if line.isdigit()]
        assert numbers == [str(number) for number in range(1, 15001)] * (steps + 1)


async def failing(builder: Builder, archive: Path) -> tuple[list[str], str]:
    """The output and the error of a build that fails."""
    lines: list[str] = []
    with pytest.raises(BuildError) as caught:
        await built(builder, archive, "bad:1", lines.append, no_cache=True)
    return lines, str(caught.value)


ATTACKS = {
    "read a file of the host": "cat {secret}",
    "read a file of the host by its process": "cat /proc/*/root{secret}",
    "reach a socket of the host": "test -S {socket}",
    "kill a process of the host": "kill -0 {process}",
    "reach a port of the host's loopback": "nc -w 1 127.0.0.1 {port} </dev/null",
    "mount a disk": "mkdir -p /m; mount -t ext4 {disk} /m",
    "mount a file system": "mkdir -p /m; mount -t tmpfs none /m",
    "make mounts writable": "mount -o remount,rw /proc/sys",
    "make a device node and read the disk": "mknod /d b {major} {minor}; head -c 1 /d",
    "read the kernel's memory": "head -c 1 /dev/mem || head -c 1 /dev/kmsg",
    "change a kernel parameter": "echo 1 >/proc/sys/kernel/sysrq",
    "change a parameter of a cgroup": "ls /sys/fs/cgroup/*",
    "trigger the kernel": "echo h >/proc/sysrq-trigger",
    "load a module": "insmod /bin/sh",
    "set the time": "date -s @0; test $(date +%s) -lt 1000000",
    "set the host's name": "hostname attacked",
    "change the network's interfaces": "ip link set lo down",
    "enter namespaces of the host": "nsenter -t 1 -m -n /bin/sh -c 'test -e {secret}'",
    "make namespaces": "unshare -m true",
    "make a user namespace": "unshare -U true",
    "leave the root": "mkdir -p /x; chroot /x /bin/sh; chroot /proc/1/root cat {secret}",
}
"""What a RUN tries, in a shell, by what it is about; success would be a way out."""


async def test_a_run_cannot_reach_the_host(
    tmp_path: Path, store: ImageStore, builder: Builder
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    secret.chmod(0o644)
    os_disk = os.stat("/").st_dev
    with (
        socket.socket(socket.AF_UNIX) as listening,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        listening.bind(str(tmp_path / "agent.sock"))
        listening.listen()
        facts = {
            "secret": secret,
            "socket": tmp_path / "agent.sock",
            "process": os.getpid(),
            "port": server.getsockname()[1],
            "disk": "/dev/vda",
            "major": os.major(os_disk),
            "minor": os.minor(os_disk),
        }
        script = "".join(
            f"if ( {command.format(**facts)} ) >/dev/null 2>&1; then echo 'reached: {name}'; fi\n"
            for name, command in ATTACKS.items()
        )
        text = (
            "FROM scratch\nCOPY busybox /bin/busybox\nCOPY busybox /bin/sh\nCOPY attack /attack\n"
            "RUN busybox --install /bin && sh /attack\n"
            "RUN cat /proc/self/uid_map; echo interfaces: $(ls /sys/class/net)\n"
            "RUN grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; echo done\n"
        )
        lines: list[str] = []
        await built(builder, context(tmp_path, text, attack=script), "a:1", lines.append)
    assert [line for line in lines if line.startswith("reached")] == []
    mapping = next(line.split() for line in lines if len(line.split()) == 3 and "65536" in line)
    assert mapping[0] == "0"
    assert int(mapping[1]) >= 100_000
    assert "interfaces: lo" in lines
    usual = sum(1 << CAPABILITIES.index(name) for name in DEFAULT_CAPABILITIES)
    assert f"CapEff:\t{usual:016x}" in lines
    assert f"CapBnd:\t{usual:016x}" in lines
    assert "Seccomp:\t2" in lines


async def test_owners_modes_and_attributes_of_built_files(
    tmp_path: Path, store: ImageStore, builder: Builder
) -> None:
    text = (
        "FROM scratch\nCOPY busybox /bin/busybox\nCOPY busybox /bin/sh\n"
        "COPY --chown=7:8 --chmod=4711 busybox /copied\n"
        "RUN busybox cp /bin/sh /plain && busybox cp /bin/sh /owned"
        " && busybox chown 1000:65534 /owned && busybox chmod 6755 /owned"
        " && busybox mkdir -m 1777 /sticky && busybox rm /copied\n"
    )
    first = await built(builder, context(tmp_path, text), "first:1", lambda line: None)
    above = "FROM first:1\nRUN busybox chown 5 /plain && busybox rm /bin/busybox\n"
    image = await built(builder, context(tmp_path, above), "second:1", lambda line: None)
    local = await store.ensure(image.id, no_fetch)
    assert len(local.layers) == len((await store.ensure(first.id, no_fetch)).layers) + 1

    def owner(name: str) -> tuple[int, int, int]:
        found = next(layer / name for layer in reversed(local.layers) if (layer / name).exists())
        status = found.stat()
        return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)

    assert owner("bin/sh") == (0, 0, 0o755)
    assert owner("owned") == (1000, 65534, 0o6755)
    assert owner("plain")[0] == 5
    assert owner("sticky") == (0, 0, 0o1777)
    assert (local.layers[2] / "copied").stat().st_uid == 7
    assert stat.S_IMODE((local.layers[2] / "copied").stat().st_mode) == 0o4711


async def test_mounts_of_a_run(tmp_path: Path, builder: Builder) -> None:
    lines: list[str] = []
    text = (
        "FROM scratch AS one\nCOPY busybox /bin/sh\nCOPY busybox /bin/busybox\n"
        "RUN --mount=type=cache,target=/kept echo of the cache > /kept/file\n"
        "FROM one\n"
        "RUN --mount=type=cache,target=/kept busybox cat /kept/file\n"
        "RUN --mount=type=tmpfs,target=/t busybox touch /t/x && busybox mount | busybox grep /t\n"
        "RUN --mount=type=bind,target=/context busybox cat /context/extra\n"
        "RUN --mount=type=bind,from=one,source=/bin,target=/b busybox ls /b\n"
        "RUN --mount=type=secret,id=s,target=/s,uid=7,mode=0400 busybox ls -ln /s\n"
        "RUN busybox df /dev/shm; ulimit -n\n"
    )
    archive = context(tmp_path, text, extra="of the context\n")
    await built(builder, archive, "a:1", lines.append, secrets={"s": b"x"})
    assert "of the cache" in lines
    assert "of the context" in lines
    assert any(line.startswith("tmpfs on /t ") for line in lines)
    assert {"busybox", "sh"} <= set(lines)
    assert any(line.startswith("-r--------") and line.split()[2] == "7" for line in lines)
    assert any(line.split()[:2] == ["shm", "65536"] for line in lines)
    assert str(resource.getrlimit(resource.RLIMIT_NOFILE)[1]) in lines


BOMB = "i=0; while [ $i -lt 300 ]; do sleep 1000 & i=$((i+1)); done; kill $(jobs -p)"


async def test_a_fork_bomb_ends_its_own_build_only(tmp_path: Path, builder: Builder) -> None:
    bomb = f"FROM scratch\nCOPY busybox /bin/sh\nCOPY busybox /bin/sleep\nRUN {BOMB}\n"
    archive = context(tmp_path, bomb).rename(tmp_path / "bomb.tar")
    calm = context(tmp_path, "FROM scratch\nCOPY busybox /bin/sh\nRUN echo calm\n")
    lines: list[str] = []
    with pytest.raises(BuildError):
        await built(builder, archive, "bomb:1", lines.append, limits=BuildLimits(pids=150))
    assert any("can't fork" in line for line in lines), lines
    await asyncio.gather(
        built(builder, archive, "more:1", lines.append, limits=BuildLimits(pids=600)),
        built(builder, calm, "calm:1", lines.append),
    )


async def test_a_build_killed_for_memory_is_reported(tmp_path: Path, builder: Builder) -> None:
    text = "FROM scratch\nCOPY busybox /bin/sh\nCOPY busybox /bin/tail\nRUN tail /dev/zero\n"
    limits = BuildLimits(memory=192 << 20)
    with pytest.raises(BuildError, match=r"ran out of memory \(limit 192 ?MiB\).*--memory"):
        await built(builder, context(tmp_path, text), "greedy:1", print, limits=limits)
    with pytest.raises(ImageError, match="too small for a build"):
        await built(
            builder, context(tmp_path, text), "tiny:1", print, limits=BuildLimits(memory=4096)
        )


async def test_limits_of_a_build_are_enforced_by_the_kernel(
    tmp_path: Path, store: ImageStore, sandboxes: Sandboxes, cgroups: Cgroups
) -> None:
    async def provide(name: str, fresh: bool, progress: Callable[[str], None]) -> str:
        raise ImageError(name)

    seen: dict[str, str] = {}
    builds = replace(cgroups, parent=f"{cgroups.parent}/{BUILDS}")

    def look(line: str) -> None:
        lines.append(line)
        if line == "at it":
            [name] = builds.ids()
            for controller in ("memory", "cpu", "pids", "cpuset"):
                for file in builds.folder(controller, name).iterdir():
                    with suppress(OSError):
                        seen[file.name] = file.read_text().strip()

    groups = BuildGroups(cgroups, memory=512 << 20)
    builder = Builder(store, tmp_path / "b", tmp_path / "s", provide, sandboxes, groups)
    text = (
        "FROM scratch\nCOPY busybox /bin/sh\nCOPY busybox /bin/df\n"
        "RUN echo at it; ulimit -n; df -m /dev/shm\n"
    )
    lines: list[str] = []
    limits = BuildLimits(
        cpu_shares=512,
        cpu_quota=50_000,
        cpuset_cpus="0",
        shm_size=8 << 20,
        ulimits=("nofile=123:456",),
    )
    await built(builder, context(tmp_path, text), "made:1", look, limits=limits)
    if cgroups.hierarchy.mode is CgroupMode.V2:
        wanted = {
            "memory.max": str(512 << 20),
            "cpu.weight": "20",
            "cpu.max": "50000 100000",
            "pids.max": "4096",
            "cpuset.cpus": "0",
        }
    else:
        wanted = {
            "memory.limit_in_bytes": str(512 << 20),
            "cpu.shares": "512",
            "cpu.cfs_quota_us": "50000",
            "cpu.cfs_period_us": "100000",
            "pids.max": "4096",
            "cpuset.cpus": "0",
        }
    assert {name: seen.get(name) for name in wanted} == wanted
    assert int(seen["pids.current"]) > 1
    assert "123" in lines
    [row] = [line.split() for line in lines if line.endswith("/dev/shm") and "RUN" not in line]
    assert row[1] == "8"
