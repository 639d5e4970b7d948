# SPDX-License-Identifier: Apache-2.0
"""The web page in a real browser, on a real cluster."""

from __future__ import annotations

import io
import json
import subprocess
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_core_python.selenium import Axe
from devcluster import Cluster, eventually
from PIL import Image, ImageChops
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

pytestmark = [pytest.mark.root, pytest.mark.e2e]

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--ignore-certificate-errors", "--no-proxy-server", "--window-size=1280,800"),
)

TASKS_OF_A_NODE = """
const node = [...orc.cluster.nodes.values()].find((each) => each.name === arguments[0]);
return orc.cluster.tasksOfNode(node.id).filter((task) => task.state === "running")
    .map((task) => task.name);
"""
CLICK = """
const [selector, text] = arguments;
const found = [...document.querySelectorAll(selector)]
  .find((each) => each.textContent.trim().endsWith(text) && !each.disabled);
found?.click();
return Boolean(found);
"""
TEXT = """
return [...document.querySelectorAll(arguments[0])].filter((each) => each.checkVisibility())
    .map((each) => each.innerText).join(" ").replace(/\\s+/g, " ");
"""
COLOURS = """
const canvas = document.querySelector("canvas");
const found = new Set();
const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
for (let at = 0; at < data.length; at += 16) {
  const [r, g, b] = data.slice(at, at + 3);
  if (Math.max(r, g, b) - Math.min(r, g, b) > 60) found.add(`${r >> 4}.${g >> 4}.${b >> 4}`);
}
return found.size;
"""
HOLD = """
const cluster = orc.cluster, { changed } = Object.getPrototypeOf(cluster);
cluster.whole = () => { cluster.connected = true; cluster.dispatchEvent(new Event("connection")); };
cluster.changed = () => {};
"""
"""From then on the page shows what `changed.call(cluster, …)` tells it, and nothing that the
manager does: that sends all of it again whenever the stream is opened again, as on a busy host."""
CROWD = (
    """
const [nodes, tasks] = arguments, picture = { nodes: {}, services: {}, tasks: {}, networks: {} };
for (let index = 0; index < 40; index += 1) picture.services[`s${index}`] = { name: `x${index}` };
for (let index = 0; index < nodes; index += 1) {
  picture.nodes[`n${index}`] = { name: `h${index}`, state: "ready", availability: "active",
    shares: 65536, memory: 2 ** 36 };
}
for (let index = 0; index < tasks; index += 1) {
  picture.tasks[`t${index}`] = { name: `x${index % 40}.${index}`, service: `s${index % 40}`,
    node: `n${index % nodes}`, state: index % 9 ? "running" : "starting", shares: 100,
    memory: 2 ** 20, image: "x:1" };
}
orc.cluster.whole(picture);
"""
    + HOLD
)
FOCUS = """
const canvas = document.querySelector("canvas");
canvas?.focus();
return canvas && document.activeElement === canvas;
"""
CHANGE = (
    HOLD
    + """
const [name, fields] = arguments;
const task = [...cluster.tasks.values()].find((each) => each.name === name);
changed.call(cluster, { tasks: { [task.id]: fields } });
return orc.picture.where(task.id);
"""
)
BOXES = """
return Object.fromEntries([...orc.cluster.nodes.values()]
  .map((node) => [node.name, orc.picture.where(node.id)]));
"""


class Browser:
    """Chromium, on the page."""

    def __init__(self, driver: webdriver.Chrome, cluster: Cluster) -> None:
        self.driver = driver
        self.cluster = cluster

    def open(self, *flags: str) -> None:
        """Log in, as a user does with what `orc dashboard` prints."""
        url = self.cluster.orc("dashboard", "--quiet", *flags).stdout.strip()
        self.driver.get("about:blank")
        self.driver.get(url)
        self.sees("3 of 3 nodes ready", "#summary")

    def text(self, selector: str) -> str:
        """What is shown there. In one go: the page may draw it anew at any time."""
        return str(self.script(TEXT, selector))

    def sees(self, text: str, selector: str = "body") -> None:
        def shown() -> bool:
            assert text in self.text(selector), f"{text!r} is not in {self.text('body')!r}"
            return True

        try:
            eventually(shown)
        except AssertionError as error:
            for line in self.driver.get_log("browser"):
                error.add_note(str(line["message"]))
            raise

    def script(self, text: str, *arguments: Any) -> Any:
        return self.driver.execute_script(text, *arguments)

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def rest(self) -> None:
        """Until the page shows what it knows, and nothing moves in the picture."""
        eventually(lambda: self.script("return orc.rests"))

    def picture(self) -> Image.Image:
        """What is seen now, a pixel for each of the page's."""
        self.rest()
        return Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")

    def click(self, text: str, selector: str = "a, button") -> None:
        """Click on what says a text at its end, once it is there; the page may be drawing it."""
        eventually(lambda: self.script(CLICK, selector, text))


@contextmanager
def chromium(folder: Path) -> Iterator[webdriver.Chrome]:
    """A browser with its data in a folder."""
    options = Options()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def browser(cluster: Cluster, tmp_path: Path) -> Iterator[Browser]:
    with chromium(tmp_path) as driver:
        yield Browser(driver, cluster)


def test_the_cluster_is_seen_as_it_moves(cluster: Cluster, hello: str, browser: Browser) -> None:
    browser.open()
    assert "ticket" not in browser.driver.current_url
    empty = browser.script(COLOURS)
    cluster.orc("service", "create", "--name", "seen", "--replicas", "6", hello)
    browser.sees("6 tasks running", "#summary")
    eventually(lambda: browser.script(COLOURS) > empty)
    names = {f"seen.{slot}" for slot in range(1, 7)}
    nodes = ("node1", "node2", "node3")
    assert {task for node in nodes for task in browser.script(TASKS_OF_A_NODE, node)} == names
    cluster.orc("node", "update", "--availability", "drain", "node1")
    eventually(lambda: browser.script(TASKS_OF_A_NODE, "node1") == [])
    cluster.orc("node", "update", "--availability", "active", "node1")
    cluster.power_off("node3")
    browser.sees("2 of 3 nodes ready", "#summary")
    cluster.start("node3")
    browser.sees("3 of 3 nodes ready", "#summary")


def test_a_service_is_scaled_and_a_node_drained_from_the_page(
    cluster: Cluster, hello: str, browser: Browser
) -> None:
    cluster.orc("service", "create", "--name", "handy", "--replicas", "2", hello)
    browser.open()
    browser.click("Services")
    browser.sees("2 / 2", "main")
    browser.click("handy", "main a")
    browser.sees("2 of 2", "#panel")
    replicas = browser.driver.find_element(By.ID, "replicas")
    replicas.clear()
    replicas.send_keys("4")
    browser.click("Scale")
    cluster.await_running("handy", 4)
    browser.sees("4 / 4", "main")
    before = {task["id"] for task in cluster.running("handy")}
    browser.click("Restart")
    browser.click("Replace 4 tasks?")
    eventually(
        lambda: (
            len(now := cluster.running("handy")) == 4 and not before & {task["id"] for task in now}
        ),
    )
    browser.click("Nodes")
    browser.click("node2", "main a")
    browser.click("Drain")
    assert cluster.nodes()["node2"]["availability"] == "active"
    browser.click("elsewhere?")
    eventually(lambda: cluster.nodes()["node2"]["availability"] == "drain")
    browser.click("Activate")
    eventually(lambda: cluster.nodes()["node2"]["availability"] == "active")


WHAT = (
    HOLD
    + """
const now = Date.now() / 1000;
changed.call(cluster, { tasks: {
  loop: { name: "loop.1", state: "pending", retry_at: now + 600, at: now - 300, message: "exit" },
  wait: { name: "wait.1", state: "pending", message: "no node has 99 cores" },
  late: { name: "late.1", state: "pending", retry_at: now - 5, message: "no node has 99 cores" },
} });
"""
)
CUT = """
return [...document.querySelectorAll("#summary .pill, .chips button, .legend a, nav a")]
  .filter((each) => each.checkVisibility())
  .map((each) => [each.innerText, each.getBoundingClientRect()])
  .filter(([, { left, right }]) => left < 0 || right > innerWidth).map(([text]) => text);
"""


def test_jobs_backoff_and_members_are_shown_by_kind(
    cluster: Cluster, hello: str, browser: Browser
) -> None:
    job = ("--mode", "replicated-job", "--replicas", "3", "--entrypoint", "/bin/busybox")
    cluster.orc("network", "create", "club")
    cluster.orc("service", "create", "--name", "chore", *job, hello, "true")
    cluster.orc("service", "create", "--name", "plain", hello)
    cluster.orc("run", "-d", "--name", "guest", "--network", "club", hello)
    try:
        browser.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True},
        )
        browser.open()
        browser.sees("plain", ".legend")
        assert browser.script(CUT) == []
        browser.script("location.hash = '#/services'")
        browser.sees("3 / 3 done", "main .good")
        browser.script("location.hash = '#/networks'")
        browser.sees("guest", "main")
        browser.sees("plain", "main")
        browser.script("location.hash = '#/events'")
        browser.sees("die", "main")
        assert "die" not in browser.text("main .bad")
        browser.script(WHAT)
        browser.sees("2 waiting", "#summary")
        browser.sees("1 in trouble", "#summary")
        browser.script("location.hash = '#/tasks'")
        browser.sees("backing off", "main .bad")
        browser.sees("In trouble", ".chips")
        assert browser.script(CUT) == []
    finally:
        cluster.orc("rm", "-f", "guest")
        cluster.orc("service", "rm", "chore", "plain")
        eventually(lambda: cluster.orc("network", "rm", "club", ok=False).returncode == 0)


def test_waiting_tasks_have_their_names(cluster: Cluster, browser: Browser) -> None:
    browser.open()
    browser.script(WHAT)
    browser.rest()
    found = browser.script(
        "return ['loop', 'wait', 'late'].map((id) => orc.picture.where(id).width)"
    )
    assert min(found) > 100, "tiles, which say their names"


def test_refusals_of_the_manager_are_shown(cluster: Cluster, hello: str, browser: Browser) -> None:
    cluster.orc("service", "create", "--name", "stern", hello)
    browser.open()
    said = browser.driver.execute_async_script(
        """
        const [done] = arguments;
        const id = [...orc.cluster.services.values()].find((each) => each.name === "stern").id;
        fetch("/api/act", { method: "POST", headers: { "content-type": "application/json" },
            body: JSON.stringify({ do: "scale", to: id, replicas: 10000000 }) })
            .then(async (answer) => done([answer.status, (await answer.json()).error]));
        """
    )
    assert said == [409, "give a number of replicas from 0 to 10000"]


def test_a_read_only_session_cannot_change_anything(
    cluster: Cluster, hello: str, browser: Browser
) -> None:
    cluster.orc("service", "create", "--name", "shown", hello)
    browser.open("--read-only")
    browser.click("Services")
    browser.sees("shown", "main")
    browser.click("shown", "main a")
    browser.sees("1 of 1", "#panel")
    assert not browser.driver.find_element(By.ID, "scale").is_enabled()
    status = browser.driver.execute_async_script(
        """
        const [done] = arguments;
        const id = [...orc.cluster.services.values()][0].id;
        fetch("/api/act", { method: "POST", headers: { "content-type": "application/json" },
            body: JSON.stringify({ do: "scale", to: id, replicas: 5 }) })
            .then((answer) => done(answer.status));
        """
    )
    assert status == 403
    assert len(cluster.running("shown")) == 1


def test_without_a_log_in_nothing_is_shown(cluster: Cluster, browser: Browser) -> None:
    url = cluster.orc("dashboard", "--quiet").stdout.strip()
    address, _, ticket = url.partition("#ticket=")
    browser.driver.get(address)
    browser.sees("orc dashboard", "main")
    browser.driver.get("about:blank")
    spoilt = urllib.parse.unquote(ticket)[::-1]
    browser.driver.get(f"{address}#ticket={urllib.parse.quote(spoilt, safe='')}")
    browser.sees("good for five minutes", "main")
    for path in ("api/events", "api/session", "api/logs?of=x"):
        done = subprocess.run(
            ["curl", "-sk", "--noproxy", "*", "-w", "%{http_code}", f"{address}{path}"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        assert done.stdout.endswith("401")
        assert "node1" not in done.stdout


@pytest.mark.parametrize(
    ("hold", "release"),
    [
        (("Network.setBlockedURLs", {"urls": ["*/state.js"]}), ("Network.disable", {})),
        (("Fetch.enable", {"patterns": [{"urlPattern": "*/state.js"}]}), ("Fetch.disable", {})),
    ],
    ids=["refused", "unanswered"],
)
def test_a_page_whose_files_do_not_arrive_is_loaded_again(
    cluster: Cluster, browser: Browser, hold: tuple[str, Any], release: tuple[str, Any]
) -> None:
    browser.driver.execute_cdp_cmd("Network.enable", {})
    browser.driver.execute_cdp_cmd(*hold)
    browser.driver.get(cluster.orc("dashboard", "--quiet").stdout.strip())
    browser.sees("The manager has not sent the whole page", "main")
    browser.driver.execute_cdp_cmd(*release)
    browser.sees("3 of 3 nodes ready", "#summary")


def test_logs_are_followed(cluster: Cluster, hello: str, browser: Browser) -> None:
    cluster.script("chatty", hello, "i=0; while :; do echo line $((i=i+1)); sleep 0.2; done")
    cluster.await_running("chatty", 1)
    browser.open()
    browser.press("5")
    browser.sees("chatty.1", "main")
    browser.click("chatty.1", "main a")
    browser.click("Show logs")
    browser.sees("line 3", ".log")
    lines = browser.text(".log").count("line ")
    eventually(lambda: browser.text(".log").count("line ") > lines)


def test_resource_usage_of_a_task_is_a_chart(
    cluster: Cluster, hello: str, browser: Browser
) -> None:
    cluster.script("worker", hello, "while :; do :; done", "--limit-cpu", "0.2")
    (task,) = cluster.await_running("worker", 1)
    browser.open()
    browser.script("location.hash = `#/task/${arguments[0]}`", task["id"])
    browser.sees("CPU: ", ".charts")
    # Two samples, and the page's look at them.
    browser.sees("cores at most", ".charts")
    points = "return document.querySelector('.charts polyline').getAttribute('points')"
    assert browser.script(points)
    _check(browser, "a task")
    browser.script("location.hash = '#/nodes'")
    browser.click("node1", "main a")
    browser.sees("Memory: ", ".charts")


def test_dashboard_works_by_keyboard(cluster: Cluster, hello: str, browser: Browser) -> None:
    cluster.orc("service", "create", "--name", "typed", "--replicas", "2", hello)
    browser.open()
    browser.press("3")
    browser.sees("typed", "main")
    browser.press("/", "nothing-like-that")
    browser.sees("No matching services.", "main")
    browser.press(Keys.ESCAPE)
    browser.sees("typed", "main")
    browser.script("document.activeElement.blur()")
    browser.press("1")
    browser.sees("Picture", "nav a[aria-current]")
    eventually(lambda: browser.script(FOCUS))
    browser.press(Keys.ARROW_RIGHT, Keys.ENTER)
    browser.sees("node2", "#panel h2")
    browser.press(Keys.ESCAPE)
    eventually(lambda: not browser.driver.find_element(By.ID, "panel").is_displayed())
    browser.press("/", "typed.2", Keys.ARROW_DOWN, Keys.ENTER)
    browser.sees("typed.2", "#panel h2")
    browser.press(Keys.ESCAPE, "/", Keys.ESCAPE, Keys.ESCAPE, "5")
    browser.sees("typed.2", "main")
    browser.script("document.getElementById('main').focus()")
    browser.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ENTER)
    browser.sees("typed.2", "#panel h2")
    browser.press(Keys.ESCAPE)
    browser.press("?")
    browser.sees("Keyboard", "dialog")
    browser.press(Keys.ESCAPE)
    dark = browser.script("return document.documentElement.dataset.theme")
    browser.press("d")
    assert browser.script("return document.documentElement.dataset.theme") != dark


def test_managers_are_shown_with_their_etcd_members(cluster: Cluster, browser: Browser) -> None:
    browser.open()
    browser.press("8")
    browser.sees("Managers", "nav a[aria-current]")
    browser.sees("1 of 1 etcd member healthy; a quorum needs 1.", "main")
    [manager] = cluster.json("manager", "ls")
    for text in (manager["hostname"], "leader", "ready", str(manager["raft_term"])):
        browser.sees(text, "main tbody")
    browser.press("/", "nothing-like-that")
    browser.sees("No matching managers.", "main")
    assert "managers ready" not in browser.text("#summary"), "while none is down"
    lost = "changed.call(cluster, { managers: { m9: { name: 'lost', state: 'down' } } })"
    browser.script(HOLD + lost)
    browser.sees("1 of 2 managers ready", "#summary")


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)], ids=["desk", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_dashboard_is_accessible(
    cluster: Cluster, hello: str, browser: Browser, size: tuple[int, int], theme: str
) -> None:
    cluster.orc("service", "create", "--name", "plain", "--replicas", "3", hello)
    browser.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 500},
    )
    browser.open()
    browser.script("document.documentElement.dataset.theme = arguments[0]", theme)
    for view in (
        "picture",
        "traffic",
        "services",
        "nodes",
        "tasks",
        "networks",
        "events",
        "managers",
    ):
        browser.script("location.hash = `#/${arguments[0]}`", view)
        browser.sees(view.capitalize(), "nav a[aria-current]")
        _check(browser, view)
    browser.script("location.hash = '#/services'")
    browser.sees("plain", "main")
    browser.click("plain", "main a")
    browser.sees("3 of 3", "#panel")
    _check(browser, "a service")


def _check(browser: Browser, where: str) -> None:
    """No fault that axe-core finds, and nothing that one must scroll sideways for."""
    found = Axe().run(browser.driver)["violations"]
    told = [f"{each['id']}: {each['nodes'][0]['html'][:120]}" for each in found]
    assert not told, f"{where}: {told}"
    widths = browser.script("return [document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1], where


def test_dashboard_requests_no_other_host_and_logs_no_error(
    cluster: Cluster, browser: Browser
) -> None:
    browser.open()
    for key in "12345678":
        browser.press(key)
        browser.sees("nodes ready", "#summary")
    hosts = set()
    for entry in browser.driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = urllib.parse.urlsplit(message["params"]["request"]["url"])
            # The browser's own pages and pictures come from nowhere.
            hosts |= {url.hostname} if url.scheme.startswith(("http", "ws")) else set()
    page = urllib.parse.urlsplit(browser.driver.current_url).hostname
    assert hosts == {page}
    errors = [each for each in browser.driver.get_log("browser") if each["level"] == "SEVERE"]
    assert errors == []


def test_a_hundred_nodes_and_five_thousand_tasks_are_drawn(
    cluster: Cluster, browser: Browser
) -> None:
    browser.open()
    browser.script(CROWD, 100, 5000)
    browser.sees("100 of 100 nodes ready", "#summary")
    eventually(lambda: browser.script("return orc.picture.drawn.frames") > 0)
    eventually(lambda: browser.script(COLOURS) > 10)
    browser.press("5")
    browser.sees("x0.0", "main")
    # Only what is in view is made.
    assert browser.script("return document.querySelectorAll('main tr').length") < 100
    browser.script("document.getElementById('main').scrollTop = 1e9")
    browser.sees("x39.4999", "main")


def test_picture_marks_faults_at_their_place(
    cluster: Cluster, hello: str, browser: Browser
) -> None:
    cluster.orc("service", "create", "--name", "drawn", "--replicas", "6", hello)
    browser.open()
    browser.sees("6 tasks running", "#summary")
    browser.script("document.documentElement.dataset.theme = 'light'")
    before, boxes = browser.picture(), browser.script(BOXES)
    node = next(t["node"] for t in cluster.running("drawn") if t["name"] == "drawn.3")
    place = browser.script(CHANGE, "drawn.3", {"health": "unhealthy"})
    after = browser.picture()
    differs = {
        name: ImageChops.difference(_part(before, box), _part(after, box)).getbbox() is not None
        for name, box in boxes.items()
    }
    assert differs == {name: name == node for name in boxes}
    assert _reddish(_part(after, place)) > 3 * _reddish(_part(before, place)) + 20
    browser.script("document.documentElement.dataset.theme = 'dark'")
    dark = browser.picture()
    # Light becomes dark, and what is wrong stays the same colour's.
    assert _light(_part(after, boxes[node])) > 200 > 80 > _light(_part(dark, boxes[node]))
    assert _reddish(_part(dark, place)) > 20


def _part(image: Image.Image, place: dict[str, float]) -> Image.Image:
    left, top = int(place["x"]), int(place["y"])
    return image.crop((left, top, left + int(place["width"]), top + int(place["height"])))


def _reddish(image: Image.Image) -> int:
    """Pixels of the colour of trouble, which no service has."""
    pixels = (image.getpixel((x, y)) for x in range(image.width) for y in range(image.height))
    return sum(r > 150 and g < 150 and b < 150 and abs(g - b) < 40 for r, g, b in pixels)


def _light(image: Image.Image) -> float:
    """How light it is on the whole, from 0 to 255."""
    histogram = image.convert("L").histogram()
    return sum(value * number for value, number in enumerate(histogram)) / sum(histogram)


def test_traffic_graph_shows_connections_between_services(
    cluster: Cluster, hello: str, browser: Browser
) -> None:
    cluster.orc("service", "create", "--name", "asked", "--replicas", "2", hello)
    loop = "while :; do wget -q -O /dev/null http://asked/; sleep 0.2; done"
    cluster.script("asker", hello, loop, "--replicas", "2")
    cluster.await_running("asker", 2)
    cluster.await_running("asked", 2)
    browser.open("--read-only")
    browser.press("2")
    browser.sees("asker asked 80/tcp", ".edges")
    # Of the nodes' own, and of the name server, nothing is said.
    eventually(lambda: _said(browser) > 100)
    assert browser.script("return document.querySelectorAll('.edges tbody tr').length") == 1
    assert _counting(cluster) == {"1"}
    browser.press("1")
    # Who does not look costs nothing.
    eventually(lambda: _counting(cluster) == {"0"})


def _said(browser: Browser) -> float:
    """Bytes a second, of the first pair."""
    return float(
        browser.script(
            "const found = orc.traffic.pairs[0]; return found ? found.sent + found.received : 0"
        )
    )


def _counting(cluster: Cluster) -> set[str]:
    """Whether kernels count the bytes of connections, on the nodes."""
    path = "/proc/sys/net/netfilter/nf_conntrack_acct"
    return {cluster.exec(node, "cat", path).stdout.strip() for node in cluster.nodes()}
