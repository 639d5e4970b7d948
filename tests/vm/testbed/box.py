# SPDX-License-Identifier: Apache-2.0
"""The Vagrant box of the testbed: Debian with systemd and with what the packages depend on.

Nothing of Orc is in it. Its kernel and initramfs lie beside its image, and QEMU boots them
directly, so no boot loader is needed. What is not for every testbed (an emulated processor, a
network without a way out) is said in the Vagrantfile that the box brings along.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.vm.kernel import KEYRING, MIRROR

SUITE = "trixie"
KERNEL = "linux-image-cloud-amd64"
BASE = (
    *("systemd-sysv", "dbus", "openssh-server", "sudo", "rsync", "python3", "iputils-ping"),
    *(KERNEL, "initramfs-tools", "zstd", "kmod"),
    *("iperf3", "tcpdump"),  # for the tests
)
"""What a small server has, and Vagrant needs."""
DISK = "12G"
"""Its size; what is not used of it takes no room."""

VAGRANTFILE = """
# Of this box: how its machines boot and run.
Vagrant.configure("2") do |config|
  config.ssh.insert_key = false
  config.vm.boot_timeout = 900
  config.vm.provider "libvirt" do |libvirt|
    libvirt.driver = "qemu"
    libvirt.cpu_mode = "custom"
    libvirt.cpu_model = "Westmere"
    libvirt.kernel = File.expand_path("vmlinuz", __dir__)
    libvirt.initrd = File.expand_path("initrd.img", __dir__)
    libvirt.cmd_line = "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet"
    libvirt.graphics_type = "none"
    libvirt.video_type = "none"
    libvirt.memballoon_enabled = false
    libvirt.management_network_mode = "none"
  end
end
"""

PAGE = """#!/bin/busybox sh
printf 'Content-Type: text/plain\\r\\n\\r\\n%s %s\\n' "$REMOTE_ADDR" "$ORC_NODE_HOSTNAME"
"""
FILES = {
    # Vagrant's own file for a private network sorts before this one.
    "etc/systemd/network/90-all.network": "[Match]\nType=ether\n\n[Network]\nDHCP=ipv4\n",
    "etc/sudoers.d/vagrant": "vagrant ALL=(ALL) NOPASSWD: ALL\n",
    "etc/ssh/sshd_config.d/testbed.conf": "UseDNS no\nPasswordAuthentication no\n",
    "etc/initramfs-tools/conf.d/testbed": "MODULES=list\nCOMPRESS=zstd\n",
    "etc/initramfs-tools/modules": "virtio_pci\nvirtio_blk\next4\n",
    # What containers show that have this machine's files.
    "srv/page/cgi-bin/index.cgi": PAGE,
    "etc/fstab": "/dev/vda / ext4 defaults,noatime 0 1\n",
    # As an operator would have it whose hosts are slow. The packages must leave it as it is.
    "etc/orc/manager.toml": "node-timeout = 60\nlease = 60\n",
    # There is no way to a mirror: what is needed is there.
    "etc/apt/sources.list": "",
}

SETUP = """
set -e
useradd --create-home --shell /bin/bash vagrant
install -d -m 700 -o vagrant -g vagrant /home/vagrant/.ssh
install -m 600 -o vagrant -g vagrant /root/keys /home/vagrant/.ssh/authorized_keys
rm /root/keys
chmod 440 /etc/sudoers.d/vagrant
chmod 755 /srv/page/cgi-bin/index.cgi
systemctl -q enable systemd-networkd ssh serial-getty@ttyS0
systemctl -q mask apt-daily.timer apt-daily-upgrade.timer man-db.timer e2scrub_all.timer
systemctl -q mask etcd.service
update-initramfs -u >/dev/null
# Half an hour of an emulated processor's, whenever a package asks for it.
echo update_initramfs=no >/etc/initramfs-tools/update-initramfs.conf
"""


def dependencies(packages: Iterable[Path]) -> list[str]:
    """Names of what Debian packages depend on and recommend, besides each other."""
    names = set()
    for package in packages:
        fields = _run("dpkg-deb", "-f", str(package), "Depends", "Recommends")
        entries = re.sub(r"^\w+:", ",", fields, flags=re.MULTILINE).split(",")
        names |= {entry.split()[0] for entry in entries if entry.strip()}
    return sorted(names - {package.name.partition("_")[0] for package in packages})


def ensure_box(packages: Sequence[Path], keys: Path, cache: Path) -> Path:
    """The box's file, made unless the cache has it. It takes some two minutes.

    `packages` are Orc's, whose dependencies are in the box; `keys` holds the public keys of who may
    log in. Raises CalledProcessError when a tool fails.
    """
    included = sorted({*BASE, *dependencies(packages)})
    recipe = json.dumps([SUITE, included, DISK, VAGRANTFILE, FILES, SETUP, keys.read_text()])
    place = cache / f"testbed-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.box"
    if not place.exists():
        for old in cache.glob("testbed-*.box"):
            old.unlink()
        draft = cache / "testbed.new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        _make(draft, included, keys)
        (draft / "box").rename(place)
        shutil.rmtree(draft)
    return place


def _make(folder: Path, packages: list[str], keys: Path) -> None:
    tree = folder / "files"
    for name, content in {**FILES, "root/keys": keys.read_text()}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(content)
    # A folder: mke2fs takes a tar file too, but not the names in it that are not ASCII.
    root = folder / "root"
    _run(
        "mmdebstrap", "--quiet", "--format=directory", "--variant=minbase",
        f"--include={','.join(packages)}", f"--keyring={KEYRING}",
        f"--customize-hook=cp -r {tree}/. $1/",
        '--customize-hook=chroot $1 sh -c "$SETUP"', SUITE, str(root), MIRROR,
        SETUP=SETUP,
    )  # fmt: skip
    _boot_files(root, folder)
    raw, image = folder / "raw", folder / "box.img"
    _run("mke2fs", "-q", "-t", "ext4", "-d", str(root), str(raw), DISK)
    _run("qemu-img", "convert", "-O", "qcow2", str(raw), str(image))
    metadata = {"provider": "libvirt", "format": "qcow2", "virtual_size": int(DISK.rstrip("G"))}
    with tarfile.open(folder / "box", "w") as box:
        for name in ("box.img", "vmlinuz", "initrd.img"):
            box.add(folder / name, name)
        for name, text in (("metadata.json", json.dumps(metadata)), ("Vagrantfile", VAGRANTFILE)):
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            box.addfile(entry, io.BytesIO(text.encode()))


def _boot_files(root: Path, folder: Path) -> None:
    for name in ("vmlinuz", "initrd.img"):
        (found,) = (root / "boot").glob(f"{name}-*")
        shutil.copy(found, folder / name)


def _run(*argv: str, **environment: str) -> str:
    done = subprocess.run(
        argv, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout
