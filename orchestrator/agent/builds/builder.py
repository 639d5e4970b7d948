# SPDX-License-Identifier: Apache-2.0
"""Builds Dockerfiles with buildah, in a private storage of the agent.

buildah runs in a user namespace (`sandbox`), and each RUN in a container of crun, with Docker's
default capabilities, a seccomp profile and a network separate from the host's. Overlay storage does
not copy all files for each layer, unlike vfs. With `--isolation chroot`, the process that forwards
the output of a RUN ends with the RUN and may lose its end (buildah 1.39 and newer); with `oci`,
buildah itself forwards it.

buildah never contacts a registry: base images are pulled like any image, from other nodes or with
the cluster's credentials, and imported into buildah. Images are exchanged with buildah by `dir:`,
the only transport that keeps what Docker's format has beyond the OCI's (HEALTHCHECK, SHELL,
ONBUILD).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.agent.builds.build_cgroup import BuildGroups, BuildLimits, out_of_memory
from orchestrator.agent.builds.buildah import BLOBS, Buildah, Progress, limits
from orchestrator.agent.builds.sandbox import NONE, Sandbox, Sandboxes
from orchestrator.agent.images import staging
from orchestrator.agent.images.image_errors import BuildError, ImageError
from orchestrator.agent.images.image_names import full_name
from orchestrator.agent.images.layers.unpack import unpack_context
from orchestrator.agent.images.store import ImageStore
from orchestrator.agent.images.transfer.layout import convert_dir_layout, make_dir_layout
from orchestrator.agent.runtime.spec.privileges import DEFAULT_CAPABILITIES
from orchestrator.agent.runtime.spec.seccomp import DEFAULT_PROFILE
from orchestrator.linux.trees import remove_tree, tree_usage
from orchestrator.model.formats import dockerfile
from orchestrator.model.objects import Image

log = logging.getLogger(__name__)

_ISOLATION = (
    "--isolation=oci",
    "--runtime=crun",
    # The agent manages cgroups: processes in a user namespace cannot create one.
    "--runtime-flag=cgroup-manager=disabled",
    # buildah runs in the sandbox's network namespace, which is "host" in its terms.
    "--network=host",
    *(f"--cap-add={name}" for name in DEFAULT_CAPABILITIES),
)

_UNKNOWN = re.compile(r'Unknown instruction: "(.*?)"')
_FAILED_STEP = re.compile(r'building at STEP "(.*?)": (.*)$')

Provide = Callable[[str, bool, Progress], Awaitable[str]]
"""Pulls the image of a name into the store, with the flag the newest of its registry, and returns
its digest. Raises `ImageError`."""


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """The input and options of a build."""

    names: tuple[str, ...] = ()
    """Names of the image; may be empty."""
    dockerfile: str = ""
    """Its path in the context; empty: `Dockerfile` or `Containerfile`."""
    content: bytes = b""
    """Content of a Dockerfile outside the context. Then the client has applied `.dockerignore`."""
    build_args: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    """The stage to build; empty: the last."""
    no_cache: bool = False
    pull: bool = False
    """Whether to pull newer base images from registries."""
    oci: bool = False
    """Whether to build an image in OCI format instead of Docker's."""
    network: str = ""
    """Network of RUN: `sandbox.HOST`, `sandbox.NONE`, else the builds' network."""
    add_hosts: tuple[str, ...] = ()
    """HOST:IP entries for the /etc/hosts of RUN."""
    secrets: Mapping[str, bytes] = field(default_factory=dict)
    limits: BuildLimits = field(default_factory=BuildLimits)


@dataclass(frozen=True, slots=True)
class CacheUsage:
    """The build cache."""

    entries: int
    size: int
    """Bytes on disk."""


class Builder:
    """Builds images on one node. Concurrent builds share a layer cache."""

    def __init__(
        self,
        store: ImageStore,
        root: Path,
        secrets: Path,
        provide: Provide,
        sandboxes: Sandboxes,
        groups: BuildGroups,
    ) -> None:
        """`root`: a private folder of the agent for buildah's storage and temporary files.
        `secrets`: another one, on a tmpfs."""
        self._store = store
        self._scratch = staging.Scratch(root / "tmp")
        self._secrets = staging.Scratch(secrets)
        self._old_storage = root / "storage"
        self._storage = root / "cache"
        self._buildah = Buildah(root, self._storage, secrets)
        self._path_in_sandbox = self._buildah.path_in_sandbox
        self._sandboxes = sandboxes
        self._groups = groups
        self._provide = provide
        self._turn = asyncio.Lock()
        self._building = 0
        # An earlier agent may have been killed during a build.
        self._interrupted = True

    async def recover(self) -> None:
        """Remove leftovers of builds that ended with an earlier agent, secrets first. The next
        build would do so, too, but may never come."""
        await self._groups.recover()
        async with self._turn:
            left = self._secrets.used() or self._scratch.used() or self._old_storage.exists()
            if not left:
                return
            try:
                await self._clean()
            except (ImageError, OSError) as error:
                self._interrupted = True
                log.warning("cannot remove leftovers of a build: %s", error)

    async def build(self, context: Path, spec: BuildSpec, progress: Progress) -> Image:
        """Build a context, a tar (uncompressed, gzip or zstd), and load the image into the store.

        Raises `BuildError` when an instruction fails, with its line; `ImageError` for the rest.
        """
        names = [full_name(name) for name in spec.names]
        async with self._place(spec.network, spec.limits) as (work, sandbox):
            folder = work / "context"
            folder.mkdir()
            await unpack_context(context, folder)
            file, shown, ignores = _dockerfile(folder, work, spec)
            text = file.read_text(errors="replace")
            # The image has no name in buildah's storage, which keeps it as cache for later builds.
            identity, seen = work / "identity", self._path_in_sandbox
            options = [
                self._trust_option(work),
                *_ISOLATION,
                "--layers",
                "--force-rm",
                "--pull=never",
                *limits(spec.limits.ulimits),
            ]
            options += [
                f"--file={seen(file)}",
                f"--iidfile={seen(identity)}",
                *ignores,
                *_options(spec),
            ]
            profile = work / "seccomp.json"
            profile.write_bytes(await asyncio.to_thread(DEFAULT_PROFILE.read_bytes))
            options.append(f"--security-opt=seccomp={seen(profile)}")
            imported = await self._import_bases(text, shown, spec, work, sandbox, progress)
            for base, id in imported:
                options.append(f"--build-context={base.written}=container-image://{id}")

            def clear(line: str) -> str:
                for base, id in imported:
                    line = line.replace(id, base.name)
                return line.replace(f'"{seen(folder)}"', "the build context")

            with self._secrets.folder() as secrets:
                for number, (key, value) in enumerate(sorted(spec.secrets.items())):
                    path = secrets / str(number)
                    path.touch(0o600)
                    path.write_bytes(value)
                    options.append(f"--secret=id={key},src={self._path_in_sandbox(path)}")
                try:
                    await self._buildah.run(
                        sandbox,
                        work,
                        *("bud", *options, str(seen(folder))),
                        progress=lambda line: progress(clear(line)),
                    )
                except ImageError as error:
                    if self._groups.out_of_memory(sandbox.group):
                        raise BuildError(out_of_memory(sandbox.group)) from error
                    raise _explain(clear(str(error)), shown, text) from error
            built, made, layout = identity.read_text().strip(), work / "built", work / "image"
            await self._buildah.run(
                *(
                    sandbox,
                    work,
                    "push",
                    "--quiet",
                    self._trust_option(work),
                    built,
                    f"dir:{seen(made)}",
                )
            )
            await asyncio.to_thread(convert_dir_layout, made, layout)
            image = await self._store.load(layout, names[0] if names else "")
            for name in names[1:]:
                await self._store.tag(image.id, name)
            return next(each for each in self._store.inventory() if each.id == image.id)

    async def cache(self) -> CacheUsage:
        """The usage of the build cache. Raises `ImageError`."""
        async with self._place() as (work, sandbox):
            listed = await self._buildah.run(
                sandbox, work, "images", "--all", "--quiet", "--no-trunc"
            )
            size = await asyncio.to_thread(tree_usage, self._storage)
        return CacheUsage(len(set(listed.split())), size)

    async def prune(self, everything: bool) -> int:
        """Remove the cached steps of earlier builds, with `everything` also their base images;
        returns the freed bytes. Raises `ImageError`."""
        if not self._storage.exists():
            return 0
        async with self._turn:
            if self._building:
                raise ImageError("a build is running, so the cache cannot be pruned")
            await self._clean()
            before = await asyncio.to_thread(tree_usage, self._storage)
            options = ["--all"] if everything else []
            async with self._sandboxes.sandbox() as sandbox:
                with self._scratch.folder() as work:
                    await self._buildah.run(sandbox, work, "prune", "--force", *options)
            return max(0, before - await asyncio.to_thread(tree_usage, self._storage))

    def usage(self) -> int:
        """Disk usage of the build cache in bytes. Blocks."""
        return tree_usage(self._storage)

    @asynccontextmanager
    async def _place(
        self, network: str = NONE, limits: BuildLimits | None = None
    ) -> AsyncIterator[tuple[Path, Sandbox]]:
        """A folder and a sandbox for one build. Leftovers of interrupted builds are removed when no
        other build runs."""
        async with self._turn:
            await self._clean()
            self._building += 1
        try:
            async with (
                self._groups.group(limits or BuildLimits()) as group,
                self._sandboxes.sandbox(network) as sandbox,
            ):
                with self._scratch.folder() as work:
                    yield work, replace(sandbox, group=group)
        except asyncio.CancelledError:
            self._interrupted = True
            raise
        finally:
            self._building -= 1
            await asyncio.shield(self._clean_up())

    async def _clean_up(self) -> None:
        async with self._turn:
            await self._clean()

    async def _clean(self) -> None:
        if not self._interrupted or self._building:
            return
        self._interrupted = False
        await asyncio.to_thread(self._secrets.clear)
        await asyncio.to_thread(self._scratch.clear)
        if self._old_storage.exists():
            await asyncio.to_thread(remove_tree, self._old_storage)
        async with self._sandboxes.sandbox() as sandbox:
            with self._scratch.folder() as work:
                await self._buildah.run(sandbox, work, "rm", "--all")

    def _trust_option(self, work: Path) -> str:
        """An option by which buildah accepts images from this node: the trust policy was checked
        when they were pulled."""
        policy = work / "policy.json"
        if not policy.exists():
            policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        return f"--signature-policy={self._path_in_sandbox(policy)}"

    async def _import_bases(
        self,
        text: str,
        shown: str,
        spec: BuildSpec,
        work: Path,
        sandbox: Sandbox,
        progress: Progress,
    ) -> list[tuple[dockerfile.Base, str]]:
        """Import the Dockerfile's base images into buildah's storage; each with its id there."""
        imported: list[tuple[dockerfile.Base, str]] = []
        platform = self._store.platform
        arguments = dockerfile.platform_arguments(
            platform.os, platform.architecture, platform.variant
        )
        for base in dockerfile.bases(text, spec.build_args, arguments, spec.target):
            try:
                full_name(base.name)
            except ImageError:
                continue  # invalid: buildah reports it
            try:
                digest = await self._provide(base.name, spec.pull, progress)
            except ImageError as error:
                raise BuildError(f"{shown}:{base.line}: {error}") from error
            manifest = self._store.blob_path(digest)
            if manifest is None:
                raise BuildError(
                    f"{shown}:{base.line}: the image {base.name} was removed during the build"
                )
            folder = work / f"base-{len(imported)}"
            await asyncio.to_thread(make_dir_layout, folder, manifest, BLOBS)
            output = await self._buildah.run(
                *(sandbox, work, "pull", "--quiet", self._trust_option(work)),
                f"dir:{self._path_in_sandbox(folder)}",
                blobs=manifest.parent,
            )
            id = output.split()[-1]
            # With a name, it is kept when cached steps are pruned.
            await self._buildah.run(sandbox, work, "tag", id, f"localhost/base:{manifest.name}")
            imported.append((base, id))
        return imported


def _dockerfile(folder: Path, work: Path, spec: BuildSpec) -> tuple[Path, str, list[str]]:
    """The Dockerfile, its name in messages, and options for ignored files."""
    if spec.content:
        file = work / "Dockerfile"
        file.write_bytes(spec.content)
        return file, spec.dockerfile or "Dockerfile", ["--ignorefile=/dev/null"]
    names = [spec.dockerfile] if spec.dockerfile else ["Dockerfile", "Containerfile"]
    for name in names:
        file = (folder / name).resolve()
        if file.is_file() and file.is_relative_to(folder.resolve()):
            return file, str(file.relative_to(folder.resolve())), []
    raise ImageError(f"the build context has no {' or '.join(names)}: name one with -f")


def _options(spec: BuildSpec) -> list[str]:
    options = [f"--format={'oci' if spec.oci else 'docker'}"]
    options += [f"--build-arg={key}={value}" for key, value in sorted(spec.build_args.items())]
    options += [f"--label={key}={value}" for key, value in sorted(spec.labels.items())]
    options += [f"--add-host={entry}" for entry in spec.add_hosts]
    if spec.limits.shm_size:
        options.append(f"--shm-size={spec.limits.shm_size}")
    if spec.target:
        options.append(f"--target={spec.target}")
    if spec.no_cache:
        options.append("--no-cache")
    return options


def _explain(error: str, file: str, text: str) -> BuildError:
    """The failure, with its line in the Dockerfile if buildah names the instruction."""
    match = _FAILED_STEP.search(error)
    if match is None:
        return BuildError(f"the build failed: {error}")
    step, why = match.groups()
    if unknown := _UNKNOWN.search(why):
        line, words = dockerfile.unknown(unknown[1], text)
        return BuildError(f"{file}:{line}: {words}")
    line = dockerfile.line_of(step, text)
    where = f"{file}:{line}" if line else file
    return BuildError(f"{where}: {step}: {why}")
