# SPDX-License-Identifier: EUPL-1.2
"""From page data to HTML: the templates, the addresses in them, and the security headers that go along.

Pages need no script, set no cookie and load nothing from elsewhere; the policy sent with them enforces it.
Spec: spec/series.md, section "Pages".
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from collector.pages.language import LANGUAGES, NAMES, Language, words

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
STATIC: Final = {"evenlane.css": "text/css", "icon.svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page is: its path without the base, where readers reach it, and in which language it is read."""

    path: str
    origin: str
    """Scheme, host and any path in front of ours, without a slash at the end."""
    language: Language

    @property
    def base(self) -> str:
        """The path in front of ours, where a proxy serves the collector below one: `/lanes`, mostly empty."""
        _, _, rest = self.origin.partition("://")
        _, slash, path = rest.partition("/")
        return (slash + path).rstrip("/")

    def link(self, path: str, language: Language | None = None) -> str:
        """The address of one of our pages in a language, by default the page's own."""
        return f"{self.base}{path}?lang={language or self.language}"

    @property
    def permanent(self) -> str:
        """The whole address of the page, without a language: what is printed and quoted."""
        return f"{self.origin}{quote(self.path, safe='/%')}"


@cache
def environment() -> Environment:
    """The templates; everything put into them is escaped, and a missing value is an error, not a gap."""
    return Environment(
        loader=PackageLoader("collector.pages", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=False,
    )


@cache
def static(name: str) -> bytes:
    """One of the few files that go with the pages."""
    return (resources.files("collector.pages") / "static" / name).read_bytes()


@cache
def style_version() -> str:
    """Changes with the style sheet, so that it may be kept for ever under its address."""
    return hashlib.sha256(static("evenlane.css")).hexdigest()[:12]


def html(template: str, place: Place, *, title: str, description: str, **values: Any) -> str:
    """One page. `values` are what its template names; `w`, `link` and the frame's values are always there."""
    text = environment().get_template(template)
    rendered = text.render(
        w=words(place.language),
        title=title,
        description=description,
        link=place.link,
        in_language=lambda code: place.link(quote(place.path, safe="/%"), code),
        languages=[(code, NAMES[code]) for code in LANGUAGES],
        here=place.path,
        base=place.base,
        origin=place.origin,
        address=place.permanent,
        style=f"{place.base}/static/evenlane.css?v={style_version()}",
        **values,
    )
    return str(Markup(rendered))  # noqa: S704 - the templates escape
