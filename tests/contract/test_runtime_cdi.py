# SPDX-License-Identifier: Apache-2.0
"""Devices of the Container Device Interface, seen in containers of crun on this kernel."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runtimehost import CrunWorld, private, remove_leftovers

from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.runtime.io import logfiles
from orchestrator.agent.runtime.spec.cdi import find_edits

pytestmark = pytest.mark.root

YAML = """\
cdiVersion: "0.6.0"
kind: vendor.example/gpu
containerEdits:
  env: [VENDOR=loaded]
  mounts:
    - hostPath: {folder}/library
      containerPath: /usr/lib/vendor/library
      options: [ro, nosuid, bind]
  hooks:
    - {{hookName: createRuntime, path: /bin/sh, args: [sh, -c, "echo hooked >> {folder}/hooked"]}}
devices:
  - name: "0"
    containerEdits:
      env: [CARD=zero]
      deviceNodes: [{{path: /dev/vendor/card0, hostPath: /dev/zero, permissions: rw}}]
  - name: GPU-7
    containerEdits:
      deviceNodes: [{{path: /dev/vendor/card7, type: c, major: 1, minor: 7, fileMode: 438}}]
      additionalGids: [4242]
"""


def specification(folder: Path) -> Path:
    """A folder with the specification of two GPUs, whose nodes are this machine's /dev/zero and
    /dev/full."""
    (folder / "library").write_text("of the vendor")
    place = folder / "cdi"
    place.mkdir()
    (place / "vendor.yaml").write_text(YAML.format(folder=folder))
    (place / "broken.json").write_text("{")
    return place


@pytest.fixture
def world(tmp_path: Path) -> CrunWorld:
    remove_leftovers()
    return CrunWorld(tmp_path)


async def lines(log: Path) -> list[str]:
    return [each.line.decode() async for records in logfiles.read(log) for each in records]


SCRIPT = """
echo $VENDOR $CARD
echo "$(cat /usr/lib/vendor/library)"
(echo x > /usr/lib/vendor/library) 2>/dev/null && echo written
dd if=/dev/vendor/card0 bs=4 count=1 2>/dev/null | cat | busybox wc -c
echo x > /dev/vendor/card7 || echo full
id -G
busybox ls /dev/vendor
"""


@pytest.mark.parametrize("userns", ["private", "host"])
@private
async def test_a_cdi_device_brings_its_edits(world: CrunWorld, tmp_path: Path, userns: str) -> None:
    place = specification(tmp_path)
    devices = ("vendor.example/gpu=0", "vendor.example/gpu=GPU-7")
    async with world, world.runtime(cdi_folders=[place]) as runtime:
        made = world.container("a", "sh", "-c", f"exec 2>&1; {SCRIPT}", userns=userns)
        spec = replace(made.spec.container, devices=devices)
        made = replace(made, spec=replace(made.spec, container=spec))
        await runtime.reserve("a", made.spec)
        await runtime.create(made)
        await runtime.start("a")
        await runtime.wait("a")
        said = await lines(runtime.log_path("a"))
    assert said[0] == "loaded zero"
    assert said[1] == "of the vendor"
    assert said[2] == "4", said
    assert "full" in said[3:5], said
    assert "4242" in said[-3].split()
    assert said[-2:] == ["card0", "card7"]
    assert (tmp_path / "library").read_text() == "of the vendor"
    assert (tmp_path / "hooked").read_text() == "hooked\n", "once, although two devices have it"


@private
async def test_only_requested_devices_are_present(world: CrunWorld, tmp_path: Path) -> None:
    place = specification(tmp_path)
    async with world, world.runtime(cdi_folders=[place]) as runtime:
        made = world.container("a", "sh", "-c", "busybox ls /dev/vendor; echo .$CARD.")
        spec = replace(made.spec.container, devices=("vendor.example/gpu=GPU-7",))
        await runtime.create(replace(made, spec=replace(made.spec, container=spec)))
        await runtime.start("a")
        await runtime.wait("a")
        said = await lines(runtime.log_path("a"))
        assert said == ["card7", ".."]
        spec = replace(spec, devices=("vendor.example/gpu=1",))
        with pytest.raises(RuntimeFailure, match=r"no CDI device vendor.example/gpu=1 in .*/cdi"):
            await runtime.create(replace(made, id="b", spec=replace(made.spec, container=spec)))
        assert await runtime.list() == {"a"}


def write(folder: Path, name: str, edits: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    devices = [{"name": "d", "containerEdits": edits}]
    spec = {"cdiVersion": "0.6.0", "kind": "v.example/x", "devices": devices}
    (folder / f"{name}.json").write_text(json.dumps(spec))
    return folder


def test_a_later_folder_overrides_and_duplicates_in_one_conflict(tmp_path: Path) -> None:
    one = write(tmp_path / "one", "a", {"env": ["FROM=one"]})
    two = write(tmp_path / "two", "a", {"env": ["FROM=two"]})
    assert find_edits(["v.example/x=d"], [one, two]).env == ("FROM=two",)
    assert find_edits(["/dev/null"], [one, two]).env == ()
    write(two, "b", {})
    with pytest.raises(RuntimeFailure, match=r"is in both .*a\.json and .*b\.json"):
        find_edits(["v.example/x=d"], [one, two])


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ({"deviceNodes": [{}]}, "'path' is missing"),
        ({"deviceNodes": [{"path": "/dev/no-such-thing"}]}, "no device /dev/no-such-thing"),
        ({"deviceNodes": [{"path": "/dev/x", "type": "p", "major": 1, "minor": 1}]}, "type 'p'"),
        ({"mounts": [{"hostPath": "/no/such", "containerPath": "/x"}]}, "/no/such is not on this"),
        ({"mounts": [{"hostPath": "/", "containerPath": "/x", "options": ["odd"]}]}, "'odd'"),
        ({"hooks": [{"hookName": "later", "path": "/bin/true"}]}, "hook later"),
        ({"intelRdt": {"closID": "a"}}, "intelRdt is not supported"),
    ],
)
def test_invalid_edits_are_reported(tmp_path: Path, edits: dict[str, Any], words: str) -> None:
    folder = write(tmp_path / "cdi", "a", edits)
    with pytest.raises(RuntimeFailure, match=words):
        find_edits(["v.example/x=d"], [folder])


def test_a_device_node_is_found_by_its_numbers(tmp_path: Path) -> None:
    edits = {"deviceNodes": [{"path": "/dev/null", "fileMode": 0o600, "uid": 7}]}
    folder = write(tmp_path / "cdi", "a", edits)
    (device,) = find_edits(["v.example/x=d"], [folder]).devices
    assert (device.kind, device.major, device.minor) == ("c", 1, 3)
    assert (device.mode, device.uid, device.access) == (0o600, 7, "rwm")
    assert os.stat("/dev/null").st_rdev == os.makedev(device.major, device.minor)
