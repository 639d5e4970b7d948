# SPDX-License-Identifier: Apache-2.0
"""Shared mappings: an edit gives what the same edit of a dictionary gives, and shares the rest."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.manager.planning.shared_map import LARGE, SMALL, MapEdit, ShardedMap

KEYS = st.sampled_from([f"key{number:04}" for number in range(40)])
EDITS = st.lists(st.lists(st.tuples(KEYS, st.none() | st.integers()), max_size=12), max_size=8)


def large(size: int = LARGE + 100) -> ShardedMap[int]:
    edit: MapEdit[int] = MapEdit({})
    for number in range(size):
        edit.put(f"key{number:04}", number)
    made = edit.result()
    assert isinstance(made, ShardedMap)
    return made


@settings(max_examples=60, deadline=None)
@given(EDITS, st.booleans())
def test_edits_equal_those_of_a_dictionary(edits: list, is_large: bool) -> None:
    shared = large() if is_large else {}
    expected = dict(shared)
    for changes in edits:
        before, copy = shared, dict(shared)
        edit = MapEdit(shared)
        for key, value in changes:
            assert edit.put(key, value) == expected.get(key)
            if value is None:
                expected.pop(key, None)
            else:
                expected[key] = value
            assert len(edit) == len(expected)
        shared = edit.result()
        assert dict(shared) == expected
        assert dict(before) == copy, "the edit changed its base"
    assert dict(shared.items()) == expected
    assert sorted(shared.values()) == sorted(expected.values())
    assert shared.keys() == expected.keys()
    assert len(shared) == len(expected)
    for number in range(40):
        key = f"key{number:04}"
        assert shared.get(key) == expected.get(key)
        assert (key in shared) is (key in expected)


def test_edit_of_a_large_mapping_copies_only_the_shards_that_it_touches() -> None:
    base = large()
    edit = MapEdit(base)
    edit.put("key0042", -1)
    after = edit.result()
    assert isinstance(after, ShardedMap)
    copied = [end for end in base.shards if after.shards[end] is not base.shards[end]]
    assert copied == ["42"]
    assert base["key0042"] == 42


def test_edit_without_a_change_returns_its_base() -> None:
    base = large()
    edit = MapEdit(base)
    edit.put("key0042", base["key0042"])
    edit.put("unknown", None)
    assert edit.result() is base


def test_mapping_that_shrinks_is_a_plain_dictionary_again() -> None:
    edit = MapEdit(large())
    for number in range(SMALL - 1, LARGE + 100):
        edit.put(f"key{number:04}", None)
    after = edit.result()
    assert isinstance(after, dict)
    assert sorted(after.values()) == list(range(SMALL - 1))
