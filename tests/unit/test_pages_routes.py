# SPDX-License-Identifier: EUPL-1.2
"""The pages over HTTP: what each says, in which language, with which headers, and what it keeps to itself."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import get_args

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from markupsafe import escape

from analysis.gates import Reason
from analysis.rules import RULES
from collector.api.shape import PAIR_COLUMNS
from collector.config import Config
from collector.keys import CONFIG
from collector.model import Interval, State
from collector.pages.account import FIRST_LINES, LAST_LINES
from collector.pages.apps import app_name
from collector.pages.example import ExampleStore, application, cell, event, world
from collector.pages.language import LANGUAGES, Language, words
from collector.pages.overview import cell_address
from collector.pages.recompute import judged
from collector.pages.sentence import measure
from probe.wire.codec import from_dict
from probe.wire.records import Effect, PairRecord

Client = TestClient[web.Request, web.Application]
Opener = Callable[[web.Application], Awaitable[Client]]
PAGES = (
    "/",
    "/case/slow000001",
    "/case/flap000001",
    "/case/again00001",
    "/case/retro00001",
    "/cell/tern/steam/down/fixed/blocking",
    "/cell/osprey/signal/down/fixed/slowing",
    "/operator/stork",
    "/app/youtube",
    "/data",
    "/glossary",
    "/about",
)


async def text_of(client: Client, path: str, **headers: str) -> str:
    answer = await client.get(path, headers=headers)
    assert answer.status == 200, path
    return re.sub("[\u202f\u00a0]", " ", await answer.text())


class Outline(HTMLParser):
    """Levels of headings, ids, references to them, and links."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: list[int] = []
        self.ids: list[str] = []
        self.named: set[str] = set()
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if values.get("id"):
            self.ids.append(values["id"] or "")
        for name in ("aria-labelledby", "aria-describedby"):
            self.named.update((values.get(name) or "").split())
        if tag == "a" and values.get("href"):
            self.links.append(values["href"] or "")


def outline(text: str) -> Outline:
    found = Outline()
    found.feed(text)
    return found


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("language", LANGUAGES)
async def test_pages_are_well_built(aiohttp_client: Opener, page: str, language: str) -> None:
    client = await aiohttp_client(application(world()))
    text = await text_of(client, f"{page}?lang={language}")
    found = outline(text)
    assert f'<html lang="{language}">' in text
    assert found.levels[0] == 1
    assert found.levels.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(found.levels, found.levels[1:], strict=False)), "no heading level is skipped"
    assert len(set(found.ids)) == len(found.ids)
    assert found.named <= set(found.ids)
    assert {"header", "main", "footer", "nav"} <= set(found.tags)
    assert not {"script", "style", "iframe", "img"} & set(found.tags)
    assert " style=" not in text
    for other in LANGUAGES:
        assert f"lang={other}" in text


@pytest.mark.parametrize("page", PAGES)
async def test_every_link_leads_somewhere(aiohttp_client: Opener, page: str) -> None:
    client = await aiohttp_client(application(world()))
    for link in outline(await text_of(client, page)).links:
        if not link.startswith(("#", "http://data.europa.eu/")):
            assert (await client.get(link)).status == 200, link


async def test_the_policy_allows_our_own_style_and_nothing_else(aiohttp_client: Opener) -> None:
    client = await aiohttp_client(application(world()))
    for page in (*PAGES, "/case/nowhere", "/static/evenlane.css"):
        headers = (await client.get(page)).headers
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; style-src 'self'")
        assert "unsafe" not in policy
        assert "script-src" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Set-Cookie" not in headers


async def test_the_language_comes_from_the_address_before_the_browser(aiohttp_client: Opener) -> None:
    client = await aiohttp_client(application(world()))
    answer = await client.get("/", headers={"Accept-Language": "nl-BE,nl;q=0.9"})
    assert answer.headers["Content-Language"] == "nl"
    assert answer.headers["Vary"] == "Accept-Language"
    answer = await client.get("/?lang=de", headers={"Accept-Language": "nl"})
    assert answer.headers["Content-Language"] == "de"


async def test_the_overview_shows_state_size_interval_and_what_is_not_known(aiohttp_client: Opener) -> None:
    text = await text_of(await aiohttp_client(application(world())), "/?lang=en")
    for said in (
        "9 cases are open:",
        "Heron Telecom",
        "corroborated",
        "62 % slower",
        "(55 to 69 %)",
        "45 % faster",
        "waits 38 ms longer",
        "loses 6.2 percentage points more",
        "altered in 85 %",
        "fails in 89 %",
        "48 pairs, 4 probes",
        "not measured",
        "hotspots using Heron Telecom",
        "YouTube (video) – QUIC",
        "1,890 questions have data by now",
        "6 operators, 10 apps",
        "volunteers are not a random sample",
        "As of 13 December 2026, 13:00 UTC",
        'href="/case/slow000001?lang=en"',
    ):
        assert said in text, said


async def test_names_from_a_register_cannot_become_markup(aiohttp_client: Opener) -> None:
    text = await text_of(await aiohttp_client(application(world())), "/")
    assert "Plover &amp; Zonen &lt;Kabel&gt;" in text
    assert "<Kabel>" not in text


async def test_an_empty_collector_says_what_to_do(aiohttp_client: Opener) -> None:
    client = await aiohttp_client(application(ExampleStore()))
    text = await text_of(client, "/?lang=en")
    assert "Nothing has been measured yet" in text
    assert "evenlane demo" in text
    assert f"--collector http://127.0.0.1:{client.port}" in text
    assert "<table" not in text
    assert "No data yet" in text


async def test_below_three_probes_no_figure_leaves(aiohttp_client: Opener) -> None:
    few = cell("wren", "youtube", "indication", probes=2, pairs=6)
    client = await aiohttp_client(application(ExampleStore(plain=[few])))
    for page in ("/?lang=en", "/cell/wren/youtube/down/fixed/slowing?lang=en"):
        text = await text_of(client, page)
        assert "fewer than 3 probes" in text
        body = text.split("<main")[1].split('id="legend"')[0]
        assert "not enough data" in body
        for figure in ("62 %", "Mbit/s", "3.9", "10.2", "40.0", "indication"):
            assert figure not in body, figure


CASE_ORDER = {
    "en": ("How sure we are", "What else could explain it", "What the regulation calls it", "What the operator answers",
           "The data, and how"),
    "nl": ("Hoe zeker we zijn", "Wat het anders kan verklaren", "Hoe de verordening het noemt",
           "Wat de aanbieder antwoordt", "De gegevens, en hoe"),
    "fr": ("À quel point nous sommes", "Ce qui pourrait l’expliquer", "Comment le règlement", "Ce que répond",
           "Les données, et comment"),
    "de": ("Wie sicher wir sind", "Was es sonst erklären", "Wie die Verordnung", "Was der Anbieter",
           "Die Daten, und wie"),
}  # fmt: skip


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("ident", ["slow000001", "block00001", "fast000001", "ended00001", "weak000001", "flap000001"])
async def test_a_case_tells_its_story_in_order(aiohttp_client: Opener, language: str, ident: str) -> None:
    text = await text_of(await aiohttp_client(application(world())), f"/case/{ident}?lang={language}")
    places = [text.index(heading) for heading in ('class="sentence"', *CASE_ORDER[language])]
    assert places == sorted(places)
    assert f"/v1/cases/{ident}" in text
    assert "2015/2120" in text
    assert text.count('role="img"') == 3
    assert RULES.name in text


async def test_what_is_ruled_out_follows_the_data(aiohttp_client: Opener) -> None:
    store = world()
    detail = store.details[0]
    blind = replace(detail, pairs=tuple(replace(pair, edge=None) for pair in detail.pairs))
    client = await aiohttp_client(application(replace(store, details=[blind, *store.details[1:]])))
    assert "No probe is known to sit at the edge" in await text_of(client, "/case/slow000001?lang=en")
    assert "with no router before them: 1 of 4 probes." in await text_of(client, "/case/block00001?lang=en")


async def test_ended_cases_keep_their_page_and_say_so(aiohttp_client: Opener) -> None:
    client = await aiohttp_client(application(world()))
    assert "This ended on 13 December 2026." in await text_of(client, "/case/ended00001?lang=en")
    assert "no longer supports this case" in await text_of(client, "/case/weak000001?lang=en")


async def test_a_cell_points_to_its_case_and_its_other_questions(aiohttp_client: Opener) -> None:
    client = await aiohttp_client(application(world()))
    text = await text_of(client, "/cell/heron/youtube/down/fixed/slowing?lang=en")
    assert "/case/slow000001?lang=en" in text
    assert "/cell/heron/youtube/down/fixed/blocking?lang=en" in text
    other = await text_of(client, "/cell/osprey/signal/down/fixed/slowing?lang=en")
    assert "without the two strongest networks too little evidence remains" in other


async def test_the_example_shows_every_check_that_holds_a_case_back_in_words(aiohttp_client: Opener) -> None:
    notes = {"lost_unknown", "time_zone_unknown", "effect_among_slowed"}
    elsewhere = {"both_segments_fail", "nothing_arrived", "busy_lines"}
    shown = {reason for of in world().cells() for reason in of.reasons}
    assert set(get_args(Reason)) - notes - elsewhere <= shown
    client = await aiohttp_client(application(world()))
    for of in world().cells():
        for language in LANGUAGES:
            text = await text_of(client, f"{cell_address(of.key)}?lang={language}")
            told = text.split("<body>")[1]
            assert [code for code in get_args(Reason) if "_" in code and code in told] == []
            if of.probes < 3:
                continue
            for reason in of.reasons:
                assert escape(re.sub("[\u202f\u00a0]", " ", words(language)(f"reason.{reason}"))) in told, (
                    reason,
                    language,
                )


async def test_the_example_holds_a_case_of_each_kind(aiohttp_client: Opener) -> None:
    cases = world().cases()
    assert {case.cell.key.effect for case in cases if case.supported} == set(get_args(Effect))
    assert {measure(case.cell) for case in cases} == {"rate", "delay", "loss"}
    assert {case.status for case in cases} >= {"open", "ended"}
    assert max(case.episode for case in cases) == 2
    assert sum(case.retrospective for case in cases) == 1
    # What stands on the pages of an open case is what its pairs say, and enough for its bar.
    client = await aiohttp_client(application(world()))
    for case in cases:
        row = json.loads(await text_of(client, f"/v1/cases/{case.id}"))
        found = judged((await world_pairs(client, case.id)), case.cell.key.effect)
        assert found.whole / math.log(10) == pytest.approx(row["cell"]["log10_e"], abs=1e-6)
        if case.status == "open" and case.supported:
            assert found.without_one / math.log(10) >= row["threshold_log10_e"], case.id
            assert row["cell"]["log10_e_without_two"] > math.log10(20)


async def world_pairs(client: Client, ident: str) -> list[PairRecord]:
    return [from_dict(PairRecord, pair) for pair in json.loads(await text_of(client, f"/v1/cases/{ident}"))["pairs"]]


async def test_a_case_that_came_back_is_another_and_both_say_so(aiohttp_client: Opener) -> None:
    client = await aiohttp_client(application(world()))
    again = await text_of(client, "/case/again00001?lang=en")
    assert "This is case number 2 of the same question" in again
    assert '<a href="/case/first00001?lang=en">Case first00001, opened on 23 November 2026: ended</a>' in again
    first = await text_of(client, "/case/first00001?lang=en")
    assert "/case/again00001?lang=en" in first
    assert "This ended on 24 November 2026." in first
    assert "This is case number" not in first
    now = await text_of(client, "/cell/osprey/zoom/down/fixed/slowing?lang=en")
    assert "This cell is a case" in now
    assert "/case/first00001?lang=en" in now
    # A cell whose only case has ended is no case any more.
    over = await text_of(client, "/cell/osprey/youtube/down/fixed/slowing?lang=en")
    assert "This cell is a case" not in over
    assert "Case ended00001, opened on 8 December 2026: ended" in over
    assert "Other cases of the same question" not in await text_of(client, "/case/slow000001?lang=en")


async def test_a_case_that_older_data_opened_says_so_wherever_its_sentence_stands(aiohttp_client: Opener) -> None:
    client = await aiohttp_client(application(world()))
    page = await text_of(client, "/case/retro00001?lang=en")
    assert page.index("is retrospective.") < page.index("The two lanes")
    assert "Judged by rule 1 until 22 November 2026: replicated, 60 % slower (50 to 70 %)." in page
    assert f"All was decided by rule 2 (<code>{RULES.name}</code>)." in page
    for path in ("/", "/operator/heron", "/app/bittorrent%2Budp"):
        assert (await text_of(client, f"{path}?lang=en")).count("Retrospective: data older than the rule") == 1, path


@pytest.mark.parametrize("language", LANGUAGES)
async def test_failed_pairs_are_told_by_the_coin(aiohttp_client: Opener, language: Language) -> None:
    client = await aiohttp_client(application(world()))
    w = words(language)
    counts = {"a": 1, "of_a": 27, "b": 0, "of_b": 21, "k": 1, "n": 48, "app": app_name(w, "signal")}
    said = re.sub("[\u202f\u00a0]", " ", w("cell.by_coin", **counts))
    cell_text = await text_of(client, f"/cell/heron/signal/down/fixed/blocking?lang={language}")
    assert said in cell_text
    assert re.sub("[\u202f\u00a0]", " ", w("cell.by_coin_note")) in cell_text
    assert said in await text_of(client, f"/case/block00001?lang={language}")
    assert said not in await text_of(client, f"/case/slow000001?lang={language}")


async def test_an_operator_with_any_name_has_a_page(aiohttp_client: Opener) -> None:
    strange = cell("A/B & Söhne 100%?#", "youtube", "no_indication")
    client = await aiohttp_client(application(ExampleStore(plain=[strange])))
    links = [link for link in outline(await text_of(client, "/")).links if "/cell/" in link]
    assert links
    for link in links:
        assert "A/B &amp; Söhne 100%?#" in await text_of(client, link)


@pytest.mark.parametrize(
    "path",
    [
        "/case/nowhere",
        "/cell/heron/youtube/sideways/fixed/slowing",
        "/cell/nobody/youtube/down/fixed/slowing",
        "/static/secret",
        "/static/..%2froutes.py",
    ],
)
async def test_what_is_not_there_is_said_kindly(aiohttp_client: Opener, path: str) -> None:
    answer = await (await aiohttp_client(application(world()))).get(path + "?lang=fr")
    assert answer.status == 404
    assert "Cette page n’existe pas" in await answer.text()
    assert answer.headers["Cache-Control"] == "no-store"


async def test_an_address_cannot_smuggle_markup_into_a_page(aiohttp_client: Opener) -> None:
    client = await aiohttp_client(application(world()))
    answer = await client.get('/cell/%3Cscript%3E/youtube/down/fixed/slowing?lang="><script>')
    assert "<script" not in await answer.text()


async def test_behind_a_proxy_addresses_are_those_of_readers(aiohttp_client: Opener) -> None:
    app = application(world())
    app[CONFIG] = Config(public_url="https://example.net/lanes")
    text = await text_of(await aiohttp_client(app), "/case/slow000001?lang=en")
    assert "https://example.net/lanes/case/slow000001" in text
    assert 'href="/lanes/?lang=en"' in text
    assert 'href="/lanes/static/evenlane.css?v=' in text
    assert 'href="/lanes/v1/cases/slow000001" data-address="https://example.net/lanes/v1/cases/slow000001"' in text


async def test_the_style_may_be_kept_for_ever_under_its_version(aiohttp_client: Opener) -> None:
    client = await aiohttp_client(application(world()))
    found = re.search(r'href="(/static/evenlane\.css\?v=[0-9a-f]+)"', await text_of(client, "/"))
    assert found is not None
    assert "immutable" in (await client.get(found[1])).headers["Cache-Control"]
    assert (await client.get(found[1])).content_type == "text/css"
    assert (await client.get("/static/icon.svg")).content_type == "image/svg+xml"


async def test_the_glossary_explains_the_words_used(aiohttp_client: Opener) -> None:
    client = await aiohttp_client(application(world()))
    for language in LANGUAGES:
        text = await text_of(client, f"/glossary?lang={language}")
        for anchor in ("asn", "sni", "policer", "shaper", "pair", "cell", "evalue", "network", "budget"):
            assert f'id="{anchor}"' in text


async def test_a_case_that_went_to_and_fro_is_summed_up_before_its_lines(aiohttp_client: Opener) -> None:
    text = await text_of(await aiohttp_client(application(world())), "/case/flap000001?lang=en")
    history = text.split('id="history"')[1]
    assert "it fell below 2 times. Since 12 December 2026 it has supported this case again." in history
    assert history.index("it fell below") < history.index("<table")
    assert history.count("no longer supported") == 2
    assert history.count("the evidence is below the threshold of a case") == 2
    assert history.count(RULES.name) == 1, "one rule for all lines is said once"


async def test_a_long_history_shows_its_ends_and_says_what_it_leaves_out(aiohttp_client: Opener) -> None:
    store = world()
    first = store.details[0]
    falls = [event("no_longer_supported" if i % 2 else "supported_again", 90 - i, 4.0) for i in range(40)]
    long = replace(first.case, history=(*first.case.history, *falls, replace(falls[0], rule="evenlane-pairs@2:0")))
    client = await aiohttp_client(application(ExampleStore(details=[replace(first, case=long)])))
    history = (await text_of(client, "/case/slow000001?lang=en")).split('id="history"')[1]
    assert "35 lines between these are in the data." in history
    assert history.count('<th scope="row">') == FIRST_LINES + LAST_LINES
    assert "evenlane-pairs@2:0" in history
    assert "it fell below 20 times" in history


async def test_how_sure_we_are_speaks_of_what_is_decided_on(aiohttp_client: Opener) -> None:
    store = world()
    client = await aiohttp_client(application(store))
    case = store.details[0].case
    one, whole = (words("en").evidence(e or 0) for e in (case.cell.log10_e_without_one, case.cell.log10_e))
    assert one != whole
    text = await text_of(client, "/case/slow000001?lang=en")
    assert f"at most one of {one} such cells" in text
    assert f"with all networks it is {whole}" in text
    assert "1,890 questions had data when this case was last judged" in text
    assert "It passed every check" in text
    gone = await text_of(client, "/case/weak000001?lang=en")
    assert "It passed every check" not in gone
    assert "such cells, however" not in gone.split("between")[0], "weak evidence is no one-in-a-number"


async def test_old_cases_without_the_strength_decided_on_are_weighed_from_their_pairs(aiohttp_client: Opener) -> None:
    first = world().details[0]
    old = replace(first.case, cell=replace(first.case.cell, log10_e_without_one=None))
    client = await aiohttp_client(application(ExampleStore(details=[replace(first, case=old)])))
    one = words("en").evidence(first.case.cell.log10_e_without_one or 0)
    assert f"at most one of {one} such cells" in await text_of(client, "/case/slow000001?lang=en")


async def test_a_placebo_alarm_is_not_told_as_a_check_that_was_passed(aiohttp_client: Opener) -> None:
    weak = world().details[4]
    alarmed = replace(weak.case, cell=replace(weak.case.cell, reasons=("placebo_alarm",)))
    client = await aiohttp_client(application(ExampleStore(details=[replace(weak, case=alarmed)])))
    text = await text_of(client, "/case/weak000001?lang=en")
    assert "they differ as well: the measurement itself is in doubt" in text
    assert "raise no alarm" not in text
    about_us = text.split("Our own programs treat the names differently")[1].split("</div>")[0]
    assert "not ruled out." in about_us


async def test_operators_and_apps_have_pages_without_a_ranking(aiohttp_client: Opener) -> None:
    client = await aiohttp_client(application(world()))
    text = await text_of(client, "/operator/heron?lang=en")
    assert text.index("Netflix (video)</h3>") < text.index("Signal (calls and messages)</h3>")
    assert "this is no ranking" in text
    assert "62 % slower" in text
    assert "hotspots" not in text.split("<h1>")[1].split("</h1>")[0]
    app = await text_of(client, "/app/youtube?lang=en")
    assert app.index("Heron Telecom</h3>") < app.index("hotspots using Heron Telecom</h3>") < app.index("wren</h3>")
    assert "Earlier cases" in app
    assert "This ended on 13 December 2026." in app
    picture = app.split('id="sizes-title"')[0].split("<h2")[-1] + app.split('id="sizes-desc"')[1].split("</svg>")[0]
    assert picture.count("<circle") == picture.count('class="interval"') == 4, "no size without its interval"
    for path in ("/operator/nobody", "/app/nothing", "/operator/%3Cscript%3E"):
        assert (await client.get(path)).status == 404
        assert "<script" not in await (await client.get(path)).text()


@pytest.mark.parametrize(
    ("low", "state", "said"), [(0.1, "indication", 1), (0.3, "indication", 0), (0.1, "inconclusive", 0)]
)
async def test_a_claim_that_may_be_too_small_for_one_says_so(
    aiohttp_client: Opener, low: float, state: State, said: int
) -> None:
    of = cell("heron", "youtube", state, slowdown=Interval(estimate=0.35, low=low, high=0.5))
    client = await aiohttp_client(application(ExampleStore(plain=[of])))
    text = await text_of(client, "/cell/heron/youtube/down/fixed/slowing?lang=en")
    assert text.count("differences so small that nothing is promised about them") == said


async def test_two_sizes_of_one_name_are_told_apart_in_the_picture(aiohttp_client: Opener) -> None:
    text = await text_of(await aiohttp_client(application(world())), "/operator/heron?lang=en")
    picture = text.split('id="sizes-desc"')[1].split("</svg>")[0]
    for label in ("≠ YouTube · fixed line", "≠ YouTube · public Wi-Fi", "= Zoom (meeting set-up)"):
        assert f">{label}</text>" in picture


async def test_the_data_page_explains_every_column_and_names_a_case(aiohttp_client: Opener) -> None:
    client = await aiohttp_client(application(world()))
    text = await text_of(client, "/data?lang=en")
    for column in PAIR_COLUMNS:
        assert f"<code>{column}</code>" in text
    assert f"http://127.0.0.1:{client.port}/v1/cases/slow000001?format=csv" in text
    assert RULES.name in text
    for path in re.findall(r'href="(/v1/[a-z]+)"', text):
        assert path in {"/v1/cells", "/v1/cases", "/v1/operators"}
    nothing = await aiohttp_client(application(ExampleStore()))
    assert "/v1/cases/ID?format=csv" in await text_of(nothing, "/data?lang=en")


@pytest.mark.parametrize("language", LANGUAGES)
async def test_the_regulation_is_quoted_with_the_exceptions_and_its_source(
    aiohttp_client: Opener, language: str
) -> None:
    text = await text_of(await aiohttp_client(application(world())), f"/case/block00001?lang={language}")
    quote = re.search(r"<blockquote[^>]*><p>(.*?)</p></blockquote>", text)
    assert quote is not None
    assert re.search(r"<strong>(block|blokkeren|bloquer|blockieren)</strong>", quote[1])
    assert re.search(r"as necessary|dit nodig is|si nécessaire|soweit und solange", quote[1])
    assert "http://data.europa.eu/eli/reg/2015/2120/oj" in text
