# SPDX-License-Identifier: EUPL-1.2
"""The pages in a real browser: nothing scrolls sideways on a phone, nothing is refused by the policy, all is told.

Chromium is driven through its DevTools protocol with aiohttp alone. The pages are served by their own routes
over the invented world of collector/pages/example.py.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from collector.pages.example import LONG_APP, application, world
from collector.pages.palette import contrast

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium)"),
]
LANGUAGES = ("en", "nl", "fr", "de")
PAGES = (
    "/",
    "/case/slow000001",
    "/case/block00001",
    "/case/fast000001",
    "/case/ended00001",
    "/case/weak000001",
    "/case/flap000001",
    "/case/wait000001",
    "/case/loss000001",
    "/case/alter00001",
    "/case/first00001",
    "/case/again00001",
    "/case/retro00001",
    "/cell/heron/zoom/down/fixed/slowing",
    "/cell/osprey/signal/down/fixed/slowing",
    "/cell/osprey/zoom/down/fixed/slowing",
    "/cell/tern/steam/down/fixed/blocking",
    "/cell/tern/youtube%2Bquic/down/fixed/slowing",
    "/cell/plover/youtube/down/fixed/slowing",
    "/cell/heron/youtube/down/hotspot/slowing",
    f"/cell/stork/{LONG_APP}/down/fixed/slowing",
    "/operator/stork",
    "/operator/tern",
    "/operator/heron",
    "/app/youtube",
    "/data",
    "/glossary",
    "/about",
    "/case/nowhere",
)
CASES = tuple(page for page in PAGES if page.startswith("/case/") and not page.endswith("nowhere"))
AXE = "axe-core@4.10.3"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)


class Browser:
    """One tab, spoken to over the DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, origin: str) -> None:
        self.socket, self.origin = socket, origin
        self.sent = 0
        self.events: list[dict[str, Any]] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.sent += 1
        await self.socket.send_json({"id": self.sent, "method": method, "params": parameters})
        while True:
            message = await self.socket.receive_json(timeout=30)
            if message.get("id") == self.sent:
                assert "error" not in message, message
                return dict(message["result"])
            self.events.append(message)

    async def open(self, path: str, *, width: int = 1000, dark: bool = False, media: str = "screen") -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.events.clear()
        await self.call("Page.navigate", url=self.origin + path)
        async with asyncio.timeout(20):
            while not any(event["method"] == "Page.loadEventFired" for event in self.events):
                self.events.append(await self.socket.receive_json())

    async def run(self, script: str) -> Any:
        result = await self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")


@pytest.fixture(scope="module")
def devtools() -> Iterator[str]:
    """Where one Chromium for all these tests can be told what to do: `http://HOST:PORT`."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": profile},  # it leaves files there
        )
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r"DevTools listening on ws://([^/]+)/", line):
                    break
            else:
                raise AssertionError("Chromium did not start")
            # What it complains of later must go somewhere, or a full pipe stops it.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield f"http://{found[1]}"
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture
async def browser(devtools: str) -> AsyncIterator[Browser]:
    """A new tab in a context of its own (no cache, cookie or setting of another test), and the pages' own server."""
    runner = web.AppRunner(application(world()))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with aiohttp.ClientSession() as client:
            async with client.get(f"{devtools}/json/version") as answer:
                whole = json.loads(await answer.text())["webSocketDebuggerUrl"]
            async with client.ws_connect(whole) as socket:
                chromium = Browser(socket, "")
                context = (await chromium.call("Target.createBrowserContext"))["browserContextId"]
                made = await chromium.call("Target.createTarget", url="about:blank", browserContextId=context)
                address = f"ws://{devtools.removeprefix('http://')}/devtools/page/{made['targetId']}"
                async with client.ws_connect(address) as own:
                    tab = Browser(own, f"http://127.0.0.1:{port}")
                    for domain in ("Page", "Log", "Runtime", "Network"):
                        await tab.call(f"{domain}.enable")
                    yield tab
                await chromium.call("Target.disposeBrowserContext", browserContextId=context)
    finally:
        await runner.cleanup()


WIDER = """(() => { const wide = document.documentElement.clientWidth; return {
  scroll: document.documentElement.scrollWidth - wide,
  offenders: [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre, .skip, details:not([open])')
    && (e.getBoundingClientRect().right > wide + 0.5 || e.getBoundingClientRect().left < -0.5))
    .map(e => e.outerHTML.slice(0, 120)) } })()"""


@pytest.mark.parametrize("language", LANGUAGES)
async def test_nothing_scrolls_sideways_on_a_phone(browser: Browser, language: str) -> None:
    for page in PAGES:
        await browser.open(f"{page}?lang={language}", width=360)
        found = await browser.run(WIDER)
        assert found == {"scroll": 0, "offenders": []}, (page, found)
        # With every table open the tables scroll inside themselves.
        await browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert (await browser.run(WIDER))["scroll"] == 0, page


@pytest.mark.parametrize("width", [390, 1000])
async def test_nothing_scrolls_sideways_elsewhere(browser: Browser, width: int) -> None:
    for page in PAGES:
        await browser.open(f"{page}?lang=de", width=width)
        assert await browser.run(WIDER) == {"scroll": 0, "offenders": []}, page


CLASHES = """[...document.querySelectorAll('svg.picture')].flatMap(picture => {
  const frame = picture.getBoundingClientRect(), found = [];
  const labels = [...picture.querySelectorAll('text')].map(e => [e.textContent, e.getBoundingClientRect()]);
  const over = (r, q) => Math.min(r.right, q.right) - Math.max(r.left, q.left) > 1
    && Math.min(r.bottom, q.bottom) - Math.max(r.top, q.top) > 3;
  labels.forEach(([t, r], i) => {
    if (r.left < -0.5 || r.right > frame.right + 1 || r.bottom > frame.bottom + 1) found.push(['outside', t]);
    labels.slice(i + 1).forEach(([u, q]) => { if (over(r, q)) found.push([t, u]); }); });
  return found; })"""


@pytest.mark.parametrize("language", LANGUAGES)
async def test_no_label_of_a_picture_hides_another_on_a_phone(browser: Browser, language: str) -> None:
    for page in (
        *CASES,
        "/operator/stork",
        "/operator/heron",
        "/app/youtube",
        "/cell/heron/youtube/down/hotspot/slowing",
    ):
        await browser.open(f"{page}?lang={language}", width=360)
        assert await browser.run("document.querySelectorAll('svg.picture text').length") > 2, page
        assert await browser.run(CLASHES) == [], page


async def test_the_measure_of_overflow_sees_one(browser: Browser) -> None:
    await browser.open("/about?lang=en", width=360)
    await browser.run("document.querySelector('h1').style.width = '500px'")
    found = await browser.run(WIDER)
    assert found["scroll"] > 0
    assert found["offenders"]


async def test_every_page_loads_without_a_refusal_or_an_error(browser: Browser) -> None:
    for page in PAGES:
        await browser.open(f"{page}?lang=fr")
        logged = [e["params"] for e in browser.events if e["method"] == "Log.entryAdded"]
        # The missing page is asked for on purpose; a refusal by the content policy would be logged beside it.
        assert [e for e in logged if "404" not in e["entry"]["text"]] == []
        hosts = {
            e["params"]["request"]["url"].split("/")[2]
            for e in browser.events
            if e["method"] == "Network.requestWillBeSent"
        }
        assert hosts == {browser.origin.split("/")[2]}
        assert await browser.run("document.cookie") == ""
        assert await browser.run("document.scripts.length") == 0
        assert await browser.run("document.styleSheets.length") == 1
        assert await browser.run("document.documentElement.lang") == "fr"


COLOURS = """(() => { const found = []; const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walk.nextNode();) { const e = node.parentElement;
    if (!node.textContent.trim() || e.closest('details:not([open]) > :not(summary), .skip, title, desc')) continue;
    const style = getComputedStyle(e); const svg = e instanceof SVGElement;
    let ground = null;
    for (let p = e; p && !ground; p = p.parentElement) {
      const c = getComputedStyle(p).backgroundColor; if (c !== 'rgba(0, 0, 0, 0)') ground = c; }
    const words = node.textContent.trim().slice(0, 40);
    found.push([svg ? style.fill : style.color, ground || 'rgb(255, 255, 255)', words]); }
  return found; })()"""


def as_hex(colour: str) -> str:
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour)[:3])


@pytest.mark.parametrize("dark", [False, True])
async def test_all_text_can_be_read(browser: Browser, dark: bool) -> None:
    for page in PAGES:
        await browser.open(f"{page}?lang=en", dark=dark)
        found = await browser.run(COLOURS)
        assert len(found) > 10
        weak = [(words, fore, back) for fore, back, words in found if contrast(as_hex(fore), as_hex(back)) < 4.5]
        assert weak == [], page


async def test_dark_and_light_follow_the_reader(browser: Browser) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    await browser.open("/?lang=en", dark=False)
    light = await browser.run(ground)
    await browser.open("/?lang=en", dark=True)
    assert await browser.run(ground) != light


async def test_each_picture_has_a_title_a_description_and_a_table(browser: Browser) -> None:
    await browser.open("/case/slow000001?lang=en")
    named = await browser.run(
        "[...document.querySelectorAll('svg.picture')].map(s => ['aria-labelledby', 'aria-describedby']"
        ".map(name => document.getElementById(s.getAttribute(name)).textContent))"
    )
    assert len(named) == 3
    assert all(len(title) > 10 and len(description) > 30 for title, description in named)
    assert await browser.run("document.querySelectorAll('figure details table caption').length") == 3
    tree = await browser.call("Accessibility.getFullAXTree")
    images = [n for n in tree["nodes"] if n["role"]["value"] == "image"]
    assert {n["name"]["value"] for n in images} >= {"In 48 of 48 pairs YouTube (video) was slower"}


async def test_everything_is_there_and_tables_open_with_scripts_switched_off(browser: Browser) -> None:
    await browser.call("Emulation.setScriptExecutionDisabled", value=True)
    await browser.open("/case/slow000001?lang=en")
    assert await browser.run("document.querySelector('details table').checkVisibility()") is False
    place = await browser.run(
        "(() => { const s = document.querySelector('summary'); s.scrollIntoView({block: 'center'});"
        " const r = s.getBoundingClientRect(); return [r.left + 10, r.top + r.height / 2] })()"
    )
    for kind in ("mousePressed", "mouseReleased"):
        await browser.call(
            "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", buttons=1, clickCount=1
        )
    assert await browser.run("document.querySelector('details table').checkVisibility()") is True
    assert await browser.run("document.querySelectorAll('svg.picture').length") == 3


async def test_the_keyboard_reaches_the_content_first(browser: Browser) -> None:
    await browser.open("/?lang=en", width=360)
    for kind in ("keyDown", "keyUp"):
        await browser.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    skip = "document.activeElement.className + ' ' + (document.activeElement.getBoundingClientRect().left >= 0)"
    assert await browser.run(skip) == "skip true"
    assert await browser.run("document.querySelector(document.activeElement.getAttribute('href')).tagName") == "MAIN"


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core, which npm brings; skipped where there is no npm or no registry."""
    npm, directory = shutil.which("npm"), tmp_path_factory.mktemp("axe")
    if npm is None:
        pytest.skip("npm is not on this machine (Debian package npm)")
    packed = subprocess.run(
        [npm, "pack", AXE, "--silent"], cwd=directory, capture_output=True, text=True, timeout=60, check=False
    )
    if packed.returncode:
        pytest.skip(f"npm cannot bring {AXE} here: {packed.stderr.strip()[-200:]}")
    with tarfile.open(directory / packed.stdout.split()[-1]) as archive:
        script = archive.extractfile("package/axe.min.js")
        assert script is not None
        return script.read().decode()


RUN_AXE = """axe.run(document, {resultTypes: ['violations']}).then(found => found.violations.map(v =>
  [v.id, v.help, v.nodes.length, v.nodes[0].html.slice(0, 200), v.nodes[0].failureSummary]))"""


@pytest.mark.parametrize(("language", "dark", "width"), [("en", False, 1000), ("nl", True, 390)])
async def test_axe_finds_nothing_to_complain_of(
    browser: Browser, axe: str, language: str, dark: bool, width: int
) -> None:
    for page in PAGES:
        await browser.open(f"{page}?lang={language}", width=width, dark=dark)
        await browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        await browser.call("Runtime.evaluate", expression=axe)
        answer = await browser.call("Runtime.evaluate", expression=RUN_AXE, awaitPromise=True, returnByValue=True)
        assert answer["result"]["value"] == [], page


async def test_axe_sees_what_is_wrong(browser: Browser, axe: str) -> None:
    await browser.open("/?lang=en")
    await browser.run("document.querySelector('main').outerHTML = '<h4>x</h4><img src=a>'")
    await browser.call("Runtime.evaluate", expression=axe)
    answer = await browser.call("Runtime.evaluate", expression=RUN_AXE, awaitPromise=True, returnByValue=True)
    assert {found[0] for found in answer["result"]["value"]} >= {"image-alt"}


SENTENCES = {
    "en": "YouTube (video) is slower by about 62 % (between 55 and 69 %), for 75 % of the probes, since 1 December",
    "nl": "is YouTube (video) ongeveer 62 % trager (tussen 55 en 69 %), bij 75 % van de meetpunten, sinds 1 december",
    "fr": "YouTube (vidéo) est ralenti d’environ 62 % (entre 55 et 69 %), pour 75 % des sondes, depuis le 1er décembre",
    "de": "YouTube (Video) um etwa 62 % langsamer (zwischen 55 und 69 %), bei 75 % der Messpunkte, seit dem 1.",
}


@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_case_says_its_sentence_in_the_readers_language(browser: Browser, language: str) -> None:
    await browser.open(f"/case/slow000001?lang={language}")
    said = await browser.run("document.querySelector('.sentence').innerText")
    assert SENTENCES[language] in re.sub("[\u202f\u00a0]", " ", said)


TARGETS = """[...document.querySelectorAll('a, summary')].filter(e => {
  const inText = e.tagName === 'A' && !e.matches('.links a') && e.closest('p');
  const r = e.getBoundingClientRect();
  return !inText && !e.matches('.skip') && e.checkVisibility() && (r.height < 24 || r.width < 24) })
  .map(e => e.outerHTML.slice(0, 80))"""


async def test_links_are_large_enough_to_be_hit(browser: Browser) -> None:
    for page in PAGES:
        await browser.open(f"{page}?lang=de", width=360)
        assert await browser.run(TARGETS) == [], page
    await browser.run("document.querySelector('nav a').style.cssText = 'font-size: 8px; min-height: 0; padding: 0'")
    assert await browser.run(TARGETS) != []


@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_case_prints_on_two_clean_pages_with_its_address_and_date(browser: Browser, language: str) -> None:
    for page in CASES:
        await browser.open(f"{page}?lang={language}", media="print")
        shown = await browser.run("document.body.innerText")
        assert f"{browser.origin}{page}" in shown
        assert "13" in await browser.run("document.querySelector('footer p').innerText")
        assert await browser.run("document.querySelector('.languages').checkVisibility()") is False
        printed = await browser.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
        pages = re.findall(rb"/Type\s*/Page\b", base64.b64decode(printed["data"]))
        assert len(pages) == 2, page
