# SPDX-License-Identifier: Apache-2.0
"""The web page with 100 nodes and 5,000 tasks: what a browser draws of it, what a manager sends."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from orchestrator.daemon.background import background
from orchestrator.identity.tls import Identity
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.web import cluster_snapshot
from orchestrator.manager.web.server_sent_events import event
from orchestrator.model.tasks import Health
from tests.bench.cluster import BenchError
from tests.bench.crowd import NODES, TASKS, Crowd, crowd
from tests.bench.tables import Table, median, seconds

LOOK = 5.0
"""Seconds that each view is watched."""
TICK = 0.1
SCENES = (
    ("picture, nothing changes", "picture", 0),
    ("picture, 100 tasks/s are replaced", "picture", 10),
    ("picture, 1,000 tasks/s are replaced", "picture", 100),
    ("tasks, 100 tasks/s are replaced", "tasks", 10),
    ("tasks sorted by node, 100 tasks/s are replaced", "tasks/sorted", 10),
    ("services, 100 tasks/s are replaced", "services", 10),
    ("nodes, 100 tasks/s are replaced", "nodes", 10),
    ("a service of 125 tasks open, 100 tasks/s are replaced", "service/s1", 10),
    ("traffic, 300 pairs talk", "traffic", 10),
)
_BY_CPU = {"timeDomain": "threadTicks"}
_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--no-proxy-server"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--ignore-certificate-errors", "--window-size=1600,1000", "--disable-extensions"),
)
_WATCH = """
const [milliseconds, done] = arguments, deltas = [], long = [];
const observer = new PerformanceObserver((list) => long.push(...list.getEntries()
  .map((entry) => entry.duration)));
observer.observe({ type: "longtask" });
let before = 0, began = 0;
function step(now) {
  if (before) deltas.push(now - before); else began = now;
  before = now;
  if (now - began < milliseconds) requestAnimationFrame(step);
  else { observer.disconnect(); done([deltas, long]); }
}
requestAnimationFrame(step);
"""
_SHOWN = """
const [tasks, done] = arguments;
function look() {
  if (window.orc?.cluster.tasks.size === tasks && orc.picture.drawn.frames > 0) done();
  else requestAnimationFrame(look);
}
look();
"""
_TALK = """
const ids = [...orc.cluster.services.keys()], edges = [];
for (let index = 0; index < 300; index += 1) {
  edges.push({ from: ids[index % ids.length], to: ids[(index * 7 + 1) % ids.length],
    port: 80 + index, protocol: "tcp", open: index, pairs: 1, begun: 1,
    sent: 1000 * index, received: 2000 * index });
}
orc.traffic.take({ nodes: 1, telling: 1, left_out: 0, edges });
"""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a browser did for some seconds."""

    name: str
    deltas: list[float]
    """Milliseconds between frames."""
    long: list[float]
    """Milliseconds of each task of the browser's main thread that took over 50."""
    busy: float
    """CPU time of the main thread, of the time."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What a manager does for browsers."""

    whole: float
    """Seconds to write down all."""
    whole_bytes: int
    change: float
    """Seconds to write down the changes of 100 tasks."""
    change_bytes: int


@dataclass(frozen=True, slots=True)
class Page:
    """All of it."""

    opened: float
    """Seconds from the address to the first picture."""
    scenes: list[Scene]
    sent: Sent


async def measure(folder: Path) -> Page:
    """Serve a crowd and look at it. Raises BenchError where there is no browser."""
    place = folder / "page"
    async with crowd(place / "cluster") as cluster:
        sent = _send(cluster)
        async with _browser(place / "browser") as driver:
            opened = await _open(cluster, driver)
            scenes = [await _look(cluster, driver, *scene) for scene in SCENES]
    return Page(opened, scenes, sent)


def _send(cluster: Crowd) -> Sent:
    view = cluster.api.view
    changes = [
        Change(task, replace(task, status=replace(task.status, health=Health.UNHEALTHY, at=1.0)))
        for task in cluster.tasks[:100]
    ]
    whole, whole_bytes = _timed(lambda: event("picture", cluster_snapshot.full_snapshot(view)))
    change, change_bytes = _timed(
        lambda: event("changed", cluster_snapshot.snapshot_changes(view, changes))
    )
    return Sent(whole, whole_bytes, change, change_bytes)


def _timed(work: Any) -> tuple[float, int]:
    took, size = [], 0
    for _ in range(10):
        began = time.perf_counter()
        size = len(work())
        took.append(time.perf_counter() - began)
    return median(took), size


@asynccontextmanager
async def _browser(folder: Path) -> AsyncIterator[Any]:
    try:
        from selenium import webdriver
        from selenium.common.exceptions import WebDriverException
        from selenium.webdriver.chrome.options import Options
        from selenium.webdriver.chrome.service import Service
    except ImportError as error:
        raise BenchError(f"{error.name} is not installed; run scripts/setup") from None
    options = Options()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*_FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    try:
        driver = await asyncio.to_thread(
            lambda: webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        )
    except WebDriverException as error:
        raise BenchError(f"Chromium does not start: {error.msg}") from None
    try:
        driver.set_script_timeout(60)
        yield driver
    finally:
        await asyncio.to_thread(driver.quit)


async def _open(cluster: Crowd, driver: Any) -> float:
    ticket = quote(cluster.sessions.ticket("admin", Identity("admin", "admin", "c1")), safe="")
    began = time.monotonic()
    await asyncio.to_thread(driver.get, f"{cluster.address}#ticket={ticket}")
    await asyncio.to_thread(driver.execute_async_script, _SHOWN, TASKS)
    await asyncio.to_thread(driver.execute_cdp_cmd, "Performance.enable", _BY_CPU)
    return time.monotonic() - began


async def _look(cluster: Crowd, driver: Any, name: str, view: str, number: int) -> Scene:
    view, _, how = view.partition("/")
    await asyncio.to_thread(driver.execute_script, "location.hash = '#/picture'")
    place = f"#/{view}/{how}" if view == "service" else f"#/{view}"
    await asyncio.to_thread(driver.execute_script, "location.hash = arguments[0]", place)
    await asyncio.sleep(1.0)
    if how == "sorted":
        await asyncio.to_thread(
            driver.execute_script, "document.querySelectorAll('th button')[2].click()"
        )
    if view == "traffic":
        await asyncio.to_thread(driver.execute_script, _TALK)
    async with background(_change(cluster, number)):
        await asyncio.sleep(0.5)
        before = await _busy(driver)
        deltas, long = await asyncio.to_thread(driver.execute_async_script, _WATCH, LOOK * 1000)
        after = await _busy(driver)
    return Scene(name, deltas, long, (after[1] - before[1]) / max(after[0] - before[0], 1e-9))


async def _busy(driver: Any) -> tuple[float, float]:
    """Seconds so far, and of these at work."""
    found = await asyncio.to_thread(driver.execute_cdp_cmd, "Performance.getMetrics", {})
    figures = {each["name"]: each["value"] for each in found["metrics"]}
    return figures["Timestamp"], figures["TaskDuration"]


async def _change(cluster: Crowd, number: int) -> None:
    while number:
        await cluster.step(number)
        await asyncio.sleep(TICK)


def report(page: Page) -> Table:
    """Pure."""
    sent = page.sent
    return Table(
        f"The web page with {NODES} nodes and {TASKS:,} tasks",
        ("what", "frames/s", "frame, median", "99 of 100", "over 50 ms", "CPU", "CPU a frame"),
        tuple(_row(scene) for scene in page.scenes),
        (
            f"From the address to the first picture {seconds(page.opened)}.",
            f"A manager writes all down in {seconds(sent.whole)} ({sent.whole_bytes:,} bytes), "
            f"100 changed tasks in {seconds(sent.change)} ({sent.change_bytes:,} bytes), the "
            "latter once for all browsers.",
            "CPU is the main thread's, all of its work counted: below 16.7 ms a frame it keeps up "
            "with 60 a second where it has a core to itself, whatever else the machine does.",
            f"Headless Chromium, 1600 by 1000, no graphics card, each view for {LOOK:.0f} s; "
            "browser, store and manager on this machine.",
        ),
    )


def _row(scene: Scene) -> tuple[str, ...]:
    total = sum(scene.deltas)
    return (
        scene.name,
        f"{1000 * len(scene.deltas) / total:.1f}",
        f"{median(scene.deltas):.1f} ms",
        f"{_percentile(scene.deltas, 99):.1f} ms",
        str(len(scene.long)),
        f"{100 * scene.busy:.0f}%",
        f"{scene.busy * total / len(scene.deltas):.1f} ms",
    )


def _percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]
