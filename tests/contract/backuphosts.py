# SPDX-License-Identifier: Apache-2.0
"""Backups of managers and restores: real commands, daemons and etcd, on loopback addresses of a
network namespace of its own. Usage: backuphosts.py FOLDER"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from managerjoins import INTERRUPTED, Hosts, eventually


class Backups(Hosts):
    """Managers, and a folder for backups."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.file = folder / "cluster.orcbackup"
        self.words = folder / "passphrase"
        self.words.write_text("correct horse battery\n")
        self.env["XDG_CONFIG_HOME"] = str(folder / "config")

    def backup(self, *options: object) -> str:
        return self.done("cluster", "backup", "--passphrase-file", self.words, *options)

    def restore(self, number: int) -> tuple[object, ...]:
        return (
            "cluster", "restore", "--advertise", f"127.0.0.{number}",
            "--data-dir", self.data(number), "--passphrase-file", self.words, self.file,
        )  # fmt: skip

    def destroy(self, number: int) -> None:
        self.power_off(number)
        shutil.rmtree(self.data(number))


def a_backup_has_what_was_written(hosts: Backups) -> None:
    secret = hosts.folder / "secret"
    secret.write_text("hush-hush")
    hosts.done("secret", "create", "db", secret)
    hosts.done("network", "create", "back")
    said = hosts.backup(hosts.file)
    assert "store revision" in said, said
    assert hosts.file.stat().st_mode & 0o777 == 0o600
    assert b"hush-hush" not in hosts.file.read_bytes()


def managers_back_up_on_a_schedule(hosts: Backups) -> None:
    folder = hosts.folder / "scheduled"
    schedule = ("--every", "1h", "--keep", "2", folder)
    missing = hosts.folder / "missing"
    said = hosts.refused("cluster", "backup", "--passphrase-file", missing, *schedule)
    assert "cannot read the passphrase" in said, said
    assert str(missing) in hosts.done("cluster", "info"), "the failure is shown"
    [row] = json.loads(hosts.done("cluster", "backups", "--format", "json"))
    assert (row["state"], row["failures"], row["kept"]) == ("failed", 1, 0), row
    files = set()
    for _ in range(3):  # each new schedule begins with a backup
        hosts.backup(*schedule)
        [row] = json.loads(hosts.done("cluster", "backups", "--format", "json"))
        assert (row["state"], row["error"]) == ("ok", ""), row
        files.add(Path(row["file"]))
    kept = sorted(folder.rglob("*.orcbackup"))
    assert len(files) == 3, "each has a name of its own"
    assert kept == sorted(files)[1:], "the oldest is gone"
    assert row["kept"] == 2, row
    assert all(each.stat().st_mode & 0o777 == 0o600 for each in kept)
    events = hosts.done("events", "--since", "10m", "--until", "0s", "--filter", "type=manager")
    assert "backup_failed" in events, events
    hosts.done("cluster", "backup", "--unschedule")
    assert "not scheduled" in hosts.done("cluster", "info")
    hosts.file = kept[-1]  # what is restored below


def a_wrong_passphrase_is_refused(hosts: Backups) -> None:
    wrong = hosts.folder / "wrong"
    wrong.write_text("wrong horse battery")
    command = [*map(str, hosts.restore(2))]
    command[command.index(str(hosts.words))] = str(wrong)
    assert "passphrase is wrong" in hosts.refused(*command)
    assert not hosts.data(2).exists()
    assert "there is already a manager" in hosts.refused(*hosts.restore(1))


def a_killed_restore_is_repeated(hosts: Backups) -> None:
    complete = hosts.data(2) / "manager.json"
    for file in range(2, 40):
        program = (sys.executable, "-c", INTERRUPTED, str(file))
        hosts.orc(*hosts.restore(2), program=program)
        if complete.exists():
            break
    assert file > 5, "it was killed at several files"
    # It may have been killed before it saved the context.
    hosts.done("cluster", "admin", "--data-dir", hosts.data(2))


def the_restored_cluster_serves(hosts: Backups, cluster_id: str) -> None:
    hosts.start(2)
    eventually(lambda: hosts.orc("manager", "ls").returncode == 0)
    assert json.loads(hosts.done("cluster", "info", "--format", "json"))["id"] == cluster_id
    [manager] = json.loads(hosts.done("manager", "ls", "--format", "json"))
    assert manager["address"].startswith("127.0.0.2:"), manager
    names = {row["name"] for row in json.loads(hosts.done("network", "ls", "--format", "json"))}
    assert names == {"bridge", "default", "back"}
    value = hosts.folder / "value"
    value.write_text("new")
    # Secrets are sealed with the same key.
    hosts.done("secret", "update", "db", value)
    hosts.done("network", "create", "after-the-restore")


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    hosts = Backups(Path(sys.argv[1]))
    hosts.done("cluster", "init", "--advertise", "127.0.0.1", "--data-dir", hosts.data(1))
    hosts.start(1)
    eventually(lambda: hosts.orc("manager", "ls").returncode == 0)
    cluster_id = json.loads(hosts.done("cluster", "info", "--format", "json"))["id"]
    a_backup_has_what_was_written(hosts)
    managers_back_up_on_a_schedule(hosts)
    a_wrong_passphrase_is_refused(hosts)
    hosts.done("network", "create", "after-the-backup")
    hosts.destroy(1)
    a_killed_restore_is_repeated(hosts)
    the_restored_cluster_serves(hosts, cluster_id)


if __name__ == "__main__":
    main()
