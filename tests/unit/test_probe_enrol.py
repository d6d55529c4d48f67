# SPDX-License-Identifier: EUPL-1.2
"""Joining and leaving among collectors that say anything, and the texts that a volunteer reads."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.about import About, check_about, check_taken, read_about
from probe.ask import Answer, ask, read_answer, words
from probe.consent import LANGUAGES, VERSION, amount, consent_text, language_of
from probe.consent.strings import NO, YES, say, sentences
from probe.enrol import (
    EnrolError,
    Joined,
    check_free,
    enrolled,
    erase,
    is_leaving,
    join,
    leave,
    plan_file,
    record_of,
    renew_plan,
)
from probe.netio.control import parse_url
from probe.plan import fetch
from probe.settings import Settings
from probe.state import State, StateError
from probe.wire.envelope import from_json, open_record, seal, to_json
from probe.wire.records import Enrolment, Leave, Plan, Software
from probe.wire.signing import SeedSigner

COLLECTOR = SeedSigner(b"\x0c" * 32)
NOW = 1_790_000_000_000
ABOUT = About(name="Net", contact="mail@net.example", key=COLLECTOR.key_id, consent=VERSION, time_ms=NOW)
TOLD = {"v": 1, "name": "Net", "contact": "c", "key": COLLECTOR.key_id, "consent": VERSION, "time_ms": NOW}


def told_plan(version: int = 3) -> dict[str, Any]:
    made = Plan(
        type="plan",
        v=1,
        version=version,
        issued_ms=NOW,
        expires_ms=NOW + 86_400_000,
        reflectors=(),
        nettests=(),
        weights=(),
    )
    return {"envelope": to_json(seal(made, COLLECTOR))}


# -- a collector that may say anything --------------------------------------------------------------------------


class Door:
    """A mock, because a real collector never lies: answers each request on a real socket with what it is told."""

    def __init__(self, answers: Callable[[str, bytes], bytes], pause_s: float = 0.0) -> None:
        self._answers, self._pause_s = answers, pause_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.seen: list[tuple[str, Any]] = []
        self._closing = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._closing:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock:
                try:
                    self._one(sock)
                except OSError:
                    continue

    def _one(self, sock: socket.socket) -> None:
        raw = b""
        while b"\r\n\r\n" not in raw:
            chunk = sock.recv(65_536)
            if not chunk:
                return
            raw += chunk
        head, _, body = raw.partition(b"\r\n\r\n")
        length = re.search(rb"Content-Length: ([0-9]+)", head)
        while len(body) < int(length[1] if length else 0):
            body += sock.recv(65_536)
        path = head.split()[1].decode()
        self.seen.append((path, json.loads(body) if body else None))
        answer = self._answers(path, head)
        if not self._pause_s:
            sock.sendall(answer)
            return
        for at in range(len(answer)):
            sock.sendall(answer[at : at + 1])
            time.sleep(self._pause_s)

    def close(self) -> None:
        self._closing = True
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept
        self._listener.close()
        self._thread.join(5)


def http(status: int, document: Any, **headers: str) -> bytes:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@contextmanager
def door(answers: Callable[[str, bytes], bytes], pause_s: float = 0.0) -> Iterator[Door]:
    running = Door(answers, pause_s)
    try:
        yield running
    finally:
        running.close()


def usual(path: str, _: bytes) -> bytes:
    if path.startswith("/v1/plan"):
        return http(200, told_plan())
    return http(200, {"status": "left"}) if path == "/v1/leave" else http(201, {"status": "enrolled", "vetted": True})


def joined(state: State, url: str, settings: Settings | None = None, **changes: Any) -> Joined:
    options: dict[str, Any] = {"language": "nl", "token": None, "software": Software(version="1"), "now_ms": NOW}
    return join(state, url, ABOUT, settings or Settings(), **options | changes)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n",
        b"X: " + b"y" * 100_000,
        http(200, b"\xff\xfe"),
        http(200, b"[" * 5000),
        http(200, [1, 2]),
        http(200, {"status": ["enrolled"]}),
        http(200, {"status": "left"}),
        http(302, b"", Location="https://elsewhere.example/"),
        http(304, b""),
        http(400, {"error": "x" * 5000, "detail": 7}),
        http(403, {"error": "bad_token", "detail": "\x1b[2J at 192.0.2.1 " * 99}),
        http(503, b"", **{"Retry-After": "60"}),
    ],
)
def test_whatever_a_collector_says_is_one_sentence(tmp_path: Path, answer: bytes) -> None:
    state = State(tmp_path / "state")
    with door(lambda *_: answer) as hostile:
        with pytest.raises(EnrolError) as refused:
            joined(state, hostile.url)
        assert enrolled(state) is None
        url = parse_url(hostile.url, schemes=("http",))
        found = fetch(url, probe="p", collector_key=COLLECTOR.key_id, now_ms=NOW)
        assert found.status in {"failed", "refused"}
    for sentence in (str(refused.value), found.detail):
        assert sentence.isprintable()
        assert "192.0.2.1" not in sentence
        assert 0 < len(sentence) < 400


@pytest.mark.parametrize(
    ("status", "error", "sentence"),
    [
        (403, "bad_token", "the collector does not take this token (used up); nothing was joined"),
        (403, "token_required", "the collector takes only volunteers with a token: ask its people for one"),
        (409, "old_consent", f"the collector asks for a newer consent text than that of {VERSION}: update evenlane"),
        (400, "wrong_collector", "the collector refuses (wrong_collector): used up"),
        (503, "busy", "the collector asks to come back later (503 busy); nothing was joined, so try again later"),
    ],
)
def test_a_refusal_says_what_to_do(tmp_path: Path, status: int, error: str, sentence: str) -> None:
    answer = http(status, {"error": error, "detail": "used up"})
    with door(lambda *_: answer) as running, pytest.raises(EnrolError) as refused:
        joined(State(tmp_path / "state"), running.url)
    assert str(refused.value).startswith(sentence)


def test_an_answer_that_drips_is_given_up_in_time() -> None:
    with door(usual, pause_s=0.05) as slow:
        start = time.monotonic()
        answer = ask(parse_url(slow.url, schemes=("http",)), "/v1/about", timeout_s=0.4)
        assert (answer.failure, answer.status) == ("out_of_time", 0)
        assert time.monotonic() - start < 8


def test_a_plan_that_is_too_large_is_not_read() -> None:
    with door(lambda *_: http(200, b" " * (2 * 1024 * 1024 + 2000))) as large:
        url = parse_url(large.url, schemes=("http",))
        found = fetch(url, probe="p", collector_key=COLLECTOR.key_id, now_ms=NOW)
    assert (found.status, found.failure) == ("failed", "http_error")
    assert "too large" in found.detail


def test_the_known_plan_is_named_and_nothing_is_written_where_it_is_the_newest(tmp_path: Path) -> None:
    asked: list[bytes] = []

    def answers(path: str, head: bytes) -> bytes:
        asked.append(head)
        return http(304, b"") if b"If-None-Match" in head else usual(path, head)

    state = State(tmp_path / "state")
    with door(answers) as running:
        kept = joined(state, running.url).enrolled
        written = plan_file(state).stat().st_mtime_ns
        again = renew_plan(state, kept, probe="p", now_ms=NOW)
    assert again.status == "unchanged"
    assert again.found is not None
    assert f'If-None-Match: "{again.found.digest}"'.encode() in asked[-1]
    assert plan_file(state).stat().st_mtime_ns == written


# -- what is sent and kept --------------------------------------------------------------------------------------


def test_what_is_signed_is_what_was_told(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    told = Settings(
        declared_position="hotspot",
        brand="B",
        tariff="T",
        contract_down_mbps=100.0,
        contract_up_mbps=10.0,
        opt_in_filters=True,
        bind="192.0.2.1",
    )
    with door(usual) as running:
        found = joined(state, running.url, told, token="abc")
        assert (found.status, found.vetted, found.fetched.status) == ("enrolled", True, "new")
        [(path, sent), (asked, _)] = running.seen
    assert (path, asked) == ("/v1/enrol", f"/v1/plan?probe={found.probe}")
    envelope = from_json(sent)
    assert envelope.key_id == found.probe == state.signer().key_id
    assert open_record(envelope) == Enrolment(
        type="enrolment",
        v=1,
        collector=COLLECTOR.key_id,
        at_ms=NOW,
        consent=VERSION,
        language="nl",
        token="abc",
        hotspot=True,
        declared_position="hotspot",
        brand="B",
        tariff="T",
        contract_down_mbps=100.0,
        contract_up_mbps=10.0,
        opt_in_filters=True,
        software=Software(version="1"),
    )
    assert enrolled(state) == found.enrolled
    assert found.enrolled.url.authority == running.url.removeprefix("http://")
    nothing = record_of(Settings(), collector="c", now_ms=1, language="en", token=None, software=Software(version="1"))
    assert (nothing.hotspot, nothing.brand, nothing.opt_in_filters) == (False, None, None)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\xff",
        b"[1]",
        b"x" * 20_000,
        b'{"v":1,"collector":"ftp://a","key":"KEY"}',
        b'{"v":1,"collector":"https://a","key":"' + b"A" * 42 + b'B"}',
    ],
)
def test_a_spoilt_enrolment_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    state = State(tmp_path)
    (tmp_path / "enrolment.json").write_bytes(content.replace(b"KEY", COLLECTOR.key_id.encode()))
    with pytest.raises(EnrolError, match="was spoilt: join again with"):
        enrolled(state)


def test_an_enrolment_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "enrolment.json").mkdir()
    with pytest.raises(EnrolError, match="cannot be read"):
        enrolled(State(tmp_path))


def test_an_enrolment_of_a_later_version_is_still_read(tmp_path: Path) -> None:
    state = State(tmp_path)
    told = {"v": 1, "collector": "https://c.example", "key": COLLECTOR.key_id, "later": {"x": [1]}}
    (tmp_path / "enrolment.json").write_text(json.dumps(told))
    found = enrolled(state)
    assert found is not None
    assert (found.collector, found.language) == ("https://c.example", "en")


@pytest.mark.parametrize(
    ("changes", "words_"),
    [
        ({"key": "A" * 42 + "B"}, "no collector that this program understands"),
        ({"key": None}, "no collector that this program understands"),
        ({"v": 2}, "no collector that this program understands"),
        ({"consent": "new"}, "no collector that this program understands"),
        ({"time_ms": 5}, "no collector that this program understands"),
        ({"name": 5}, "no collector that this program understands"),
        ({"name": "\x1b[2J"}, "no collector that this program understands"),
    ],
)
def test_about_must_be_understood(changes: dict[str, Any], words_: str) -> None:
    with pytest.raises(EnrolError, match=words_):
        read_about(Answer(status=200, plain=TOLD | changes), "c.example:443")


def test_about_is_made_fit_to_be_shown() -> None:
    told = TOLD | {"name": "N\u202e\u2028 at 192.0.2.1", "contact": "", "enrolment": "token", "more": 1}
    found = read_about(Answer(status=200, plain=told), "c.example:443")
    assert (found.name, found.contact, found.takes) == ("N   at [address]", "c.example:443", "token")
    assert read_about(Answer(status=200, plain=TOLD | {"enrolment": "later"}), "c").takes == "open"
    long = read_about(Answer(status=200, plain=TOLD | {"name": "n" * 200, "contact": "c" * 200}), "c")
    assert (len(long.name), len(long.contact)) == (80, 160)
    with pytest.raises(EnrolError, match="no collector that this program understands"):
        read_about(Answer(status=404, plain=TOLD), "c")
    with pytest.raises(EnrolError, match=r"cannot be reached: check the address c\.example:443 and try again"):
        read_about(Answer(failure="dns_failed", detail="the collector cannot be reached"), "c.example:443")


@pytest.mark.parametrize(
    ("changes", "expected", "words_"),
    [
        ({"consent": "2026-11-24"}, None, "update evenlane"),
        ({"time_ms": NOW + 600_001}, None, "10 minutes apart: set the clock"),
        ({"time_ms": NOW - 2879 * 60_000}, None, "2879 minutes apart"),
        ({"time_ms": NOW - 2 * 86_400_000}, None, "2 days apart: set the clock"),
        ({}, "A" * 43, "not the collector that you named"),
    ],
)
def test_who_cannot_be_joined(changes: dict[str, Any], expected: str | None, words_: str) -> None:
    found = read_about(Answer(status=200, plain=TOLD | changes), "c")
    with pytest.raises(EnrolError, match=words_):
        check_about(found, expected_key=expected, now_ms=NOW)
    fine = read_about(Answer(status=200, plain=TOLD | {"consent": "2026-11-22", "time_ms": NOW + 600_000}), "c")
    check_about(fine, expected_key=COLLECTOR.key_id, now_ms=NOW)


def test_whom_a_collector_takes() -> None:
    told = TOLD | {"enrolment": "closed"}
    closed = read_about(Answer(status=200, plain=told), "c")
    invited = read_about(Answer(status=200, plain=TOLD | {"enrolment": "token"}), "c")
    check_taken(closed, is_known=True, token=None)
    check_taken(invited, is_known=False, token="abc")
    check_taken(ABOUT, is_known=False, token=None)
    with pytest.raises(EnrolError, match="takes nobody new at present"):
        check_taken(closed, is_known=False, token="abc")
    with pytest.raises(EnrolError, match="takes only volunteers with a token"):
        check_taken(invited, is_known=False, token=None)


def test_a_collector_whose_key_changed_is_not_followed_silently(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    with door(usual) as running:
        kept = joined(state, running.url).enrolled
        assert check_free(state, ABOUT, running.url) == kept
        assert check_free(state, ABOUT, "https://moved.example") == kept
        changed = read_about(Answer(status=200, plain=TOLD | {"key": SeedSigner(b"\x0d" * 32).key_id}), "c")
        with pytest.raises(EnrolError, match="another key than when this device joined"):
            check_free(state, changed, running.url)
        with pytest.raises(EnrolError, match="leave it first"):
            check_free(state, changed, "https://other.example")


# -- leaving ----------------------------------------------------------------------------------------------------


def test_a_wish_to_leave_outlives_everything_until_it_is_heard(tmp_path: Path) -> None:
    state = State(tmp_path / "state", tmp_path / "run")
    answers = [
        http(503, b"", **{"Retry-After": "60"}),
        http(409, {"error": "wrong_collector"}),
        b"",
        http(200, {"status": "enrolled"}),
        http(201, {"status": "left"}),
    ]
    with door(lambda path, head: answers.pop(0) if path == "/v1/leave" and answers else usual(path, head)) as running:
        kept = joined(state, running.url).enrolled
        (tmp_path / "run" / "spool").mkdir()
        (tmp_path / "run" / "spool" / "000000000001-a.jsonl").write_text("x")
        assert not is_leaving(state)
        first = leave(state, NOW + 5)
        assert (first.status, first.failure, first.retry_after_s) == ("pending", "http_error", 60)
        assert is_leaving(state)
        with pytest.raises(EnrolError, match="has not reached it yet"):
            check_free(state, ABOUT, running.url)
        for _ in range(4):
            waiting = leave(state, NOW + 6)
            assert (waiting.status, bool(waiting.detail)) == ("pending", True)
        assert not answers
        key = state.signer().key_id
        with state.exclusive():
            with pytest.raises(StateError, match="another measurement is running"):
                leave(state, NOW + 8)
            assert is_leaving(state)
            assert leave(state, NOW + 9, has_lock=True).status == "left"
        last = running.seen[-1][1]
    assert from_json(last).key_id == key
    assert open_record(from_json(last)) == Leave(type="leave", v=1, collector=kept.key, at_ms=NOW + 9)
    assert not is_leaving(state)
    assert leave(state, NOW + 10).status == "not_enrolled"
    left = [path.name for folder in (tmp_path / "state", tmp_path / "run") for path in folder.rglob("*")]
    assert left == ["lock"]


def test_a_power_cut_while_erasing_is_made_good(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.prepare()
    state.signer()
    (tmp_path / "leaving.json").write_text("{}")  # the enrolment went first
    assert leave(state, NOW).status == "left"
    assert {path.name for path in tmp_path.iterdir()} == {"lock"}


def test_after_a_reboot_the_directory_of_the_run_may_be_missing(tmp_path: Path) -> None:
    State(tmp_path / "state").signer()
    erase(State(tmp_path / "state", tmp_path / "run"))
    assert not any((tmp_path / "state").iterdir())


def test_a_plan_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    plan_file(state).mkdir(parents=True)  # nothing can be renamed over a directory
    with door(usual) as running, pytest.raises(StateError, match=r"plan\.jsonl cannot be written"):
        joined(state, running.url)


def test_without_its_key_nobody_can_ask(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    with door(usual) as running:
        joined(state, running.url)
        state.key_file.unlink()
        with pytest.raises(EnrolError, match="--here-only"):
            leave(state, NOW)
        assert not state.key_file.exists()


def test_erasing_touches_nothing_that_is_not_ours(tmp_path: Path) -> None:
    state = State(tmp_path / "state", tmp_path / "run")
    state.prepare()
    for half in ("state/key.77.tmp", "state/.plan.jsonl.77.tmp", "run/.turn.json.77.tmp"):
        (tmp_path / half).write_text("ours, cut off by a kill")
    for name in ("state/settings.json", "state/photo.jpg", "run/other", "outside"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "run" / "spool" / "aside").mkdir(parents=True)
    (tmp_path / "run" / "spool" / "aside" / "link").symlink_to(tmp_path / "state")
    (tmp_path / "run" / "spool" / "aside" / "file").symlink_to(tmp_path / "outside")
    erase(state)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir()}
    assert left == {"state/settings.json", "state/photo.jpg", "run/other", "run/lock", "outside"}


# -- texts ------------------------------------------------------------------------------------------------------

TEXTS = {
    "en": "740a511b6d670fef6df6efefd5450530fe76cf61207f8473a7fc6b132d835ded",
    "nl": "b825fd28d3054384679be04f46cef522d3f1a44597a0649ec10e612e8e1bf01e",
    "fr": "c095046ac80be7d96e2360dd2da879f6c3e85dc039c67836f72e7c02cec2624c",
    "de": "d442681ea0d20d809fff15ef0c71551736853c9a3380b432452947a9a2a13e8b",
}
"""SHA-256 of each text of this version: who changes one gives all four a new version (Regulation (EU) 2016/679,
Article 7: what somebody agreed to must be shown later)."""


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_changed_text_needs_a_new_version(language: Any) -> None:
    import probe.consent

    raw = Path(probe.consent.__file__).with_name(f"{language}.txt").read_bytes()
    assert (VERSION, hashlib.sha256(raw).hexdigest()) == ("2026-11-23", TEXTS[language])


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_text_says_what_must_be_said(language: Any) -> None:
    text = consent_text(language, name="Na{contact}me", contact="post@net.example", daily_mb=200, monthly_mb=5000)
    for told in (
        VERSION,
        "Na(contact)me",
        "post@net.example",
        "200\u00a0M",
        "5\u00a0G",
        "evenlane probe leave",
        "13",
        "17",
    ):
        assert told in text, told
    assert re.search(r"6\(1\)\(a\)|6, lid 1, onder a|6, paragraphe 1, point a|6 Absatz 1 Buchstabe a", text)
    assert "{" not in text
    assert 250 <= len(re.findall(r"[\w’-]+", text)) <= 420
    assert len([line for line in text.splitlines() if line.isupper()]) == 7


@pytest.mark.parametrize("key", sorted(sentences()))
def test_every_sentence_exists_in_every_language_with_the_same_places(key: str) -> None:
    found = sentences()[key]
    assert set(found) == set(LANGUAGES)
    places = {name: {field for _, field, _, _ in Formatter().parse(text) if field} for name, text in found.items()}
    assert len({frozenset(one) for one in places.values()}) == 1, places
    filled = dict.fromkeys(places["en"], "x{y}")
    assert all(say(key, language, **filled).isprintable() or "\u00a0" in found[language] for language in LANGUAGES)


def test_yes_is_no_in_no_language() -> None:
    assert not YES & NO
    for language, yes, no in (("en", "yes", "no"), ("nl", "ja", "nee"), ("fr", "oui", "non"), ("de", "ja", "nein")):
        assert f"({yes} " in say("agree", language)  # type: ignore[arg-type]
        assert {yes, yes[0]} <= YES
        assert {no, no[0]} <= NO


@pytest.mark.parametrize(
    ("environ", "language"),
    [
        ({}, "en"),
        ({"LANG": "nl_BE.UTF-8"}, "nl"),
        ({"LANG": "nl_BE.UTF-8", "LC_ALL": "fr_BE"}, "fr"),
        ({"LC_MESSAGES": "de", "LANG": "nl"}, "de"),
        ({"LC_ALL": "", "LANG": "de_AT"}, "de"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANG": "es_ES"}, "en"),
    ],
)
def test_the_terminals_language(environ: dict[str, str], language: str) -> None:
    assert language_of(environ) == language


def test_amounts_are_never_told_smaller_than_they_are() -> None:
    assert [amount("en", megabytes) for megabytes in (0, 30, 999, 1000, 1500, 5000, 5001, 10_000)] == [
        "0\u00a0MB",
        "30\u00a0MB",
        "999\u00a0MB",
        "1\u00a0GB",
        "1.5\u00a0GB",
        "5\u00a0GB",
        "5.1\u00a0GB",
        "10\u00a0GB",
    ]
    assert (amount("fr", 1500), amount("de", 1500)) == ("1,5\u00a0Go", "1,5\u00a0GB")


@given(st.text(max_size=400))
def test_a_strangers_words_stay_in_their_line(told: str) -> None:
    shown = words(told, 80)
    assert shown == "" or shown.isprintable()
    assert len(shown) <= 80


@given(st.integers(100, 599), st.binary(max_size=120))
def test_any_answer_joins_nobody_by_accident(status: int, body: bytes) -> None:
    answer = read_answer(status, body)
    with pytest.raises(EnrolError):
        read_about(answer, "c.example:443")
