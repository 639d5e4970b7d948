"""Which of many objects a `prune` is about: by label and by age, as Docker's filters have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def selected(labels: Mapping[str, str], created_at: float, request: Any) -> bool:
    """Whether an object has all labels of `request.labels` (an empty value: whatever it is), none
    of `request.without`, and was made before `request.until` (0: whenever)."""
    if request.until and created_at >= request.until:
        return False
    if not all(_has(labels, key, value) for key, value in request.labels.items()):
        return False
    return not any(_has(labels, *text.partition("=")[::2]) for text in request.without)


def _has(labels: Mapping[str, str], key: str, value: str) -> bool:
    return key in labels and (not value or labels[key] == value)
