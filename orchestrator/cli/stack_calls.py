"""What is asked of a manager about a stack: what there is, and the call that makes each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from orchestrator.cli.client import Client
from orchestrator.cli.stack_changes import Change, Observed
from orchestrator.compose.stack import Stack, StackFile, StackNetwork, StackService, StackVolume
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.documents import DocumentKind
from orchestrator.model.objects import Network, Volume
from orchestrator.model.services import Service
from orchestrator.pb import control_pb2, documents_pb2, networks_pb2, volumes_pb2


def observed(client: Client) -> Observed:
    """What the cluster has."""
    services = client.call("ListServices", control_pb2.ListServicesRequest()).services
    networks = client.call("ListNetworks", control_pb2.ListNetworksRequest()).networks
    volumes = client.call("Volumes.ListVolumes", volumes_pb2.ListVolumesRequest()).volumes
    images = client.call("ListImages", control_pb2.ListImagesRequest()).images
    found: list[Service] = [from_proto(row.service) for row in services]
    nets: list[Network] = [from_proto(each) for each in networks]
    vols: list[Volume] = [from_proto(row.volume) for row in volumes if row.declared]
    return Observed(
        {each.spec.name: each for each in found},
        {each.name: each for each in nets},
        {each.name: each for each in vols},
        {name: image.id for image in images for name in image.names},
        frozenset(row.volume.id for row in volumes),
        {
            (kind, row.document.name): from_proto(row.document)
            for kind in DocumentKind
            for row in client.call(
                "Documents.ListDocuments", documents_pb2.ListDocumentsRequest(kind=cast(Any, kind))
            ).documents
        },
    )


def with_outdated(client: Client, there: Observed, stack: Stack) -> Observed:
    """The same, with the secrets and configs of the stack whose data is another: a manager
    compares, as it shows nobody what is in a secret."""
    found = set()
    for file in stack.files:
        key = file.kind, file.name
        if file.external or key not in there.documents:
            continue
        request = documents_pb2.UpdateDocumentRequest(
            kind=cast(Any, file.kind),
            document=there.documents[key].id,
            data=file.content,
            check_only=True,
        )
        if client.call("Documents.UpdateDocument", request).changed:
            found.add(key)
    return replace(there, outdated=frozenset(found))


class StackCalls:
    """The calls of a deployment."""

    def __init__(
        self,
        there: Observed,
        resolve: str,
        built: frozenset[str],
        pretends: bool,
        detach: bool = False,
    ) -> None:
        """`detach`: what is removed may go later, when the tasks of removed services have
        stopped."""
        self._there, self._resolve, self._pretends = there, resolve, pretends
        self._detach = detach
        self._built = built
        """Names of services whose images are built first: until then they cannot be looked up."""

    def request(self, step: Change, checking: bool = False) -> tuple[str, Any]:
        """The method and the request of a step; `checking`: which a manager is only to look at."""
        return _REQUESTS[step.action, step.kind](self, step, checking)

    def _create_network(self, step: Change, checking: bool) -> tuple[str, Any]:
        wanted: StackNetwork = step.wanted
        return "Networks.CreateNetwork", networks_pb2.CreateNetworkRequest(
            name=wanted.name,
            driver=wanted.driver,
            subnets=wanted.subnets,
            gateway=wanted.gateway,
            ip_range=wanted.ip_range,
            ipv6=wanted.ipv6,
            internal=wanted.internal,
            attachable=wanted.attachable,
            encrypted=wanted.encrypted,
            options=wanted.options,
            labels=wanted.labels,
            ipam_driver=wanted.ipam_driver,
            ipam_options=wanted.ipam_options,
        )

    def _create_volume(self, step: Change, checking: bool) -> tuple[str, Any]:
        wanted: StackVolume = step.wanted
        return "Volumes.CreateVolume", volumes_pb2.CreateVolumeRequest(
            name=wanted.name, driver=wanted.driver, options=wanted.options, labels=wanted.labels
        )

    def _create_service(self, step: Change, checking: bool) -> tuple[str, Any]:
        wanted: StackService = step.wanted
        return "CreateService", control_pb2.CreateServiceRequest(
            spec=to_proto(wanted.spec), no_resolve_image=self._unresolved(step, checking)
        )

    def _change_service(self, step: Change, checking: bool) -> tuple[str, Any]:
        wanted: StackService = step.wanted
        current = self._there.services[step.name]
        never = self._unresolved(step, checking)
        return "UpdateService", control_pb2.UpdateServiceRequest(
            service=current.id,
            spec=to_proto(wanted.spec),
            revision=current.revision,
            base=to_proto(current.spec),
            no_resolve_image=never,
            resolve_image="image" in step.keys and not never,
        )

    def _unresolved(self, step: Change, checking: bool) -> bool:
        """Whether the image's tag is not looked up by the manager: it is for the nodes to do, or
        the image is to be built first."""
        never: bool = self._resolve == "never"
        return never or ((checking or self._pretends) and step.name in self._built)

    def _remove_service(self, step: Change, checking: bool) -> tuple[str, Any]:
        return "RemoveService", control_pb2.RemoveServiceRequest(service=step.name)

    def _drop_network(self, step: Change, checking: bool) -> tuple[str, Any]:
        return "Networks.RemoveNetwork", networks_pb2.RemoveNetworkRequest(
            network=step.name, when_unused=self._detach
        )

    def _create_document(self, step: Change, checking: bool) -> tuple[str, Any]:
        wanted: StackFile = step.wanted
        return "Documents.CreateDocument", documents_pb2.CreateDocumentRequest(
            kind=cast(Any, wanted.kind),
            name=wanted.name,
            labels=wanted.labels,
            data=wanted.content,
            template_driver=wanted.template_driver,
        )

    def _change_document(self, step: Change, checking: bool) -> tuple[str, Any]:
        wanted: StackFile = step.wanted
        current = self._there.documents[wanted.kind, wanted.name]
        return "Documents.UpdateDocument", documents_pb2.UpdateDocumentRequest(
            kind=cast(Any, wanted.kind),
            document=current.id,
            data=wanted.content,
            label_add=wanted.labels,
            label_rm=sorted(current.labels.keys() - wanted.labels.keys()),
        )

    def _drop_document(self, step: Change, checking: bool) -> tuple[str, Any]:
        return "Documents.RemoveDocument", documents_pb2.RemoveDocumentRequest(
            kind=cast(Any, DocumentKind[step.kind.upper()]),
            document=step.name,
            when_unused=self._detach,
        )


_REQUESTS: dict[tuple[str, str], Callable[[StackCalls, Change, bool], tuple[str, Any]]] = {
    ("create", "network"): StackCalls._create_network,
    ("create", "volume"): StackCalls._create_volume,
    ("create", "service"): StackCalls._create_service,
    ("change", "service"): StackCalls._change_service,
    ("remove", "service"): StackCalls._remove_service,
    ("remove", "network"): StackCalls._drop_network,
    **{("create", kind.word): StackCalls._create_document for kind in DocumentKind},
    **{("change", kind.word): StackCalls._change_document for kind in DocumentKind},
    **{("remove", kind.word): StackCalls._drop_document for kind in DocumentKind},
}
