"""The web page in a real browser, on a real cluster."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_core_python.selenium import Axe
from devcluster import Cluster, eventually
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
FRAMES_OF_A_CROWD = """
const [nodes, tasks, done] = arguments;
const { cluster, picture } = orc;
const names = Object.fromEntries([...Array(nodes).keys()].map((at) => [`n${at}`, `crowd${at}`]));
for (const [id, name] of Object.entries(names)) {
  cluster.nodes.set(id, { id, name, state: "ready", availability: "active", shares: 65536,
    memory: 2 ** 36, labels: {}, message: "", address: "", about: "" });
}
const at = (index) => `n${index % nodes}`;
for (let index = 0; index < tasks; index += 1) {
  cluster.tasks.set(`t${index}`, { id: `t${index}`, name: `x${index % 40}.${index}`, service: "",
    node: at(index), state: index % 9 ? "running" : "starting", shares: 100, memory: 2 ** 20,
    addresses: {}, message: "", health: "", at: 0, image: "x:1", stops: false });
}
cluster.tasksOfNode = (id) => [...cluster.tasks.values()].filter((task) => task.node === id);
const groups = new Map(Object.keys(names).map((id) => [id, cluster.tasksOfNode(id)]));
cluster.tasksOfNode = (id) => groups.get(id) ?? [];
picture.refresh();
const before = { ...picture.drawn };
setTimeout(() => done([picture.drawn.frames - before.frames,
  picture.drawn.milliseconds - before.milliseconds]), 1500);
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
        return " ".join(each.text for each in self.driver.find_elements(By.CSS_SELECTOR, selector))

    def sees(self, text: str, selector: str = "body", within: float = 10.0) -> None:
        eventually(lambda: text in self.text(selector), within=within)

    def script(self, text: str, *arguments: Any) -> Any:
        return self.driver.execute_script(text, *arguments)

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def click(self, text: str, selector: str = "a, button") -> None:
        """Click on what says a text at its end, once it is there; the page may be drawing it."""
        eventually(lambda: self.script(CLICK, selector, text), within=10)


@pytest.fixture
def browser(cluster: Cluster, tmp_path: Path) -> Iterator[Browser]:
    options = Options()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*FLAGS, f"--user-data-dir={tmp_path}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        yield Browser(driver, cluster)
    finally:
        driver.quit()


def test_the_cluster_is_seen_as_it_moves(cluster: Cluster, hello: str, browser: Browser) -> None:
    browser.open()
    assert "ticket" not in browser.driver.current_url
    empty = browser.script(COLOURS)
    cluster.orc("service", "create", "--name", "seen", "--replicas", "6", hello)
    browser.sees("6 tasks running", "#summary")
    eventually(lambda: browser.script(COLOURS) > empty, within=5)
    names = {f"seen.{slot}" for slot in range(1, 7)}
    nodes = ("node1", "node2", "node3")
    assert {task for node in nodes for task in browser.script(TASKS_OF_A_NODE, node)} == names
    cluster.orc("node", "update", "--availability", "drain", "node1")
    eventually(lambda: browser.script(TASKS_OF_A_NODE, "node1") == [], within=30)
    cluster.orc("node", "update", "--availability", "active", "node1")
    cluster.power_off("node3")
    browser.sees("2 of 3 nodes ready", "#summary", within=20)
    cluster.start("node3")
    browser.sees("3 of 3 nodes ready", "#summary", within=20)


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
    eventually(
        lambda: (
            len(now := cluster.running("handy")) == 4 and not before & {task["id"] for task in now}
        ),
        within=40,
    )
    browser.click("Nodes")
    browser.click("node2", "main a")
    browser.click("Drain")
    eventually(lambda: cluster.nodes()["node2"]["availability"] == "drain", within=10)
    browser.click("Activate")
    eventually(lambda: cluster.nodes()["node2"]["availability"] == "active", within=10)


def test_what_the_manager_refuses_is_told(cluster: Cluster, hello: str, browser: Browser) -> None:
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


def test_who_may_only_look_changes_nothing(cluster: Cluster, hello: str, browser: Browser) -> None:
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


def test_logs_are_followed(cluster: Cluster, hello: str, browser: Browser) -> None:
    cluster.script("chatty", hello, "i=0; while :; do echo line $((i=i+1)); sleep 0.2; done")
    cluster.await_running("chatty", 1)
    browser.open()
    browser.press("4")
    browser.sees("chatty.1", "main")
    browser.click("chatty.1", "main a")
    browser.click("Show logs")
    browser.sees("line 3", "pre.log")
    lines = browser.text("pre.log").count("line ")
    eventually(lambda: browser.text("pre.log").count("line ") > lines, within=5)


def test_what_a_task_used_is_a_chart(cluster: Cluster, hello: str, browser: Browser) -> None:
    cluster.script("worker", hello, "while :; do :; done", "--limit-cpu", "0.2")
    (task,) = cluster.await_running("worker", 1)
    browser.open()
    browser.script("location.hash = `#/task/${arguments[0]}`", task["id"])
    browser.sees("CPU: ", ".charts", within=20)
    # Two samples, and the page's look at them.
    browser.sees("cores at most", ".charts", within=60)
    points = "return document.querySelector('.charts polyline').getAttribute('points')"
    assert browser.script(points)
    _check(browser, "a task")
    browser.script("location.hash = '#/nodes'")
    browser.click("node1", "main a")
    browser.sees("Memory: ", ".charts", within=20)


def test_all_by_the_keyboard(cluster: Cluster, hello: str, browser: Browser) -> None:
    cluster.orc("service", "create", "--name", "typed", "--replicas", "2", hello)
    browser.open()
    browser.press("2")
    browser.sees("typed", "main")
    browser.press("/", "nothing-like-that")
    browser.sees("No service is like that.", "main")
    browser.press(Keys.ESCAPE)
    browser.sees("typed", "main")
    browser.script("document.activeElement.blur()")
    browser.press("1")
    browser.sees("Picture", "nav a[aria-current]")
    browser.script("document.querySelector('canvas').focus()")
    browser.press(Keys.ARROW_RIGHT, Keys.ENTER)
    browser.sees("node2", "#panel h2")
    browser.press(Keys.ESCAPE)
    eventually(lambda: not browser.driver.find_element(By.ID, "panel").is_displayed(), within=5)
    browser.press("?")
    browser.sees("Keyboard", "dialog")
    browser.press(Keys.ESCAPE)
    dark = browser.script("return document.documentElement.dataset.theme")
    browser.press("d")
    assert browser.script("return document.documentElement.dataset.theme") != dark


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)], ids=["desk", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everybody_can_use_it(
    cluster: Cluster, hello: str, browser: Browser, size: tuple[int, int], theme: str
) -> None:
    cluster.orc("service", "create", "--name", "plain", "--replicas", "3", hello)
    browser.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 500},
    )
    browser.open()
    browser.script("document.documentElement.dataset.theme = arguments[0]", theme)
    for view in ("picture", "services", "nodes", "tasks", "networks", "events"):
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


def test_it_asks_nothing_of_the_outside_and_says_no_error(
    cluster: Cluster, browser: Browser
) -> None:
    browser.open()
    for key in "123456":
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
    frames, _ = browser.driver.execute_async_script(FRAMES_OF_A_CROWD, 100, 5000)
    assert frames > 0
    assert browser.script(COLOURS) > 10
