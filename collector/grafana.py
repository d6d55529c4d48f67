# SPDX-License-Identifier: EUPL-1.2
"""Talks to Grafana through grafana-api: the one module that uses it (extra `grafana`).

Shows the events of a case's life as annotations, found again by a tag of their own so that telling twice shows
once, and puts a board in its place. grafana-api is no longer maintained; all that is used of it is here.
Spec: spec/series.md, section "Grafana".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import requests
from grafana_api.grafana_api import GrafanaClientError, GrafanaException, GrafanaServerError
from grafana_api.grafana_face import GrafanaFace

from collector.model import CaseView, Interval, OutboxCase
from collector.series import ANNOTATION_TAG
from collector.sinks import Refused, Unreachable

TIMEOUT_S: Final = 10.0
SHOWN: Final = {
    "alerted": "new case",
    "opened": "case opened",
    "ended": "case ended",
    "no_longer_supported": "case no longer supported",
    "supported_again": "case supported again",
    "withdrawn": "case withdrawn",
    "corrected": "case corrected",
}
"""Events that are annotated: those that the judge alerts to, and those that an older program left in the outbox."""
_NEVER: Final = {400, 409, 412, 413, 422}
"""Answers about what was sent. 401, 403 and 404 are about the token and the address, which a person repairs."""
_T = TypeVar("_T")


def annotation_tags(news: OutboxCase) -> list[str]:
    """Tags of an annotation; the last belongs to this one event alone."""
    case, event = news.case, news.event
    key = case.cell.key
    return [
        ANNOTATION_TAG,
        event.what,
        f"case:{case.id}",
        f"operator:{key.operator}",
        f"app:{key.app}",
        f"effect:{key.effect}",
        event_tag(news),
    ]


def event_tag(news: OutboxCase) -> str:
    """What finds the event again. Letters, digits and `-` only: grafana-api writes it into an address as it is."""
    return f"evenlane-{news.case.id}-{news.event.what}-{news.event.at_ms}"


def annotation_text(news: OutboxCase, public_url: str | None) -> str:
    """One sentence and the address of the case. Grafana shows HTML in annotations, so names are escaped."""
    case = news.case
    key = case.cell.key
    said = f"{SHOWN[news.event.what]}: {key.app} at {key.operator}, {key.effect}{_size(case)}."
    if news.event.reason:
        said += f" Reason: {news.event.reason}."
    path = f"/case/{case.id}"
    link = f'<a href="{escape(public_url.rstrip("/") + path)}">{escape(path)}</a>' if public_url else escape(path)
    return f"{escape(said[0].upper() + said[1:])} {link}"


def _size(case: CaseView) -> str:
    cell = case.cell
    if cell.key.effect not in {"slowing", "prioritising"}:
        return "" if cell.share is None else f" in about {_span(cell.share, 100, '%', ' of the pairs')}"
    sign = 1 if cell.key.effect == "slowing" else -1
    more = "more" if sign > 0 else "less"
    found: list[str] = []
    if cell.slowdown is not None:
        found.append(_span(cell.slowdown, 100 * sign, "%"))
    if cell.delay_ms is not None:
        found.append(_span(cell.delay_ms, sign, "ms", f" {more} delay"))
    if cell.loss is not None:
        found.append(_span(cell.loss, 100 * sign, "points", f" {more} loss"))
    return f" by about {'; '.join(found)}" if found else ""


def _span(found: Interval, factor: float, unit: str, of: str = "") -> str:
    low, high = sorted((factor * found.low, factor * found.high))
    return f"{factor * found.estimate:.0f} {unit}{of} (between {low:.0f} and {high:.0f} {unit})"


class Grafana:
    """One Grafana, spoken to with a token that may write annotations and boards."""

    def __init__(self, url: str, token: str, *, public_url: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        parts = urlsplit(url)
        prefix = parts.path.strip("/")
        self._public_url = public_url
        self._face = GrafanaFace(
            auth=token,
            host=parts.netloc,
            protocol=parts.scheme,
            url_path_prefix=f"{prefix}/" if prefix else "",
            timeout=timeout_s,
        )

    def tell(self, news: OutboxCase) -> None:
        """Annotate one event of a case, unless it is there already. Raises Unreachable or Refused."""
        if news.event.what not in SHOWN:
            return
        annotations = self._face.annotations
        if _answered(lambda: annotations.get_annotation(tags=[event_tag(news)], limit=1)):
            return
        text = annotation_text(news, self._public_url)
        tags = annotation_tags(news)
        _answered(lambda: annotations.add_annotation(time_from=news.event.at_ms, tags=tags, text=text))

    def upsert(self, board: Mapping[str, Any], *, folder: str, folder_uid: str) -> str:
        """Put a board into a folder, replacing the one with its uid; gives its address. Raises as `tell`."""
        self._folder(folder, folder_uid)
        wanted = {**board, "id": None}
        wanted.pop("version", None)
        body = {"dashboard": wanted, "folderUid": folder_uid, "overwrite": True, "message": "evenlane dashboards push"}
        answer = _answered(lambda: self._face.dashboard.update_dashboard(body))
        return str(answer.get("url", f"/d/{board['uid']}"))

    def _folder(self, title: str, uid: str) -> None:
        try:
            self._face.folder.get_folder(uid)
        except GrafanaClientError as error:
            if error.status_code != 404:
                raise _failure(error) from None
            _answered(lambda: self._face.folder.create_folder(title, uid))
        except (GrafanaException, requests.RequestException, OSError) as error:
            raise _failure(error) from None

    def close(self) -> None:
        """Let go of the connection."""
        self._face.api.s.close()


def _answered(call: Callable[[], _T]) -> _T:
    try:
        return call()
    except (GrafanaException, requests.RequestException, OSError) as error:
        raise _failure(error) from None


def _failure(error: Exception) -> Unreachable | Refused:
    """What went wrong in one sentence that holds no token."""
    if isinstance(error, GrafanaServerError):
        return Unreachable(f"Grafana answered {error.status_code}")
    if isinstance(error, GrafanaException):
        said = f"Grafana answered {error.status_code}: {str(error.response)[:200]}"
        return Refused(said) if error.status_code in _NEVER else Unreachable(said)
    if isinstance(error, requests.exceptions.JSONDecodeError):
        return Unreachable("what answers at Grafana's address does not speak its API")
    return Unreachable(f"Grafana cannot be reached ({type(error).__name__})")
