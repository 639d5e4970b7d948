# SPDX-License-Identifier: Apache-2.0
"""Building a container's bundle: user namespace, root file system, configuration."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from orchestrator.agent.runtime.engine.bundle import Bundle
from orchestrator.agent.runtime.engine.program_errors import check_program
from orchestrator.agent.runtime.interface import Container, Mount, RuntimeFailure
from orchestrator.agent.runtime.isolation.idranges import SIZE, IdRanges
from orchestrator.agent.runtime.isolation.rootfs import (
    Owners,
    ensure_unmounted,
    masked,
    mount_host_root,
    mount_image_root,
)
from orchestrator.agent.runtime.isolation.userns import NamespaceMaker, keep, owner
from orchestrator.agent.runtime.resources.cgroups import Cgroups
from orchestrator.agent.runtime.spec import cdi, oci
from orchestrator.agent.runtime.spec.container_devices import DeviceNode, find_devices, make_nodes
from orchestrator.agent.runtime.spec.etcfiles import ETC_FILES, etc_files
from orchestrator.agent.runtime.spec.image_users import read_user_tables
from orchestrator.agent.runtime.spec.node_facts import NodeFacts, find_runtime, kernel_version
from orchestrator.agent.runtime.spec.privileges import DEFAULT_CAPABILITIES, capabilities, own_users
from orchestrator.agent.runtime.spec.seccomp import (
    SeccompProfile,
    go_architecture,
    load_profile,
    own_profile,
)
from orchestrator.daemon import bareprogram
from orchestrator.linux import spawn
from orchestrator.linux.mounts import idmapped
from orchestrator.linux.processes import ProcessIdentity
from orchestrator.model.formats.cdi_names import is_cdi
from orchestrator.model.specs import ContainerSpec, TaskSpec
from orchestrator.model.validation.shared_namespaces import shared_kinds

_MOUNT_SHM = (*bareprogram.command("orchestrator.agent.runtime.isolation.container_mounts"), "shm")


class BundleBuilder:
    """Builds the bundles of one node; an async context manager."""

    def __init__(
        self,
        ids: IdRanges,
        cgroups: Cgroups,
        *,
        netns_dir: Path,
        facts: NodeFacts,
        seccomp_profile: Path,
        hidden: Sequence[Path],
        cdi_folders: Sequence[Path] = cdi.FOLDERS,
    ) -> None:
        """`netns_dir` has the network namespaces by container; `hidden` are folders that no
        container sees, also when its root is the node's own files."""
        self._ids = ids
        self._cgroups = cgroups
        self._netns_dir = netns_dir
        self._facts = facts
        self._profile_path = seccomp_profile
        self._hidden = tuple(hidden)
        self._cdi_folders = tuple(cdi_folders)
        self._maker = NamespaceMaker()

    async def __aenter__(self) -> Self:
        """Raises RuntimeFailure when this node has no seccomp profile."""
        self._ids.open()
        self._default_profile(frozenset(DEFAULT_CAPABILITIES))
        await self._maker.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._maker.__aexit__(kind, error, trace)

    def held(self) -> frozenset[str]:
        """Containers that hold user ids."""
        return self._ids.held()

    def users(self, container_id: str) -> range:
        """The host's ids of a container."""
        found = self._ids.find(container_id)
        return range(found.first, found.first + SIZE) if found is not None else range(0)

    def release(self, container_id: str) -> None:
        """Release what `reserve` allocated, but the network namespace: the network removes it."""
        self._ids.release(container_id)

    async def reserve(self, container_id: str, spec: TaskSpec, beside: str = "") -> None:
        """Allocate a range of user ids for a container, and make the network namespace that belongs
        to its user namespace, unless it has the host's users. With `beside`, it shares the user
        namespace of that container. Raises RuntimeFailure."""
        if not own_users(spec.container):
            return
        if beside:
            await self._share_users(container_id, beside)
            return
        known = self._ids.find(container_id) is not None
        ids = self._ids.allocate(container_id)
        path = self._netns_dir / container_id
        if not known:
            # A leftover belongs to a range that this container does not have any more.
            ensure_unmounted(path)
        elif (found := owner(path)) is not None:
            os.close(found)
            return
        userns, netns = await self._maker.make(ids)
        try:
            keep(netns, path)
        finally:
            os.close(userns)
            os.close(netns)

    async def _share_users(self, container_id: str, beside: str) -> None:
        """Let a container share the user namespace of another one, to see its processes."""
        theirs, path = self._ids.find(beside), self._netns_dir / container_id
        userns = owner(self._netns_dir / beside)
        if theirs is None or userns is None:
            raise RuntimeFailure(
                "the container whose namespaces it shares has the host's users; run this "
                "one with --userns host as well"
            )
        try:
            if self._ids.find(container_id) not in (None, theirs):
                raise RuntimeFailure(
                    "the container whose namespaces it shares has other user ids than when "
                    "this one was created; remove this one and run it again"
                )
            self._ids.share(container_id, beside)
            if (found := owner(path)) is not None:
                same = os.fstat(found).st_ino == os.fstat(userns).st_ino
                os.close(found)
                if same:
                    return
            ensure_unmounted(path)
            netns = await self._maker.join(userns)
            try:
                keep(netns, path)
            finally:
                os.close(netns)
        finally:
            os.close(userns)

    @asynccontextmanager
    async def build(
        self, container: Container, bundle: Bundle, neighbour: ProcessIdentity | None = None
    ) -> AsyncIterator[str | None]:
        """Build the bundle, with the root mounted, for the OCI runtime to read while the block
        lasts; yields the OCI runtime that the container requests instead of the default.
        `neighbour` is the first process of the container whose namespaces it shares.

        Raises RuntimeFailure for errors that the user or the node's operator can fix.
        """
        edits = cdi.Edits()
        if names := list(filter(is_cdi, container.spec.container.devices)):
            edits = await asyncio.to_thread(cdi.find_edits, names, self._cdi_folders)
            container = edits.apply(container)
        spec = container.spec.container
        runtime = find_runtime(spec.runtime) if spec.runtime else None
        async with AsyncExitStack() as stack:
            users, owners = await self._users(container, stack)
            ids = owners.ids if owners is not None else None
            if owners is not None:
                container = replace(container, mounts=_mapped(container.mounts, owners))
            await bundle.ensure(spec.storage_size, durable=container.keep, ids=ids)
            if runtime is not None:
                bundle.write_runtime(runtime)
            if spec.rootfs:
                mount_host_root(bundle.root, self._hidden)
            else:
                layers = container.image.layers
                mount_image_root(
                    *(layers, bundle.upper, bundle.work, bundle.root, owners),
                    maps=bundle.maps,
                    keep=container.keep,
                )
            devices = _devices(spec, edits)
            if devices and ids is not None:
                devices = make_nodes(devices, bundle.devices, ids)
            joined: dict[str, str] = {}
            if neighbour is not None:
                joined = _joined(neighbour, shared_kinds(spec), owners, stack)
                if "ipc" in joined:
                    await _share_memory(neighbour, bundle, stack)
            document = oci.config(
                container,
                self._facts,
                self._places(container, bundle),
                read_user_tables(bundle.root),
                devices=devices,
                users=users,
                joined=joined,
            )
            edits.complete(document)
            self._check(container, bundle, document["process"]["env"], document["process"]["cwd"])
            text = oci.render(document, self._profile(container))
            bundle.write_texts(text, etc_files(container, self._facts), ids)
            yield runtime

    async def _users(
        self, container: Container, stack: AsyncExitStack
    ) -> tuple[oci.OwnUsers | None, Owners | None]:
        """The container's user namespace: the owner of its network namespace, as `reserve` made it,
        else a new one."""
        if not own_users(container.spec.container):
            return None, None
        own = self._netns_dir / container.id
        ours = container.netns == own
        if container.beside:
            userns = owner(own)
            ids = self._ids.find(container.id)
            if userns is None or ids is None:
                raise RuntimeFailure("the user namespace that it shares is gone; start it again")
            stack.callback(os.close, userns)
            shared = oci.OwnUsers(_path(userns), str(container.netns or own), not ours)
            return shared, Owners(ids, userns)
        ids = self._ids.allocate(container.id)
        userns = owner(container.netns) if container.netns is not None and ours else None
        netns = str(container.netns or "")
        if userns is None:
            userns, made = await self._maker.make(ids)
            stack.callback(os.close, made)
            netns = netns or _path(made)
        stack.callback(os.close, userns)
        foreign = container.host_network or (container.netns is not None and not ours)
        return oci.OwnUsers(_path(userns), netns, foreign), Owners(ids, userns)

    def _places(self, container: Container, bundle: Bundle) -> oci.Places:
        host_root = bool(container.spec.container.rootfs)
        return oci.Places(
            bundle.root,
            bundle.state,
            self._cgroups.path(container.id),
            tuple(n for n in ETC_FILES if not host_root or os.path.lexists(f"/etc/{n}")),
            tuple(masked(self._hidden)) if host_root else (),
            bundle.shm if "ipc" in shared_kinds(container.spec.container) else None,
        )

    def _check(
        self, container: Container, bundle: Bundle, env: Sequence[str], workdir: str
    ) -> None:
        # Mounts over the image do not exist yet, and may have a program that the image lacks.
        if not container.mounts:
            program = oci.arguments(container)[0]
            check_program(bundle.root, program, env, workdir, os.uname().machine)
        if container.spec.container.init and not self._facts.init.exists():
            raise RuntimeFailure(f"this node has no {self._facts.init} for --init; install tini")

    def _profile(self, container: Container) -> SeccompProfile | None:
        spec = container.spec.container
        if spec.privileged or spec.seccomp == "unconfined":
            return None
        held = frozenset(capabilities(spec, self._facts.capabilities))
        if spec.seccomp:
            machine = go_architecture(os.uname().machine)
            return own_profile(spec.seccomp, held, machine, kernel_version())
        return self._default_profile(held)

    def _default_profile(self, held: frozenset[str]) -> SeccompProfile:
        machine = go_architecture(os.uname().machine)
        return load_profile(self._profile_path, held, machine, kernel_version())


def _devices(spec: ContainerSpec, edits: cdi.Edits) -> tuple[DeviceNode, ...]:
    found = {device.path: device for device in (*find_devices(spec), *edits.devices)}
    return tuple(found.values())


def _mapped(mounts: tuple[Mount, ...], owners: Owners) -> tuple[Mount, ...]:
    """Bind mounts of a container with a user namespace, idmapped so that its root has the
    permissions of the node's root there. Some file systems, such as `/proc`, do not support that;
    their files have unmapped owners in the container."""
    found = []
    for mount in mounts:
        if mount.source and not mount.owned and not mount.exact:
            try:
                os.close(idmapped(Path(mount.source), owners.userns))
            except OSError:
                pass
            else:
                mount = replace(mount, owned=True)
        found.append(mount)
    return tuple(found)


_ENDED = "the container whose namespaces it shares has ended; start it again"


def _joined(
    neighbour: ProcessIdentity, kinds: Sequence[str], owners: Owners | None, stack: AsyncExitStack
) -> dict[str, str]:
    """Paths of the namespaces of a process, by kind, valid until `stack` is closed. Raises
    RuntimeFailure."""
    found, users = {}, 0
    try:
        for kind in kinds:
            namespace = os.open(f"/proc/{neighbour.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, namespace)
            found[kind] = _path(namespace)
        users = os.stat(f"/proc/{neighbour.pid}/ns/user").st_ino
    except OSError as error:
        raise RuntimeFailure(_ENDED) from error
    same = owners is None or users == os.fstat(owners.userns).st_ino
    if not same or not neighbour.alive():
        raise RuntimeFailure(_ENDED)
    return found


async def _share_memory(neighbour: ProcessIdentity, bundle: Bundle, stack: AsyncExitStack) -> None:
    """Mount the /dev/shm of a process' container in the bundle until `stack` is closed. Raises
    RuntimeFailure."""
    process = neighbour.open()
    if process is None:
        raise RuntimeFailure(_ENDED)
    stack.callback(os.close, process)
    bundle.shm.mkdir(exist_ok=True)
    stack.callback(ensure_unmounted, bundle.shm)
    argv = [*_MOUNT_SHM, str(process), str(bundle.shm)]
    status, stderr = await spawn.run(argv, pass_fds=(process,))
    if status != 0:
        raise RuntimeFailure(f"the other container's /dev/shm cannot be mounted ({stderr.strip()})")


def _path(descriptor: int) -> str:
    """A path by which other processes open one of our descriptors."""
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def release_null_device() -> None:
    """Make the host's root the owner of /dev/null again.

    crun until 1.21 makes a container's user the owner of its standard streams, including
    /dev/null, and the owner may change its mode for the whole host. This is undone before the
    container's program runs.
    """
    if os.stat(os.devnull).st_uid != 0:
        os.chown(os.devnull, 0, 0)
