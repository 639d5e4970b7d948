# SPDX-License-Identifier: Apache-2.0
"""Finding objects by what a user typed: a name, an id, a unique id prefix, or prune filters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from orchestrator.manager.errors import RequestError, invalid_argument, not_found
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.administration.orphans import Orphan
from orchestrator.model.documents import Document, DocumentKind
from orchestrator.model.names import near_image, near_miss, parse_image, short_id
from orchestrator.model.nodes import Node
from orchestrator.model.objects import Image, Network
from orchestrator.model.services import Service
from orchestrator.model.tasks import Task

T = TypeVar("T")


def _resolve(
    kind: str, word: str, by_id: Mapping[str, T], by_name: Iterable[tuple[str, T]], listing: str
) -> T:
    """Exact id, else exact name, else unique id prefix. Raises RequestError with a suggestion."""
    if not word:
        raise invalid_argument(f"say which {kind}; see '{listing}'")
    if word in by_id:
        return by_id[word]
    names = list(by_name)
    named = [item for name, item in names if name == word]
    if len(named) > 1:
        raise invalid_argument(
            f"there are {len(named)} {kind}s called '{word}'; use the id ('{listing}')"
        )
    if named:
        return named[0]
    begun = [item for identifier, item in by_id.items() if identifier.startswith(word)]
    if len(begun) == 1:
        return begun[0]
    if begun:
        raise invalid_argument(f"'{word}' is a prefix of {len(begun)} {kind} ids; use a longer one")
    guess = near_miss(word, [name for name, _ in names])
    hint = f"did you mean '{guess}'?" if guess else f"see '{listing}'"
    raise not_found(f"no {kind} '{word}'; {hint}")


def find_service(view: ClusterView, word: str) -> Service:
    """The service that `word` identifies; services being removed do not count."""
    live = {id: service for id, service in view.services.items() if not service.removed}
    names = ((service.spec.name, service) for service in live.values())
    return _resolve("service", word, live, names, "orc service ls")


def find_job(view: ClusterView, word: str) -> Service:
    """The job that `word` identifies."""
    live = {
        id: service
        for id, service in view.services.items()
        if service.spec.mode.is_job and not service.removed
    }
    other = view.service_by_name(word)
    if other is not None and not other.removed and not other.spec.mode.is_job:
        raise invalid_argument(f"'{word}' is a service, not a job; see 'orc job ls'")
    names = ((service.spec.name, service) for service in live.values())
    return _resolve("job", word, live, names, "orc job ls")


def find_node(view: ClusterView, word: str) -> Node:
    """The node that `word` identifies: id, hostname or id prefix."""
    names = ((node.description.hostname, node) for node in view.nodes.values())
    return _resolve("node", word, view.nodes, names, "orc node ls")


def find_orphan(view: ClusterView, word: str) -> Orphan:
    """The orphan that `word` identifies: id, name or id prefix."""
    names = ((orphan.name, orphan) for orphan in view.orphans.values())
    return _resolve("orphan", word, view.orphans, names, "orc orphan ls")


def find_network(view: ClusterView, word: str) -> Network:
    """The network that `word` identifies: id, name or id prefix."""
    names = ((network.name, network) for network in view.networks.values())
    return _resolve("network", word, view.networks, names, "orc network ls")


def find_document(view: ClusterView, kind: DocumentKind, word: str) -> Document:
    """The secret or config that `word` identifies: id, name or id prefix."""
    known = {id: each for id, each in view.documents.items() if each.kind is kind}
    names = ((each.name, each) for each in known.values())
    return _resolve(kind.word, word, known, names, f"orc {kind.word} ls")


def find_log_source(
    view: ClusterView, word: str, of_job: bool = False
) -> tuple[Service | None, Sequence[Task]]:
    """The service that `word` identifies with all its tasks, or no service and one task; with
    `of_job`, only a job or a task of one."""
    service = view.service_by_name(word)
    if service is None or service.removed:
        tasks = list(view.tasks.values())
        if of_job:
            jobs = {id for id, each in view.services.items() if each.spec.mode.is_job}
            tasks = [task for task in tasks if task.service_id in jobs]
        named = [task for task in tasks if task.name == word]
        if named:
            return None, [max(named, key=lambda task: task.created_at)]
        begun = [task for task in tasks if task.id.startswith(word)]
        if len(begun) == 1 and len(word) >= 3:
            return None, begun
    service = find_job(view, word) if of_job else find_service(view, word)
    return service, list(view.tasks_of_service(service.id).values())


def container_by_name(view: ClusterView, name: str) -> Task | None:
    """The standalone container of this name."""
    tasks = view.tasks_of_service("").values()
    return next((task for task in tasks if task.container_name == name), None)


def find_container(view: ClusterView, word: str) -> Task:
    """The container that `word` identifies: name of a standalone one, the newest task of a
    service's slot (`web.3`), an id, or id prefix."""
    if (found := _exactly(view, word)) is not None:
        return found
    if (replica := _first_replica(view, word)) is not None:
        raise not_found(
            f"no container '{word}', but a service; did you mean its replica '{replica}'?"
        )
    names: dict[str, Task] = {}
    for task in _by_age(view):
        names[task.name] = task
    return _resolve("container", word, view.tasks, names.items(), "orc ps -a")


def find_service_or_task(view: ClusterView, word: str) -> Service | Task:
    """The service that `word` identifies, else the container."""
    services = {id: each for id, each in view.services.items() if not each.removed}
    named: dict[str, Service | Task] = {task.name: task for task in _by_age(view)}
    named |= {service.spec.name: service for service in services.values()}
    exact = services.get(word) or named.get(word)
    if exact is not None:
        return exact
    listing = "orc service ls' and 'orc ps -a"
    by_id: dict[str, Service | Task] = {**view.tasks, **services}
    return _resolve("task or service", word, by_id, named.items(), listing)


def _by_age(view: ClusterView) -> list[Task]:
    return sorted(view.tasks.values(), key=lambda task: task.created_at)


def _first_replica(view: ClusterView, word: str) -> str | None:
    """The name of a service's first task, preferably a running one."""
    service = view.service_by_name(word)
    if service is None or service.removed:
        return None
    tasks = view.tasks_of_service(service.id).values()
    first = min(tasks, key=lambda task: (not task.status.works, task.slot), default=None)
    return None if first is None else first.name


def _exactly(view: ClusterView, word: str) -> Task | None:
    """The container with exactly this name or id, without a scan of all."""
    if (container := container_by_name(view, word)) is not None:
        return container
    if word in view.tasks:
        return view.tasks[word]
    service = view.service_by_name(word.rpartition(".")[0])
    tasks = view.tasks_of_service(service.id).values() if service else ()
    named = (task for task in tasks if task.name == word)
    return max(named, key=lambda task: task.created_at, default=None)


def images_of(view: ClusterView, text: str) -> list[Image]:
    """The images of a full name, a digest, or the digest of an index: one per platform."""
    if not text.startswith("sha256:"):
        image = view.image_by_name(text)
        return [image] if image else []
    if (image := view.images.get(text)) is not None:
        return [image]
    return [image for image in view.images.values() if text in image.indexes]


def find_image(view: ClusterView, name: str) -> Image:
    """The image that some node has under this full name or digest."""
    if found := images_of(view, name):
        return found[0]
    raise not_found(f"no image '{name}' in this cluster; {image_hint(view, name)}")


def find_image_by_word(view: ClusterView, word: str, *, reported: bool = False) -> Image:
    """The image that a user means: by name, digest, or unique digest prefix; with `reported`, also
    by a name that only nodes report and no other image has."""
    if re.fullmatch(r"(?:sha256:)?[0-9a-f]{4,64}", word):
        digits = word.removeprefix("sha256:")
        begun = [i for id, i in view.images.items() if id.startswith(f"sha256:{digits}")]
        if len(begun) > 1:
            raise invalid_argument(
                f"'{word}' is a prefix of {len(begun)} image ids; use a longer one"
            )
        if begun:
            return begun[0]
    try:
        name = parse_image(word)
    except ValueError as error:
        raise invalid_argument(str(error)) from None
    try:
        return find_image(view, name.digest or str(name))
    except RequestError:
        found = [i for i in view.images.values() if reported and str(name) in i.reported_names]
        if len(found) != 1:
            raise
        return found[0]


def image_hint(view: ClusterView, name: object) -> str:
    """A remedy for a missing image: a similar name, or how to get the image."""
    names = [name for image in view.images.values() for name in image.names]
    guess = near_image(str(name), names)
    for image in view.images.values():
        if str(name) in image.reported_names:
            return (
                f"a node says that {short_id(image.id)} has this name; if you trust it: "
                f"orc tag {short_id(image.id)} {name}"
            )
    return f"did you mean '{guess}'?" if guess else "put it there with 'orc build' or 'orc load'"


def matches_prune_filters(labels: Mapping[str, str], created_at: float, request: Any) -> bool:
    """Whether an object has all labels of `request.labels` (an empty value matches any), none of
    `request.without`, and was created before `request.until` (0: any time)."""
    if request.until and created_at >= request.until:
        return False
    if not all(_has_label(labels, key, value) for key, value in request.labels.items()):
        return False
    return not any(_has_label(labels, *text.partition("=")[::2]) for text in request.without)


def _has_label(labels: Mapping[str, str], key: str, value: str) -> bool:
    return key in labels and (not value or labels[key] == value)
