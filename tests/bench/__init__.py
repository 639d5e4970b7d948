# SPDX-License-Identifier: Apache-2.0
"""`make bench`: what Orc costs and how fast it is, measured on the machine at hand.

    python -m tests.bench [--out FILE] [--only PART]... [--no-docker]

A figure alone says little, since machines differ and are noisy. So each part of the run measures
Orc *beside* something in the same minutes: Docker, a bare kernel device, or another plugin. The
two take turns, medians are printed, and the ratio of two medians is what to look at. The first
lines name the machine and its load, at the beginning and at the end: a load of much more than one
process a core says that somebody else was busy, and the times are too long, for both.

Targets, where there are some, stand beside what was measured, with `met` or `MISSED`. Nothing here
is a test: a missed target does not fail the run; a part that cannot be measured does.

What is measured is the real thing: a dev cluster of one manager and three nodes, with contexts of
its own, and where `dockerd` is installed a daemon of its own, in namespaces of its own, on folders
of its own. Both are named after this process, are removed at the end of the run also when it is
interrupted, and by the next run if this one was killed.

Every part is a module that measures (`measure`, gives a frozen dataclass of seconds, bytes and
counts) and, pure, presents it (`report`, gives a `Table`):

    rollout     60 replicas, from the API call to all running; Docker Swarm
    latency     one container, from the API call to running; `docker run -d`
    byhand      whole commands by hand, `run --rm` and `exec`, and a key; Docker's
    memory      a container's cost besides its own process; idle agent and manager
    endurance   a thousand execs, a hundred containers' figures, 200 containers ten times
    throughput  TCP between containers on two hosts; a bare VXLAN link
    planner     scheduling in memory, no I/O
    store       writes to the etcd that a manager starts
    backups     a backup of 10,000 tasks, and its restore
    cni         connecting and disconnecting a container; Debian's Go plugins
    pull        an image from a registry, ready to run; skopeo and tar by hand
    failover    the leader's host is lost, 30 times in four ways; three managers; Docker Swarm
    commands    whole commands: `orc node ls`, `orc dev up`

`cluster`, `docker`, `image`, `processes` and `machine` are what they measure with; `tables` is
what they write into.
"""
