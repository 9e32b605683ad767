"""Scripts that measure contrasts in a page, of its texts and between any two colours."""

from __future__ import annotations

#: Functions for colours: `parse` gives the parts of a CSS colour, `ground` what is behind an
#: element's content, `contrast` the ratio of a colour and of what is below it.
COLOURS = """
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  const parse = color => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], [R, G, B]) => [r, g, b].map((c, i) => c * a + [R, G, B][i] * (1 - a));
  const ground = e => over(parse(getComputedStyle(e).backgroundColor),
    e.parentElement ? ground(e.parentElement) : parse('Canvas').slice(0, 3));
  const luminance = rgb => rgb.map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (color, below) => {
    const [light, dark] = [luminance(below), luminance(over(parse(color), below))].sort((a, b) => b - a);
    return (light + 0.05) / (dark + 0.05);
  };
"""

#: Returns the contrast of each visible element that has text of its own, by a description of it.
CONTRASTS = f"""() => {{{COLOURS}
  const inkContrast = (e, pseudo) => contrast(getComputedStyle(e, pseudo).color, ground(e));
  const name = e => `${{e.tagName.toLowerCase()}}#${{e.id}}.${{e.className}}: ${{e.textContent.trim().slice(0, 20)}}`;
  const contrasts = {{}};
  for (const e of document.body.querySelectorAll('*')) {{
    const text = [...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.data.trim());
    if (!e.checkVisibility() || e.matches('.hidden, .skip')) continue;
    if (text) contrasts[name(e)] = inkContrast(e);
    if (e.matches(':placeholder-shown')) contrasts[name(e) + ' placeholder'] = inkContrast(e, '::placeholder');
  }}
  return contrasts;
}}"""
