"""A real browser that looks at a page at two widths, light and dark."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SHOTS = Path(__file__).parents[1] / "build" / "screenshots"
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
# Of a page of a server: how long one try waits, and from when on there is no other.
LOAD_SECONDS, PAGE_SECONDS = 60, 240
# Without these Chromium looks for hosts of its maker, which a closed network refuses.
QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
# Of every figure: how large its picture is, and whether all of it lies inside the window.
MEASURE = """() => ({
  wide: document.documentElement.scrollWidth - window.innerWidth,
  figures: [...document.querySelectorAll('figure[id]')].map((figure) => {
    const parts = [...figure.querySelectorAll('svg, canvas')].map((part) => part.getBoundingClientRect());
    return {id: figure.id, width: Math.min(...parts.map((p) => p.width)),
            height: Math.min(...parts.map((p) => p.height)), right: Math.max(...parts.map((p) => p.right))};
  }),
  images: [...document.querySelectorAll('img')].map((image) => image.naturalWidth),
  empty: [...document.querySelectorAll('canvas')].filter((canvas) => {
    const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    return !pixels.some((value) => value);
  }).length,
})"""
# WCAG contrast of every element's own text on the background under it.
CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const under = (element) => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.99) return colour;
    }
    return [255, 255, 255];
  };
  const low = [];
  const texts = 'p, h1, h2, h3, td, th, dt, dd, figcaption, small, a, code, span, li';
  for (const element of document.querySelectorAll(texts)) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (element.ariaHidden || !own) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(under(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push([element.tagName, element.textContent.slice(0, 30), ratio]);
  }
  return low;
}"""


@dataclass
class Seen:
    """What a browser found at one width in one colour scheme."""

    size: str
    scheme: str
    errors: list[str]
    requests: list[str]
    found: dict[str, Any]
    low_contrast: list[Any]


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser with a profile of its own."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        (pytest.fail if os.environ.get("LFM_CI") else pytest.skip)("no Chromium here; apt-get install chromium")
    from playwright.sync_api import sync_playwright

    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as play, tempfile.TemporaryDirectory() as profile:
        browser = play.chromium.launch(executable_path=program, args=list(QUIET), env={"HOME": profile})
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visit(user: str, password: str) -> Iterator[Callable[..., None]]:
    """Gives PAGE(url, name, words, frame=""): opens it, waits for each word to be seen, keeps a picture.

    `frame` is a text of a page shown inside the page. A busy machine may answer a request of the page too late,
    and MLflow's pages do not ask twice: a page without its words is loaded again, until PAGE_SECONDS are over.
    """
    from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

    with chromium() as browser:
        context = browser.new_context(
            http_credentials={"username": user, "password": password}, viewport={"width": 1500, "height": 1000}
        )

        def page(url: str, name: str, words: Sequence[str], frame: str = "") -> None:
            view = context.new_page()
            view.set_default_timeout(LOAD_SECONDS * 1000)
            until = time.monotonic() + PAGE_SECONDS
            try:
                while True:
                    try:
                        view.goto("about:blank")  # else a page whose address differs after # alone is not loaded again
                        view.goto(url)
                        for word in words:
                            view.get_by_text(word).first.wait_for()
                        if frame:
                            view.frame_locator("iframe").get_by_text(frame).first.wait_for()
                        break
                    except PlaywrightTimeoutError:
                        if time.monotonic() > until:
                            raise
            finally:
                view.screenshot(path=str(SHOTS / f"{name}.png"))
            view.close()

        yield page
        context.close()


def look(page: Path, name: str) -> list[Seen]:
    """Open a page at both widths in both schemes and keep a picture of each under build/screenshots."""
    seen = []
    with chromium() as browser:
        for size, (width, height) in SIZES.items():
            for scheme in ("light", "dark"):
                view = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                errors: list[str] = []
                requests: list[str] = []
                view.on(
                    "console",
                    lambda told, to=errors: to.append(told.text) if told.type in ("error", "warning") else None,
                )
                view.on("pageerror", lambda error, to=errors: to.append(str(error)))
                view.on("request", lambda request, to=requests: to.append(request.url))
                view.goto(page.absolute().as_uri())
                view.wait_for_timeout(200)  # the point clouds are drawn with the next frame
                view.screenshot(path=str(SHOTS / f"{name}-{size}-{scheme}.png"), full_page=True)
                seen.append(Seen(size, scheme, errors, requests, view.evaluate(MEASURE), view.evaluate(CONTRAST)))
                view.close()
    return seen


def check(page: Path, name: str, figures: int) -> None:
    """No errors, nothing asked of a network, no sideways scroll, every figure visible, readable in light and dark."""
    for seen in look(page, name):
        where = f"{name}, {seen.size}, {seen.scheme}"
        assert not seen.errors, where
        assert [url for url in seen.requests if not url.startswith(("file:", "data:"))] == [], where
        assert seen.found["wide"] <= 0, f"{where}: scrolls sideways"
        assert len(seen.found["figures"]) == figures, where
        for figure in seen.found["figures"]:
            assert figure["width"] > 200 and figure["height"] > 60, (where, figure)
            assert figure["right"] <= SIZES[seen.size][0], (where, figure)
        assert all(seen.found["images"]) and not seen.found["empty"], where
        assert not seen.low_contrast, (where, seen.low_contrast[:5])
