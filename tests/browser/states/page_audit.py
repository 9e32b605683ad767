"""Faults of a page that can be measured: in its accessibility, its layout and its style sheets.

Each function returns the faults as texts; none is the good case. `Page` is a tab in one of the
states of `tests.browser.states.page_states`.
"""

from __future__ import annotations

from typing import Any

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page

from tests.browser.contrasts import COLOURS

AXE = """async rules => {
  const options = { resultTypes: ['violations'], ...(rules && { runOnly: rules }) };
  const { violations } = await axe.run(options);
  return violations.flatMap(v => v.nodes.map(n =>
    `${v.id}: ${n.target.join(' ')}: ${[...n.any, ...n.all, ...n.none].map(c => c.message).join(' ')}`));
}"""

#: Elements that are pressed or filled in, with the area that takes the press. A link within a text
#: is as high as its line.
TARGETS = """least => {
  const faults = [], seen = new Set();
  const controls = 'a[href], button, input:not([type=hidden], :disabled), select, textarea, summary, [role=option]';
  for (const e of document.querySelectorAll(controls)) {
    if (!e.checkVisibility({ visibilityProperty: true }) || e.closest('.hidden, .skip')) continue;
    const inText = e.matches('a') && getComputedStyle(e).display === 'inline';
    const area = e.closest('label') ?? (e.matches('.select') ? e.closest('li') : e); // a selected row
    const { width, height } = area.getBoundingClientRect();
    if (inText || !width || !height || Math.min(width, height) >= least - 0.5) continue;
    const name = e.ariaLabel || e.textContent.trim().slice(0, 30) || e.id || e.name;
    const text = `${e.tagName.toLowerCase()}#${e.id}.${e.className} "${name}": ${Math.round(width)} x ${Math.round(height)}`;
    if (!seen.has(text)) faults.push(text);
    seen.add(text);
  }
  return faults;
}"""

#: Icons of controls and edges of fields with a contrast below 3:1.
EDGES = f"""() => {{{COLOURS}
  const faults = [];
  const look = (e, color, below) => {{
    const value = contrast(color, below);
    if (value < 3) faults.push(`${{e.tagName.toLowerCase()}}#${{e.id}}.${{e.getAttribute('class')}}: ${{value.toFixed(2)}}`);
  }};
  for (const e of document.querySelectorAll(':is(a, button, summary, label) svg, input, textarea, select')) {{
    if (!e.checkVisibility({{ visibilityProperty: true, opacityProperty: true }}) || e.matches(':disabled *, :disabled')) continue;
    const style = getComputedStyle(e);
    if (e.matches('svg')) look(e, style.stroke === 'none' ? style.fill : style.stroke, ground(e.parentElement));
    else if (parseFloat(style.borderTopWidth) && e.type !== 'checkbox' && parse(style.borderTopColor)[3]) look(e, style.borderTopColor, ground(e.parentElement));
  }}
  return faults;
}}"""

#: Elements that do not fit the width of the page, which then scrolls sideways.
OVERFLOW = """() => {
  const page = document.scrollingElement, width = document.documentElement.clientWidth;
  if (page.scrollWidth <= width) return [];
  const wide = [...document.body.querySelectorAll('*')].filter(e =>
    e.checkVisibility({ visibilityProperty: true }) && e.getBoundingClientRect().right > width + 0.5);
  return [`${page.scrollWidth} px in ${width} px: ` +
    wide.slice(0, 5).map(e => `${e.tagName.toLowerCase()}#${e.id}.${e.getAttribute('class')}`).join(', ')];
}"""

MOTION = """() => document.getAnimations().filter(a => a.playState === 'running')
  .map(a => `${a.animationName ?? a.transitionProperty}: ${a.effect.target.className}`)"""

#: With forced colours every ground is the same: what a ground shows needs an edge as well.
FLAT = """selectors => [...document.querySelectorAll(selectors)].filter(e => e.checkVisibility()).filter(e => {
  const style = getComputedStyle(e);
  const has = name => style[`${name}Style`] !== 'none' && parseFloat(style[`${name}Width`]) > 0;
  const sides = ['borderTop', 'borderLeft', 'outline'].some(has);
  return !sides && style.forcedColorAdjust !== 'none';
}).map(e => `${e.tagName.toLowerCase()}#${e.id}.${e.getAttribute('class')}`)"""

#: All selectors of the page's style sheets, and whether one element matches it, whatever its
#: momentary state. Vendors' prefixes and rules inside of others included.
SELECTORS = r"""() => {
  const momentary = /:(?:hover|focus|focus-visible|focus-within|active|target|first)(?![\w-])/g;
  const strip = selector => {
    let text = selector.replace(/::[\w-]+(?:\([^()]*\))?/g, ''), before;
    do {
      before = text;
      text = text.replace(/:not\(\s*:[\w-]+(?:\s*,\s*:[\w-]+)*\s*\)/g, '').replace(momentary, '')
        .replace(/:(?:is|not|where|has)\([\s,>+~]*\)/g, '').replace(/\(\s*,\s*/g, '(').replace(/,\s*\)/g, ')');
    } while (text !== before);
    text = text.trim();
    return /[>+~\s]$|^$/.test(text) ? `${text} *` : text;
  };
  const split = list => {
    const parts = [''];
    let depth = 0;
    for (const c of list) {
      depth += c === '(' || c === '[' ? 1 : c === ')' || c === ']' ? -1 : 0;
      if (c === ',' && !depth) parts.push(''); else parts[parts.length - 1] += c;
    }
    return parts.map(part => part.trim());
  };
  const found = {};
  const walk = rules => {
    for (const rule of rules) {
      if (rule.selectorText) for (const selector of split(rule.selectorText)) {
        let matches = false;
        try { matches = document.querySelector(strip(selector)) !== null; } catch { matches = `invalid: ${strip(selector)}`; }
        found[selector] ||= matches;
      }
      if (rule.cssRules) walk(rule.cssRules);
    }
  };
  for (const sheet of document.styleSheets) walk(sheet.cssRules);
  return found;
}"""


def axe_faults(page: Page, *rules: str) -> list[str]:
    """The faults that axe finds, by all of its rules or by these."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE_SCRIPT)
    return _texts(page.evaluate(AXE, list(rules) or None))


def small_targets(page: Page, least: int) -> list[str]:
    """Controls whose area is less than `least` pixels wide or high."""
    return _texts(page.evaluate(TARGETS, least))


def faint_edges(page: Page) -> list[str]:
    """Icons of controls and edges of fields with a contrast below 3:1."""
    return _texts(page.evaluate(EDGES))


def overflow(page: Page, width: int, height: int) -> list[str]:
    """The elements that make the page scroll sideways in a window of this size."""
    page.set_viewport_size({"width": width, "height": height})
    return _texts(page.evaluate(OVERFLOW))


def motion(page: Page) -> list[str]:
    """Animations and transitions that run where the system wants less motion."""
    page.emulate_media(reduced_motion="reduce")
    faults = _texts(page.evaluate(MOTION))
    page.emulate_media(reduced_motion="null")
    return faults


def flat_elements(page: Page, selectors: str) -> list[str]:
    """Elements with neither an edge nor an outline where the system forces its colours."""
    page.emulate_media(forced_colors="active")
    faults = _texts(page.evaluate(FLAT, selectors))
    page.emulate_media(forced_colors="null")
    return faults


def selectors(page: Page) -> dict[str, bool]:
    """Selectors of the page's style sheets, and whether an element matches."""
    found: dict[str, bool] = page.evaluate(SELECTORS)
    return found


def _texts(faults: Any) -> list[str]:
    return [str(fault) for fault in faults]
