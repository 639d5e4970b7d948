// SPDX-License-Identifier: Apache-2.0
// Colours: one per service, of equal lightness, and the style sheet's colours for canvases.

const hues = new Map();

/** Assign each name a hue of its own while the page is open. The golden angle keeps consecutive hues
 *  far apart. Red, from 0 to 45 degrees, is reserved for errors. */
export function hue(name) {
  if (!hues.has(name)) hues.set(name, 45 + (105 + hues.size * 137.508) % 315);
  return hues.get(name);
}

/** OKLCH as `rgb(…)` (B. Ottosson, "A perceptual color space for image processing", 2020). */
export function oklch(lightness, chroma, degrees, alpha = 1) {
  const angle = degrees * Math.PI / 180, a = chroma * Math.cos(angle), b = chroma * Math.sin(angle);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const linear = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
  const parts = linear.map((part) => {
    const clipped = Math.min(Math.max(part, 0), 1);
    return Math.round(255 * (clipped <= 0.0031308 ? 12.92 * clipped : 1.055 * clipped ** (1 / 2.4) - 0.055));
  });
  return `rgb(${parts.join(" ")} / ${alpha})`;
}

export const isDark = () => document.documentElement.dataset.theme === "dark";

const shades = new Map();

/** Colours of a name in the current colour scheme: `full` to fill, `tint` as background of text. */
export function shade(name) {
  const dark = isDark(), key = `${dark}${name}`;
  if (!shades.has(key)) {
    const degrees = hue(name);
    shades.set(key, dark
      ? { full: oklch(0.74, 0.13, degrees), tint: oklch(0.74, 0.13, degrees, 0.2) }
      : { full: oklch(0.62, 0.14, degrees), tint: oklch(0.62, 0.14, degrees, 0.16) });
  }
  return shades.get(key);
}

const NAMES = ["ground", "card", "line", "ink", "soft", "bad", "bad-tint", "warn", "bar", "bar-cpu", "bar-memory", "focus", "accent"];

/** The style sheet's colours by name, for a canvas. */
export function inks() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(NAMES.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}
