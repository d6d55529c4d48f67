# SPDX-License-Identifier: EUPL-1.2
"""The shell of the pages: reads the store, picks the language, answers with HTML.

Everything that decides what a page says is pure and elsewhere in this room. Spec: spec/series.md, section "Pages".
"""

from __future__ import annotations

from typing import Final, cast, get_args

from aiohttp import web

from analysis.rules import RULES
from collector.api.shape import PAIR_COLUMNS
from collector.keys import CONFIG, STORE, in_thread
from collector.model import CellKey
from collector.pages.apps import app_name
from collector.pages.detail import case_page, cell_page
from collector.pages.language import choose, words
from collector.pages.overview import STATES, chip, overview
from collector.pages.places import PlacePage, app_page, operator_page
from collector.pages.render import HEADERS, STATIC, Place, html, static
from probe.wire.records import Access, Direction, Effect

_DATA: Final = (("/v1/cells", "JSON"), ("/v1/cells?format=csv", "CSV"), ("/v1/cases", "JSON"))
_ADDRESSES: Final = (
    ("/v1/cells", "cells"),
    ("/v1/cases", "cases"),
    ("/v1/cases/{id}", "case"),
    ("/v1/evidence?operator={…}&app={…}&direction={…}&access={…}&effect={…}", "evidence"),
    ("/v1/operators", "operators"),
)
_STEPS: Final = ("kind", "score", "bets", "mix", "queue", "cell", "leave", "compare")


def setup(app: web.Application) -> None:
    """Add the pages to the collector."""
    app.router.add_get("/", _overview)
    app.router.add_get("/case/{id:[A-Za-z0-9_-]{1,64}}", _case)
    app.router.add_get("/cell/{operator}/{app}/{direction}/{access}/{effect}", _cell)
    app.router.add_get("/operator/{operator}", _operator)
    app.router.add_get("/app/{app}", _app)
    app.router.add_get("/data", _data)
    app.router.add_get("/about", _about)
    app.router.add_get("/glossary", _glossary)
    app.router.add_get("/static/{name}", _static)


def _place(request: web.Request) -> Place:
    public = request.app[CONFIG].public_url
    origin = public or f"{request.scheme}://{request.host}"
    language = choose(request.query.get("lang"), request.headers.get("Accept-Language"))
    return Place(path=request.rel_url.raw_path, origin=origin.rstrip("/"), language=language)


def _answer(place: Place, text: str, status: int = 200) -> web.Response:
    headers = {
        **HEADERS,
        "Content-Language": place.language,
        "Vary": "Accept-Language",
        "Cache-Control": "public, max-age=60" if status == 200 else "no-store",
    }
    return web.Response(text=text, status=status, content_type="text/html", charset="utf-8", headers=headers)


def _missing(place: Place) -> web.Response:
    w = words(place.language)
    title = w("site.not_found_title")
    return _answer(place, html("missing.html", place, title=title, description=w("site.not_found")), status=404)


async def _overview(request: web.Request) -> web.Response:
    place, store = _place(request), request.app[STORE]
    w = words(place.language)
    cells, cases, register = await in_thread(lambda: (store.cells(), store.cases(), store.operators()))
    page = overview(w, cells, cases, register)
    legend = [(chip(w, state), w(f"state_means.{state}")) for state in STATES]
    legend.append((chip(w, "corroborated", ended=True), w("state_means.ended")))
    return _answer(
        place,
        html(
            "overview.html",
            place,
            title=w("overview.title"),
            description=w("site.street"),
            page=page,
            legend=legend,
            data=[(place.base + path, f"{path} ({kind})") for path, kind in _DATA],
            as_of=page.as_of,
        ),
    )


async def _case(request: web.Request) -> web.Response:
    place, store = _place(request), request.app[STORE]
    w, ident = words(place.language), request.match_info["id"]
    detail, register, cases = await in_thread(lambda: (store.case(ident), store.operators(), store.cases()))
    if detail is None:
        return _missing(place)
    page = case_page(w, detail, register, cases)
    address = f"{place.base}/v1/cases/{detail.case.id}"
    data = [(address, w("case.data_json")), (f"{address}?format=csv", w("case.data_csv"))]
    return _answer(
        place,
        html(
            "case.html",
            place,
            title=page.title,
            description=page.sentence,
            page=page,
            data=data,
            data_json=address,
            as_of=page.as_of,
        ),
    )


def _key(request: web.Request) -> CellKey | None:
    """The cell that an address names, None where it can name none. The number of the network is not part of it."""
    part = request.match_info
    direction, access, effect = part["direction"], part["access"], part["effect"]
    if direction not in get_args(Direction) or access not in get_args(Access) or effect not in get_args(Effect):
        return None
    return CellKey(
        operator=part["operator"],
        asn=None,
        app=part["app"],
        direction=cast("Direction", direction),
        access=cast("Access", access),
        effect=cast("Effect", effect),
    )


async def _cell(request: web.Request) -> web.Response:
    place, store = _place(request), request.app[STORE]
    w, key = words(place.language), _key(request)
    if key is None:
        return _missing(place)
    detail, cells, register, cases = await in_thread(
        lambda: (store.evidence(key), store.cells(), store.operators(), store.cases())
    )
    if detail is None:
        return _missing(place)
    page = cell_page(w, detail, cells, register, cases)
    return _answer(
        place,
        html(
            "cell.html",
            place,
            title=page.title,
            description=f"{page.chip.word}: {page.meaning}",
            page=page,
            others_title=w("cell.other", app=app_name(w, key.app)),
            as_of=page.as_of,
        ),
    )


async def _operator(request: web.Request) -> web.Response:
    place, store = _place(request), request.app[STORE]
    w, operator = words(place.language), request.match_info["operator"]
    cells, cases, register = await in_thread(lambda: (store.cells(), store.cases(), store.operators()))
    return _about_place(place, operator_page(w, operator, cells, cases, register))


async def _app(request: web.Request) -> web.Response:
    place, store = _place(request), request.app[STORE]
    w, app = words(place.language), request.match_info["app"]
    cells, cases, register = await in_thread(lambda: (store.cells(), store.cases(), store.operators()))
    return _about_place(place, app_page(w, app, cells, cases, register))


def _about_place(place: Place, page: PlacePage | None) -> web.Response:
    if page is None:
        return _missing(place)
    w = words(place.language)
    description = w("place.description", name=page.title)
    return _answer(
        place, html("place.html", place, title=page.title, description=description, page=page, as_of=page.as_of)
    )


async def _data(request: web.Request) -> web.Response:
    place, store = _place(request), request.app[STORE]
    w = words(place.language)
    cases = await in_thread(store.cases)
    return _answer(
        place,
        html(
            "data.html",
            place,
            title=w("data.title"),
            description=w("data.intro"),
            addresses=_ADDRESSES,
            steps=_STEPS,
            columns=PAIR_COLUMNS,
            rule=RULES.name,
            example=cases[0].id if cases else "ID",
        ),
    )


async def _about(request: web.Request) -> web.Response:
    place = _place(request)
    w = words(place.language)
    return _answer(place, html("about.html", place, title=w("about.title"), description=w("about.claim")))


async def _glossary(request: web.Request) -> web.Response:
    place = _place(request)
    w = words(place.language)
    return _answer(place, html("glossary.html", place, title=w("glossary.title"), description=w("glossary.intro")))


async def _static(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    if name not in STATIC:
        return _missing(_place(request))
    lasting = "public, max-age=31536000, immutable" if "v" in request.query else "public, max-age=3600"
    headers = {**HEADERS, "Cache-Control": lasting}
    return web.Response(body=static(name), content_type=STATIC[name], charset="utf-8", headers=headers)
