# SPDX-License-Identifier: Apache-2.0
"""Assembly of a project's stack: resolves names and references, builds and validates specs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from orchestrator.compose.conversion.deploy_section import (
    located,
    platform_rules,
    policy_of,
    replicas_of,
)
from orchestrator.compose.conversion.networks_and_volumes import (
    DEFAULT_NETWORK,
    attachments_of,
    mounts_of,
    network_keys,
    networks_of,
    volumes_of,
)
from orchestrator.compose.conversion.secrets_and_configs import files_of, grants_of
from orchestrator.compose.conversion.task_specs import (
    container_of,
    generic_of,
    ports_of,
    resources_of,
    restart_of,
)
from orchestrator.compose.project.loader import Project
from orchestrator.compose.schema.extension import with_extension
from orchestrator.compose.schema.value_kinds import ReadContext
from orchestrator.compose.stack import Stack, StackBuild, StackService
from orchestrator.compose.tree import ComposeError, Map, key_path
from orchestrator.model.dependencies import (
    Dependency,
    DependencyCondition,
    find_cycle,
    start_order,
)
from orchestrator.model.mounts import MountSpec, MountType
from orchestrator.model.specs import (
    STACK_LABEL,
    EndpointMode,
    RestartCondition,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
)
from orchestrator.model.validation.service_specs import InvalidSpec, validate_service

_CONDITIONS = {
    "service_started": DependencyCondition.STARTED,
    "service_healthy": DependencyCondition.HEALTHY,
    "service_completed_successfully": DependencyCondition.COMPLETED,
}


def stack_of(project: Project, name: str, reading: ReadContext) -> Stack:
    """The stack `name`. Raises ComposeError for the first invalid part."""
    return _Assembly(project, name, reading).stack()


class _Assembly:
    def __init__(self, project: Project, name: str, reading: ReadContext) -> None:
        self._project, self._name, self._reading = project, name, reading
        self._services = project.document.section("services")
        self._volumes = volumes_of(project.document, name)
        self._networks = networks_of(project.document, name, reading)
        self._secrets = files_of(project, "secrets", name, reading)
        self._configs = files_of(project, "configs", name, reading)

    def stack(self) -> Stack:
        if not self._services.entries:
            raise ComposeError(self._project.document.place, "services", "the file has no services")
        needs = {
            key: {**_dependencies(cast(Map, each))} for key, each in self._services.entries.items()
        }
        for key in needs:
            if (cycle := find_cycle(key, needs)) is not None:
                service = cast(Map, self._services.entries[key])
                message = f"services depend on each other in a cycle: {' -> '.join(cycle)}"
                place = service.place_of("depends_on")
                raise ComposeError(place, f"services.{key}.depends_on", message)
        completed = {
            other
            for wanted in needs.values()
            for other, condition in wanted.items()
            if condition is DependencyCondition.COMPLETED
        }
        services = tuple(
            self._service(key, cast(Map, self._services.entries[key]), needs, key in completed)
            for key in start_order(needs)
        )
        used = {
            key for each in self._services.entries.values() for key in network_keys(cast(Map, each))
        }
        networks = (
            each for key, each in self._networks.items() if key != DEFAULT_NETWORK or key in used
        )
        return Stack(
            self._name,
            services,
            tuple(networks),
            tuple(self._volumes.values()),
            (*self._secrets.values(), *self._configs.values()),
        )

    def _service(
        self,
        key: str,
        section: Map,
        needs: Mapping[str, Mapping[str, DependencyCondition]],
        completes: bool,
    ) -> StackService:
        at, name = key_path("services", key), f"{self._name}_{key}"
        image, build = self._image(section, at, name)
        deploy = section.section("deploy")
        profiles = self._seccomp_profiles(section, at)
        container = container_of(section, at, image, profiles, self._reading)
        container = replace(
            container,
            labels={**container.labels, STACK_LABEL: self._name},
            mounts=self._mounts(section, at),
            secrets=grants_of(section, at, "secrets", self._secrets),
            configs=grants_of(section, at, "configs", self._configs),
        )
        reservation, limit, shares = resources_of(section, at)
        mode = ServiceMode[deploy.text("mode", "replicated").upper().replace("-", "_")]
        restart = restart_of(section, mode, completes)
        if completes and restart.condition in (
            RestartCondition.ANY,
            RestartCondition.UNLESS_STOPPED,
        ):
            message = "other services wait for this one to complete, so it cannot always restart"
            raise ComposeError(section.place_of("restart"), key_path(at, "restart"), message)
        placement = deploy.section("placement")
        spec = ServiceSpec(
            name=name,
            labels={**deploy.pairs("labels"), STACK_LABEL: self._name},
            mode=mode,
            replicas=replicas_of(section, mode, at),
            task=TaskSpec(
                container=container,
                reservation=reservation,
                generic_resources=generic_of(section, at, self._reading),
                limit=limit,
                shares=shares,
                ports=ports_of(section, at),
                restart=restart,
                networks=attachments_of(key, section, at, self._networks),
            ),
            update=policy_of(deploy.section("update_config")),
            rollback=policy_of(deploy.section("rollback_config")),
            constraints=(*placement.texts("constraints"), *platform_rules(section, at)),
            endpoint_mode=EndpointMode[deploy.text("endpoint_mode", "vip").upper()],
            max_per_node=int(placement.text("max_replicas_per_node", "0")),
            spread=tuple(cast(Map, p).text("spread") for p in placement.items_of("preferences")),
            depends_on=tuple(
                Dependency(f"{self._name}_{other}", condition)
                for other, condition in needs[key].items()
            ),
        )
        spec = with_extension(spec, section)
        try:
            validate_service(spec)
        except InvalidSpec as error:
            raise located(error, section, at) from None
        return StackService(key, spec, section.place, build)

    def _mounts(self, section: Map, at: str) -> tuple[MountSpec, ...]:
        """A service's mounts, and those of `volumes_from`; its own take precedence."""
        found = {each.target: each for each in mounts_of(section, at, self._volumes)}
        for index, text in enumerate(section.texts("volumes_from")):
            name, _, mode = text.partition(":")
            other = cast(Map, self._services.entries[name])
            for each in self._mounts(other, key_path("services", name)):
                if each.type is MountType.TMPFS:
                    continue
                if not each.source:
                    message = (
                        f"the volume at {each.target} of service '{name}' has no name; give it one"
                    )
                    place = section.items_of("volumes_from")[index].place
                    raise ComposeError(place, key_path(f"{at}.volumes_from", index), message)
                shared = replace(each, read_only=True) if mode == "ro" else each
                found.setdefault(each.target, shared)
        return tuple(found.values())

    def _image(self, section: Map, at: str, name: str) -> tuple[str, StackBuild | None]:
        image, build = section.text("image"), section.get("build")
        if isinstance(build, Map):
            check_build(build, key_path(at, "build"))
            image = image or f"{name.lower()}:latest"
            return image, StackBuild(image, build)
        if not image:
            raise ComposeError(section.place, at, "image and build are both missing")
        return image, None

    def _seccomp_profiles(self, section: Map, at: str) -> dict[str, str]:
        found = {}
        for index, option in enumerate(section.texts("security_opt")):
            key, _, file = option.replace(":", "=", 1).partition("=")
            if key != "seccomp" or file == "unconfined":
                continue
            try:
                found[file] = self._project.read(self._reading.path(file)).decode()
            except (OSError, UnicodeError) as error:
                reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
                place = section.items_of("security_opt")[index].place
                message = f"cannot read the seccomp profile {file}: {reason.lower()}"
                raise ComposeError(place, f"{at}.security_opt[{index}]", message) from None
        return found


def check_build(build: Map, at: str) -> None:
    """Raises ComposeError for a build with two Dockerfiles."""
    if build.text("dockerfile") and build.text("dockerfile_inline"):
        message = "dockerfile is set, too; leave one out"
        raise ComposeError(build.place_of("dockerfile_inline"), f"{at}.dockerfile_inline", message)


def _dependencies(section: Map) -> dict[str, DependencyCondition]:
    """A service's dependencies: `depends_on`, `links` and `volumes_from`."""
    found = {
        other: _CONDITIONS[cast(Map, each).text("condition", "service_started")]
        for other, each in section.section("depends_on").entries.items()
    }
    for text in (*section.texts("links"), *section.texts("volumes_from")):
        found.setdefault(text.partition(":")[0], DependencyCondition.STARTED)
    return found
