# SPDX-License-Identifier: EUPL-1.2
"""grafana.py against a local server that answers in the shape of Grafana's HTTP API as documented and recorded.

No Grafana runs here: these tests prove what we send and how we take each answer, not what a Grafana does with it.
Shapes: annotations, folders and dashboards of Grafana 11's HTTP API.
"""

from __future__ import annotations

import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from collector.grafana import SHOWN, Grafana, annotation_text, event_tag
from collector.model import OutboxCase
from collector.pages.example import NOW_MS, blocked, case, cell, event
from collector.series import ANNOTATION_TAG
from collector.sinks import Refused, Unreachable
from dashboards.build import boards
from dashboards.push import push
from evenlane.cli import main

TOKEN = "glsa_not-a-real-token"


@dataclass
class Recorded:
    """The state of a pretended Grafana, and what it was asked."""

    url: str = ""
    annotations: list[dict[str, Any]] = field(default_factory=list)
    folders: dict[str, str] = field(default_factory=dict)
    dashboards: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    answer: tuple[int, Any] | None = None
    """Given to every request instead of its own answer."""


def answer_of(grafana: Recorded, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
    if path == "/api/annotations" and method == "GET":
        wanted = set(query.get("tags", []))
        return 200, [a for a in grafana.annotations if wanted <= set(a["tags"])][: int(query["limit"][0])]
    if path == "/api/annotations" and method == "POST":
        grafana.annotations.append({**body, "id": len(grafana.annotations) + 1})
        return 200, {"message": "Annotation added", "id": len(grafana.annotations)}
    if path.startswith("/api/folders/") and method == "GET":
        uid = path.rsplit("/", 1)[1]
        if uid not in grafana.folders:
            return 404, {"message": "folder not found", "status": "not-found"}
        return 200, {"uid": uid, "title": grafana.folders[uid]}
    if path == "/api/folders" and method == "POST":
        grafana.folders[body["uid"]] = body["title"]
        return 200, {"id": 1, **body}
    if path == "/api/dashboards/db" and method == "POST":
        if body["folderUid"] not in grafana.folders:
            return 400, {"message": "folder not found"}
        uid = body["dashboard"]["uid"]
        grafana.dashboards[uid] = body
        return 200, {"id": 7, "uid": uid, "url": f"/d/{uid}/board", "status": "success", "version": 1}
    return 404, {"message": "Not found"}


@pytest.fixture
def grafana() -> Iterator[Recorded]:
    found = Recorded()

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            parts = urllib.parse.urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            found.asked.append((self.command, self.path))
            status, answer = found.answer or (
                (401, {"message": "Invalid API key"})
                if self.headers["Authorization"] != f"Bearer {TOKEN}"
                else answer_of(
                    found,
                    self.command,
                    parts.path.removeprefix("/behind"),
                    urllib.parse.parse_qs(parts.query),
                    json.loads(body) if body not in {b"", b"null"} else None,
                )
            )
            text = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = handle_any  # noqa: N815 - the standard library's names

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def news(what: str = "opened", of: Any = None, **changes: Any) -> OutboxCase:
    shown = case("5f00aa", of or cell("heron", "youtube", "corroborated"))
    return OutboxCase(case=shown, event=replace(event(what, 0, 7.4), **changes))


def test_recorded_api_shape_start_and_end_of_a_case_become_annotations(grafana: Recorded) -> None:
    board = Grafana(grafana.url, TOKEN, public_url="https://lanes.example")
    board.tell(news("opened"))
    board.tell(news("ended", at_ms=NOW_MS + 5))
    board.close()
    first, second = grafana.annotations
    assert (first["time"], second["time"]) == (NOW_MS, NOW_MS + 5)
    assert {ANNOTATION_TAG, "opened", "case:5f00aa", "operator:heron", "app:youtube", "effect:slowing"} < set(
        first["tags"]
    )
    assert first["text"] == (
        "Case opened: youtube at heron, slowing by about 62 % (between 55 and 69 %). "
        '<a href="https://lanes.example/case/5f00aa">/case/5f00aa</a>'
    )
    assert second["text"].startswith("Case ended")


def test_recorded_api_shape_telling_twice_shows_once(grafana: Recorded) -> None:
    for _ in range(3):
        board = Grafana(grafana.url, TOKEN)
        board.tell(news())
        board.close()
    assert len(grafana.annotations) == 1
    board = Grafana(grafana.url, TOKEN)
    board.tell(news(at_ms=NOW_MS + 1))
    board.close()
    assert len(grafana.annotations) == 2, "another event of the same case is another annotation"


def test_recorded_api_shape_a_mere_change_is_not_annotated(grafana: Recorded) -> None:
    board = Grafana(grafana.url, TOKEN)
    board.tell(news("changed"))
    board.close()
    assert grafana.asked == []


def test_recorded_api_shape_below_a_path(grafana: Recorded) -> None:
    board = Grafana(grafana.url + "/behind/", TOKEN)
    board.tell(news())
    board.close()
    assert len(grafana.annotations) == 1
    assert grafana.asked[0][1].startswith("/behind/api/annotations?")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((400, {"message": "bad"}), Refused),
        ((422, {"message": "bad"}), Refused),
        ((401, {"message": "Invalid API key"}), Unreachable),
        ((403, {"message": "denied"}), Unreachable),
        ((404, {"message": "Not found"}), Unreachable),
        ((500, {"message": "oh"}), Unreachable),
        ((502, "<html>bad gateway</html>"), Unreachable),
        ((200, "<html>welcome</html>"), Unreachable),
    ],
)
def test_recorded_api_shape_every_answer_is_told_apart(
    grafana: Recorded, answer: tuple[int, Any], kind: type[Exception]
) -> None:
    grafana.answer = answer
    board = Grafana(grafana.url, TOKEN)
    with pytest.raises(kind) as caught:
        board.tell(news())
    board.close()
    assert TOKEN not in str(caught.value)


def test_nobody_there_is_unreachable(grafana: Recorded) -> None:
    board = Grafana("http://127.0.0.1:9", TOKEN, timeout_s=0.5)
    with pytest.raises(Unreachable, match="cannot be reached"):
        board.tell(news())
    with pytest.raises(Unreachable):
        board.upsert({"uid": "x"}, folder="f", folder_uid="f")
    board.close()


def test_recorded_api_shape_boards_are_pushed_into_their_folder_and_replaced(grafana: Recorded) -> None:
    for _ in range(2):
        assert push(grafana.url, TOKEN) == [f"{grafana.url}/d/evenlane-overview/board"]
    assert grafana.folders == {"evenlane": "evenlane"}
    sent = grafana.dashboards["evenlane-overview"]
    assert sent["overwrite"] is True
    assert sent["dashboard"]["id"] is None
    assert "version" not in sent["dashboard"], "a version would be refused as a conflict once somebody saved the board"
    assert sent["dashboard"]["panels"] == boards()["overview"]["panels"]
    assert sum(path == "/api/folders" for _, path in grafana.asked) == 1


def test_recorded_api_shape_the_command_pushes(
    grafana: Recorded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVENLANE_GRAFANA_TOKEN", TOKEN)
    assert main(["dashboards", "push", "--url", grafana.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"boards": [f"{grafana.url}/d/evenlane-overview/board"]}
    grafana.answer = (403, {"message": "denied"})
    assert main(["dashboards", "push", "--url", grafana.url]) == 3
    said = capsys.readouterr().err
    assert "were not pushed" in said
    assert TOKEN not in said


def test_an_annotation_cannot_carry_markup_of_others() -> None:
    nasty = cell("<b>Evil & Co</b>", "youtube", "corroborated")
    text = annotation_text(news(of=nasty, reason="<i>x</i>"), 'https://a.example/"><script>')
    assert "<b>" not in text
    assert "<i>" not in text
    assert "<script" not in text
    assert "&lt;b&gt;Evil &amp; Co&lt;/b&gt;" in text


def test_the_tag_of_an_event_needs_no_quoting_in_an_address() -> None:
    tag = event_tag(news())
    assert urllib.parse.quote(tag, safe="") == tag


@pytest.mark.parametrize("what", SHOWN)
def test_blocking_is_told_without_a_speed(what: str) -> None:
    text = annotation_text(news(what, blocked("heron", "signal")), None)
    assert "blocking in about 89 % of the pairs (between 65 and 98 %)." in text
    text = annotation_text(news(what, blocked("heron", "signal", share=None)), None)
    assert "blocking." in text
    assert "%" not in text
    assert text.endswith("/case/5f00aa")
