// SPDX-License-Identifier: Apache-2.0
// DOM elements: create them, and update them in place.

/** Create an element with attributes, listeners (`onclick`) and children; strings become text nodes. */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value == null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") {
      for (const [property, text] of Object.entries(value)) element.style.setProperty(property, text);
    } else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}

const keyOf = (node) => node.id || node.dataset?.key || "";

/** Update the children of `place` to match `wanted`. Only differences are written, so that selection,
 *  focus and scroll position are kept. `data-key` identifies rows. */
export function patch(place, ...wanted) {
  const now = [...place.childNodes];
  wanted = wanted.flat(Infinity).filter((each) => each != null && each !== false)
    .map((each) => (typeof each === "string" ? document.createTextNode(each) : each));
  wanted.forEach((next, index) => {
    let old = now[index];
    if (old && keyOf(next) && keyOf(old) !== keyOf(next)) {
      const found = now.findIndex((node, at) => at > index && keyOf(node) === keyOf(next));
      if (found > 0) {
        old = now.splice(found, 1)[0];
        now.splice(index, 0, old);
        place.insertBefore(old, now[index + 1]);
      }
    }
    if (!old) place.append(next);
    else if (old.nodeName !== next.nodeName || keyOf(old) !== keyOf(next)) {
      place.insertBefore(next, old);
      now.splice(index, 0, next);
    } else alike(old, next);
  });
  for (const node of now.slice(wanted.length)) node.remove();
}

function alike(old, next) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== next.data) old.data = next.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (name !== "style" && !next.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of next.attributes) if (name !== "style" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  // Not as an attribute: the page's Content-Security-Policy forbids inline styles.
  if (old.style.cssText !== next.style.cssText) old.style.cssText = next.style.cssText;
  if (old.tagName === "INPUT") {
    if (old !== document.activeElement) old.value = next.value;
  } else patch(old, ...next.childNodes);
}
