"""The screenshots of docs/ui.md: the page with the bundled model, driven in a headless Chromium.

python benchmarks/ui_pictures.py          # writes docs/images/ui.png and docs/images/ui-inpaint.png
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import threading
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from skimage import data

from fastdiff.apps.source import source_of
from fastdiff.web.serve import Site

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
COLOURS = 128  # of a screenshot: a tenth of the bytes, and no difference at this size
SIZE = {"width": 1200, "height": 720}


def main() -> None:
    """Serve, drive, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=IMAGES, help="a folder (default docs/images)")
    out: Path = parser.parse_args().out
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    site = Site(source_of(None))
    thread = threading.Thread(target=site.run)
    thread.start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            keep(generating(browser, site.address), out / "ui.png")
            keep(inpainting(browser, site.address), out / "ui-inpaint.png")
            browser.close()
    finally:
        site.server.stop()
        thread.join()


def generating(browser: Browser, address: str) -> bytes:
    """Four pictures of two labels, by daylight."""
    page = opened(browser, address, "light")
    page.uncheck(".chips input[value=brick]", force=True)
    for label in ("stained_glass", "flower"):
        page.check(f".chips input[value={label}]", force=True)
    page.fill("#field-width", "128")
    page.fill("#field-height", "96")
    page.fill("#field-count", "2")
    finished(page, seed=4)
    return page.screenshot()


def inpainting(browser: Browser, address: str) -> bytes:
    """A photograph with a scratch painted over, by night: before and after."""
    page = opened(browser, address, "dark")
    page.click("#tabs [data-name=inpaint]")
    page.select_option("#side", "192")
    page.set_input_files("#open", {"name": "astronaut.png", "mimeType": "image/png", "buffer": scratched()})
    page.wait_for_selector("#mask", state="visible")
    page.fill("#brush-size", "7")
    box = page.locator("#mask").bounding_box()
    assert box
    page.mouse.move(box["x"] + 0.03 * box["width"], box["y"] + 0.165 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.97 * box["width"], box["y"] + 0.635 * box["height"], steps=12)
    page.mouse.up()
    finished(page, seed=0)
    page.fill("#slider", "45")
    return page.screenshot()


def scratched() -> bytes:
    """skimage's astronaut with a white line across it, as a PNG."""
    picture = Image.fromarray(data.astronaut()).resize((192, 192), Image.Resampling.LANCZOS)
    for i in range(9, 183):
        for j in range(-2, 3):
            picture.putpixel((i, round(0.2 * 192 + (i - 19) * 0.5) + j), (250, 250, 245))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def opened(browser: Browser, address: str, scheme: str) -> Page:
    """The page in a window of its own."""
    page = browser.new_page(viewport=SIZE, color_scheme=scheme, reduced_motion="reduce")
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    return page


def finished(page: Page, *, seed: int) -> None:
    """Run the form and wait for what it makes."""
    page.check("#lock")
    page.fill("#field-seed", str(seed))
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#past button", timeout=300_000)
    time.sleep(1)
    page.mouse.move(2, 2)
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")


def keep(screenshot: bytes, path: Path) -> None:
    """Write a screenshot in few colours."""
    with Image.open(io.BytesIO(screenshot)) as image:
        few = image.convert("RGB").quantize(
            COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
        )
    few.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
