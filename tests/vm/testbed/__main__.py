# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.vm.testbed FOLDER COMMAND…`: build the packages and the box, and run a command
where `vagrant up` makes machines of them (`hypervisor`). With `sh` one looks around.

FOLDER is empty at first. In a second run the packages and the box in it are taken as they are.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.vm.kernel import cache_folder

from .box import ensure_box
from .hypervisor import enclose
from .machines import Testbed

REPOSITORY = Path(__file__).parents[3]


def prepare(testbed: Testbed) -> None:
    """Do what needs a way to mirrors: the machines have none."""
    built = subprocess.run(["scripts/deb"], cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
    packages = [REPOSITORY / path for path in built.stdout.decode().split()]
    testbed.vagrant("box", "list", within=60)
    keys = testbed.folder / "keys"
    keys.write_text("".join(_public(key) for key in testbed.private_keys()))
    box = ensure_box(packages, keys, cache_folder())
    testbed.vagrant("box", "add", "--force", "--name", "testbed", str(box), within=300)
    testbed.packages.mkdir()
    for package in packages:
        shutil.copy(package, testbed.packages)


def _public(key: Path) -> str:
    return subprocess.run(
        ["ssh-keygen", "-y", "-f", str(key)], stdout=subprocess.PIPE, text=True, check=True
    ).stdout


if __name__ == "__main__":
    made = Testbed(Path(sys.argv[1]))
    if not made.packages.exists():
        prepare(made)
    enclose(made.folder, sys.argv[2:])
