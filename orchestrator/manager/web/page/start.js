// SPDX-License-Identifier: Apache-2.0
// Loads the page. If the manager does not send all of its files, says so and loads it again.
const PATIENCE = 10000, PAUSE = 2000; // milliseconds

let begun = false;

function again() {
  if (begun) return;
  const line = document.createElement("p");
  line.className = "empty";
  line.textContent = "The manager has not sent the whole page. Loading it again…";
  document.getElementById("main").replaceChildren(line);
  setTimeout(() => begun || location.reload(), PAUSE);
}

setTimeout(again, PATIENCE);
import("/page.js").then(() => { begun = true; }, again);
