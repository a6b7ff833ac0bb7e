"""The page in a real browser: a headless Chromium drives it against a server on the tiny model.

CHROMIUM=/path/to/chromium names the browser; otherwise the one that is installed is taken. Without one, or without
playwright, these tests are skipped.
"""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="the page needs the extra 'ui'")
pytest.importorskip("uvicorn", reason="the page needs the extra 'ui'")
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
if not CHROMIUM:
    pytest.skip("no Chromium is installed (apt install chromium, or CHROMIUM=/path)", allow_module_level=True)

from fastdiff.images import png_bytes, read_recipe  # noqa: E402
from fastdiff.web.limits import Limits  # noqa: E402
from fastdiff.web.table import OPERATIONS  # noqa: E402
from web_client import Client, Watched, encoded, photograph, pixels, serving  # noqa: E402

WITH_PICTURE = [name for name, one in OPERATIONS.items() if one.picture and one.offered]
needs_edit = pytest.mark.skipif(not OPERATIONS["edit"].offered, reason="fastdiff.apps.edit is not installed")
needs_mask = pytest.mark.skipif(
    not OPERATIONS["inpaint"].offered, reason="fastdiff.apps.inpaint is not installed"
)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Client, Watched]]:
    with serving(limits=Limits(upload_bytes=2**18, visits=4)) as (client, model, _):
        yield client, model


@pytest.fixture
def model(server: tuple[Client, Watched]) -> Watched:
    return server[1]


@pytest.fixture(scope="module")
def browser() -> Iterator[api.Browser]:
    with api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]  # as in a container, whose user is root
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


class Opened:
    """The page in a window of its own, and what a visitor does with it."""

    def __init__(self, page: api.Page) -> None:
        self.page, self.problems, self.allowed = page, [], "never"
        page.set_default_timeout(30_000)
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self._note("error", str(error)))

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not re.search(self.allowed, text):
            self.problems.append(text)

    def open(self, port: int) -> Opened:
        self.page.goto(f"http://127.0.0.1:{port}/")
        self.page.wait_for_selector("body[data-ready]")
        return self

    def tab(self, name: str) -> None:
        self.page.click(f'#tabs button[data-name="{name}"]')

    def set(self, name: str, value: object) -> None:
        """Give a field a value, unfolding it."""
        if not self.page.is_visible(f"#field-{name}"):
            self.page.click("summary")
        self.page.fill(f"#field-{name}", str(value))

    def value(self, name: str) -> str:
        return self.page.input_value(f"#field-{name}")

    def chosen(self) -> list[str]:
        """The labels that are ticked."""
        return self.page.eval_on_selector_all(".chips input:checked", "all => all.map((one) => one.value)")

    def run(self) -> None:
        """Run, until it is done."""
        before = self.page.locator("#past button").count()
        self.page.click("#run")
        self.done(before)

    def done(self, before: int = 0) -> None:
        """Wait for one more picture in the history."""
        self.until(f"document.querySelectorAll('#past button').length > {before}")
        self.page.wait_for_selector("#run", state="visible")
        assert self.error() == ""

    def until(self, condition: str, seconds: float = 30.0) -> None:
        """Wait until JavaScript says so. (The page's own policy forbids what Playwright would do for this.)"""
        end = time.monotonic() + seconds
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, f"never: {condition}"
            time.sleep(0.02)

    def error(self) -> str:
        return self.page.inner_text("#error")

    def shown(self) -> bytes:
        """The picture on the stage, as a file."""
        with self.page.expect_download() as download:
            self.page.click("#download")
        return Path(download.value.path()).read_bytes()

    def give(self, selector: str, name: str, data: bytes, kind: str = "image/png") -> None:
        """A file, chosen by its button."""
        self.page.set_input_files(selector, {"name": name, "mimeType": kind, "buffer": data})

    def drop(self, selector: str, name: str, data: bytes, kind: str = "image/png") -> None:
        """A file, dropped on an element."""
        transfer = self.page.evaluate_handle(
            """([name, bytes, kind]) => {
                const data = Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0));
                const transfer = new DataTransfer();
                transfer.items.add(new File([data], name, { type: kind }));
                return transfer; }""",
            [name, base64.b64encode(data).decode(), kind],
        )
        for event in ("dragenter", "dragover", "drop"):
            self.page.dispatch_event(selector, event, {"dataTransfer": transfer})

    def picture(self, data: bytes | None = None) -> None:
        """Open a picture to work on."""
        self.give("#open", "photo.png", data or encoded(photograph(32, 24)))
        self.page.wait_for_selector("#well-picture", state="visible")

    def narrow(self) -> bool:
        """Whether nothing is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.fixture
def opened(browser: api.Browser, server: tuple[Client, Watched]) -> Iterator[Opened]:
    context = browser.new_context(viewport={"width": 1280, "height": 860}, accept_downloads=True)
    window = Opened(context.new_page()).open(server[0].port)
    yield window
    problems = window.problems
    context.close()
    assert not problems, problems


def recipe_of(png: bytes) -> dict:
    return read_recipe(io.BytesIO(png))["arguments"]


# Generate


def test_it_opens_on_generate_with_a_tab_for_each_operation(opened: Opened) -> None:
    names = opened.page.eval_on_selector_all("#tabs button", "all => all.map((one) => one.dataset.name)")
    assert names == [name for name, one in OPERATIONS.items() if one.offered]
    assert opened.page.inner_text("#run") == "Generate" and opened.page.is_visible("#empty")
    assert not opened.page.is_visible("#more [id^=field]"), "the rest is folded"


def test_generate_shows_a_picture_and_what_it_is(opened: Opened) -> None:
    opened.set("steps", 3)
    opened.run()
    size = opened.page.eval_on_selector("#picture", "image => [image.naturalWidth, image.naturalHeight]")
    assert size == [16, 16] and "16 × 16 · generate · brick" in opened.page.inner_text("#caption")


def test_several_pictures_stand_in_a_row_to_choose_from(opened: Opened) -> None:
    opened.page.check(".chips input[value=cat]", force=True)
    opened.set("count", 2)
    opened.set("steps", 2)
    opened.run()
    thumbs = opened.page.locator("#results button")
    assert thumbs.count() == 4
    first = opened.page.get_attribute("#picture", "src")
    thumbs.nth(3).click()
    assert opened.page.get_attribute("#picture", "src") != first
    assert recipe_of(opened.shown())["prompts"] == ["cat"]


def test_the_download_carries_the_recipe(opened: Opened) -> None:
    opened.set("steps", 3)
    opened.page.check("#lock")
    opened.page.fill("#field-seed", "77")
    opened.run()
    arguments = recipe_of(opened.shown())
    assert (arguments["seed"], arguments["steps"], arguments["prompts"]) == (77, 3, ["brick"])
    assert opened.page.get_attribute("#download", "download") == "generate-brick-seed77.png"


def test_the_same_seed_twice_is_the_same_picture_and_another_is_not(opened: Opened) -> None:
    opened.set("steps", 3)
    opened.page.check("#lock")
    pictures = []
    for seed in ("5", "5", "6"):
        opened.page.fill("#field-seed", seed)
        opened.run()
        pictures.append(opened.shown())
    assert pictures[0] == pictures[1]
    assert not np.array_equal(pixels(pictures[1]), pixels(pictures[2]))


def test_the_seed_changes_unless_it_is_locked(opened: Opened) -> None:
    opened.set("steps", 1)
    seeds = []
    for lock in (False, False, True):
        opened.page.set_checked("#lock", lock)
        opened.run()
        seeds.append(opened.value("seed"))
    assert len(set(seeds)) == 2 and seeds[1] == seeds[2]
    opened.page.click("#dice")
    assert opened.value("seed") not in seeds


def test_progress_and_previews_show_while_it_samples(opened: Opened, model: Watched) -> None:
    page = opened.page
    opened.set("steps", 12)
    with model.slow(0.08):
        page.click("#run")
        opened.until("document.querySelector('#picture').src.startsWith('data:image/jpeg')")
        opened.until("document.querySelector('#progress').value >= 3")
        assert re.match(r"Step \d+ of 12", page.inner_text("#step"))
        assert page.get_attribute("#progress", "aria-label")
        first = page.get_attribute("#picture", "src")
        opened.until(f"document.querySelector('#picture').src !== {first!r}")
        opened.done()
    assert not page.is_visible("#running") and "pictures" in page.get_attribute("#picture", "src")
    assert "Done" in page.text_content("#notice") and page.get_attribute("#notice", "aria-live") == "polite"


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_cancel_takes_effect_within_one_step(opened: Opened, model: Watched, how: str) -> None:
    page = opened.page
    opened.set("steps", 200)
    with model.slow(0.1):
        page.click("#run")
        opened.until("document.querySelector('#progress').value >= 2")
        at = model.calls
        page.click("#cancel") if how == "button" else page.keyboard.press("Escape")
        page.wait_for_selector("#run", state="visible")
        assert model.calls <= at + 2  # one may have begun between the look and the click
    assert "Cancelled" in page.inner_text("#notice") and page.locator("#past button").count() == 0
    opened.set("steps", 1)
    opened.run()


def test_a_bad_value_is_said_and_pointed_at(opened: Opened) -> None:
    opened.allowed = "status of 400"  # Chromium notes each refused request
    opened.set("steps", 9999)
    opened.page.click("#run")
    opened.page.wait_for_selector("#error:not(:empty)")
    assert "steps must be a whole number from 1 to 250" in opened.error()
    assert opened.page.evaluate("document.activeElement.id") == "field-steps"
    assert opened.page.get_attribute("#field-steps", "aria-invalid") == "true"
    opened.set("steps", 1)
    opened.run()
    assert opened.page.get_attribute("#field-steps", "aria-invalid") == "false"


# Pictures in, settings back


def test_dropping_a_png_restores_its_settings(opened: Opened) -> None:
    opened.page.check("#lock")
    opened.page.fill("#field-seed", "123")
    opened.page.check(".chips input[value=truchet]", force=True)
    opened.set("steps", 4)
    opened.run()
    opened.page.click("#results li:nth-child(2) button")
    made = opened.shown()
    opened.page.reload()
    opened.page.wait_for_selector("body[data-ready]")
    opened.set("steps", 9)
    opened.drop("#stage", "made.png", made)
    opened.until("document.querySelector('#notice').textContent.includes('restored')")
    assert (opened.value("seed"), opened.value("steps"), opened.chosen()) == ("124", "4", ["truchet"])
    assert opened.page.is_checked("#lock")
    opened.run()
    assert np.abs(pixels(opened.shown()).astype(int) - pixels(made)).max() <= 1


def test_a_png_is_restored_by_its_button_too(opened: Opened) -> None:
    recipe = {
        "command": "generate",
        "arguments": {"prompts": ["cat"], "size": [32, 16], "steps": 7, "seed": 3},
    }
    opened.give("#restore", "old.png", png_bytes(np.asarray(photograph()), recipe=recipe))
    opened.until("document.querySelector('#field-width').value === '32'")
    assert opened.chosen() == ["cat"] and opened.value("seed") == "3"
    assert "another checkpoint" in opened.error()


@pytest.mark.parametrize(
    "name, data",
    [
        ("notes.txt", b"not a picture"),
        ("half.png", encoded(photograph(64, 64))[:90]),
        ("big.png", bytes(2**19)),
    ],
)
def test_what_is_no_picture_is_refused_in_words(opened: Opened, name: str, data: bytes) -> None:
    opened.allowed = "status of 400"
    opened.drop("#stage", name, data, "application/octet-stream")
    opened.page.wait_for_selector("#error:not(:empty)")
    assert name in opened.error() and len(opened.error()) < 200
    opened.page.click("#error button")
    assert opened.error() == ""


def test_a_png_without_a_recipe_has_nothing_to_restore(opened: Opened) -> None:
    opened.give("#restore", "plain.png", encoded(photograph()))
    opened.page.wait_for_selector("#error:not(:empty)")
    assert "no recipe" in opened.error()


@needs_edit
def test_a_dropped_photograph_becomes_the_picture_to_edit(opened: Opened) -> None:
    opened.drop("#stage", "photo.jpg", encoded(photograph(40, 30), "JPEG"), "image/jpeg")
    opened.page.wait_for_selector("#well-picture", state="visible")
    assert opened.page.get_attribute("#tabs [aria-selected=true]", "data-name") == "edit"
    assert "photo.jpg, 40 × 30" in opened.page.inner_text("#well-text")


@needs_edit
def test_a_large_picture_is_made_to_fit(opened: Opened) -> None:
    opened.tab("edit")
    opened.page.select_option("#side", "64")
    opened.picture(encoded(photograph(200, 100)))
    opened.until("document.querySelector('#well-text').textContent.includes('64 × 32')")
    opened.page.select_option("#side", "128")
    opened.until("document.querySelector('#well-text').textContent.includes('128 × 64')")


# Operations on a picture


@pytest.mark.parametrize("operation", WITH_PICTURE)
def test_every_operation_works_and_compares_with_before(opened: Opened, operation: str) -> None:
    opened.tab(operation)
    opened.picture()
    opened.set("steps", 3)
    if OPERATIONS[operation].mask:
        opened.page.click("#mask", position={"x": 60, "y": 60})
    opened.run()
    assert opened.page.is_visible("#slider") and opened.page.get_attribute("#before", "src")
    made = read_recipe(io.BytesIO(opened.shown()))
    assert made["command"] in (operation, "inpaint") and made["inputs"]


@needs_edit
def test_the_slider_shows_before_and_after_by_keyboard_and_by_pointer(opened: Opened) -> None:
    page = opened.page
    opened.tab("edit")
    opened.picture()
    opened.set("steps", 2)
    opened.run()
    cut = "getComputedStyle(document.querySelector('#picture')).clipPath"
    assert "50%" in page.evaluate(cut)
    page.focus("#slider")
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert "60%" in page.evaluate(cut) and page.get_attribute("#slider", "aria-valuetext") == "60 % before"
    box = page.locator("#frame").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 50)
    page.mouse.up()
    assert page.input_value("#slider") == "30"
    page.click("#views button:has-text('Result')")
    assert page.evaluate(cut) == "none" and not page.is_visible("#slider")


@needs_edit
def test_a_result_is_used_as_the_next_picture(opened: Opened) -> None:
    opened.set("steps", 2)
    opened.run()
    opened.page.click("#use")
    assert opened.page.get_attribute("#tabs [aria-selected=true]", "data-name") == "edit"
    opened.run()
    assert read_recipe(io.BytesIO(opened.shown()))["command"] == "edit"


@needs_mask
def test_the_brush_repaints_only_what_it_painted(opened: Opened) -> None:
    page = opened.page
    opened.tab("inpaint")
    photo = photograph(32, 32)
    opened.picture(encoded(photo))
    opened.set("steps", 3)
    box = page.locator("#mask").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.3)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.7, steps=4)
    page.mouse.up()
    opened.run()
    change = np.abs(pixels(opened.shown()).astype(int) - np.asarray(photo)).max(axis=-1)
    assert change[8:22, 22:26].mean() > 3, "what was painted over is new"
    assert change[:, :14].max() <= 1, "what was not is as it was"


@needs_mask
def test_the_mask_is_painted_erased_and_undone(opened: Opened) -> None:
    page = opened.page
    opened.tab("inpaint")
    opened.picture()
    covered = """() => { const c = document.querySelector('#mask');
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 127; return n; }"""
    page.click("#mask", position={"x": 80, "y": 80})
    painted = page.evaluate(covered)
    page.click("#invert")
    assert page.evaluate(covered) == pytest.approx(32 * 24 - painted, abs=30) and painted > 0
    page.click("#undo")
    page.click("#erase")
    page.click("#mask", position={"x": 80, "y": 80})
    assert page.evaluate(covered) == pytest.approx(0, abs=2)
    page.click("#undo")
    assert page.evaluate(covered) == painted
    page.click("#clear")
    assert page.evaluate(covered) == 0
    page.click("#run")
    page.wait_for_selector("#error:not(:empty)")
    assert "paint over" in opened.error()


@needs_mask
def test_the_mask_is_painted_by_keyboard_alone(opened: Opened) -> None:
    opened.tab("inpaint")
    opened.picture()
    opened.set("steps", 2)
    opened.page.focus("#mask")
    for key in ("ArrowRight", "]", " ", "Shift+ArrowDown", " "):
        opened.page.keyboard.press(key)
    opened.page.keyboard.press("Control+Enter")
    opened.done()


# History


def test_the_history_brings_pictures_and_settings_back(opened: Opened) -> None:
    sources = []
    for steps in (2, 3):
        opened.set("steps", steps)
        opened.run()
        sources.append((opened.page.get_attribute("#picture", "src"), opened.value("seed")))
    opened.page.click("#past li:last-child button")
    assert (opened.page.get_attribute("#picture", "src"), opened.value("seed")) == sources[0]
    assert opened.value("steps") == "2" and opened.page.is_checked("#lock")
    assert opened.page.get_attribute("#past li:last-child button", "aria-current") == "true"
    opened.page.reload()
    opened.page.wait_for_selector("body[data-ready]")
    opened.until("document.querySelectorAll('#past button').length === 2")


@needs_mask
def test_the_history_brings_the_picture_and_the_mask_back(opened: Opened) -> None:
    opened.tab("inpaint")
    opened.picture()
    opened.set("steps", 2)
    opened.page.click("#mask", position={"x": 80, "y": 80})
    opened.run()
    first = opened.shown()
    opened.picture(encoded(Image.new("RGB", (48, 48))))
    opened.tab("generate")
    opened.page.click("#past li:last-child button")
    opened.page.wait_for_timeout(200)
    opened.run()
    assert np.array_equal(pixels(opened.shown()), pixels(first))


def test_a_reload_finds_the_job_that_runs(opened: Opened, model: Watched) -> None:
    opened.set("steps", 30)
    with model.slow(0.05):
        opened.page.click("#run")
        opened.until("document.querySelector('#progress').value >= 2")
        opened.page.reload()
        opened.page.wait_for_selector("#cancel", state="visible")
        opened.done()


# For everybody


def test_everything_works_by_keyboard_alone(opened: Opened) -> None:
    page = opened.page

    def press(*keys: str) -> None:
        for key in keys:
            page.keyboard.press(key)

    def reach(selector: str, key: str = "Tab") -> None:
        for _ in range(60):
            press(key)
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                marked = page.evaluate(
                    "document.activeElement.nextElementSibling && "
                    "getComputedStyle(document.activeElement.nextElementSibling).outlineStyle"
                )
                assert "solid" in (outline, marked), f"no ring around {selector}"
                return
        raise AssertionError(f"{selector} cannot be reached")

    reach(".skip")
    press("Enter")
    reach(".chips input[value=cat]")
    press("Space")
    reach("#field-seed")
    press("ArrowUp")
    reach("#lock")
    press("Space")
    reach("summary")
    press("Enter")
    reach("#field-steps")
    press("Control+a", "2")
    reach("#run")
    press("Enter")
    opened.done()
    assert opened.chosen() == ["brick", "cat"] and page.is_checked("#lock")
    reach("#past button")
    press("Enter")
    assert "settings are back" in page.inner_text("#notice")
    reach("#tabs button", "Shift+Tab")
    press("End")
    assert page.get_attribute("#tabs button:last-child", "aria-selected") == "true"


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_scrolls_sideways(opened: Opened, width: int) -> None:
    opened.page.set_viewport_size({"width": width, "height": 740})
    assert opened.narrow()
    opened.page.click("summary")
    for name in (name for name, one in OPERATIONS.items() if one.offered):
        opened.tab(name)
        if OPERATIONS[name].picture and not opened.page.is_visible("#well-picture"):
            opened.picture(encoded(photograph(300, 40)))
        assert opened.narrow(), name
    opened.tab("generate")
    opened.set("steps", 1)
    opened.set("count", 8)
    opened.run()
    assert opened.narrow()
    assert opened.page.locator("#frame").bounding_box()["width"] > 0.4 * min(width, 700)


def test_every_control_has_a_name(opened: Opened) -> None:
    for name in (name for name, one in OPERATIONS.items() if one.offered):
        opened.tab(name)
        nameless = opened.page.eval_on_selector_all(
            "button, input, select, canvas, a[href], progress",
            """all => all.filter((one) => one.offsetParent && !(one.labels?.length || one.getAttribute('aria-label')
                || one.textContent.trim() || one.getAttribute('aria-describedby'))).map((one) => one.outerHTML)""",
        )
        assert not nameless
    assert opened.page.locator("#tabs [role=tab][aria-selected=true]").count() == 1


CONTRAST = """() => { const light = (css) => { const [r, g, b] = css.match(/[\\d.]+/g).map((v) => { v /= 255;
    return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const ground = (one) => { const css = getComputedStyle(one).backgroundColor;
        return css === 'rgba(0, 0, 0, 0)' && one.parentElement ? ground(one.parentElement) : css; };
    const names = ['#run', '#about', '.chips input:checked + span', '#tabs button', 'summary', '.hint', '#empty'];
    return names.map((name) => {
        const one = document.querySelector(name), a = light(getComputedStyle(one).color), b = light(ground(one));
        return [name, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]; }); }"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_can_be_read(opened: Opened, scheme: str) -> None:
    opened.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    ground = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 200) is (scheme == "dark")
    for name, ratio in opened.page.evaluate(CONTRAST):
        assert ratio >= 4.5, f"{name}: contrast {ratio:.2f}"


def test_nothing_moves_where_motion_is_not_wanted(opened: Opened) -> None:
    opened.page.emulate_media(reduced_motion="reduce")
    moving = "getComputedStyle(document.querySelector('#run')).transitionDuration"
    assert opened.page.evaluate(moving) == "0s"


# The server behind it


def test_all_comes_from_the_server_itself(browser: api.Browser, server: tuple[Client, Watched]) -> None:
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    Opened(page).open(server[0].port)
    page.close()
    assert len(asked) > 5 and all(url.startswith(f"http://127.0.0.1:{server[0].port}/") for url in asked)


def test_it_says_when_the_server_stops(browser: api.Browser) -> None:
    with serving() as (client, _, site):
        window = Opened(browser.new_page()).open(client.port)
        window.allowed = "."
        site.server.stop()
        window.until("document.querySelector('#error').textContent.includes('has stopped')")
        window.page.close()


def test_the_token_opens_the_page_and_leaves_the_address(browser: api.Browser) -> None:
    with serving(token="a1b2c3d4e5f6g7h8") as (_, _, site):
        window = Opened(browser.new_page())
        window.page.goto(site.address)
        window.page.wait_for_selector("body[data-ready]")
        assert "token" not in window.page.url
        window.set("steps", 1)
        window.run()
        window.page.close()


def test_a_closed_page_gives_its_job_up(browser: api.Browser) -> None:
    with serving(limits=Limits(grace=0.4)) as (client, model, site), model.slow():
        window = Opened(browser.new_page()).open(client.port)
        window.set("steps", 250)
        window.page.click("#run")
        window.until("document.querySelector('#progress').value >= 1")
        window.page.close()
        until = time.monotonic() + 10
        while site.studio.visits and time.monotonic() < until:
            time.sleep(0.05)
        assert not site.studio.visits
        time.sleep(0.2)
        calls = model.calls
        time.sleep(0.3)
        assert model.calls == calls
