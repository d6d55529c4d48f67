# SPDX-License-Identifier: EUPL-1.2
"""Joining a collector's network and leaving it, at the probe's end.

Who the collector is, TLS says at the enrolment; its key is kept from then on, and only plans that this key signed are
followed. An enrolment names the collector that it is meant for, so that nobody can hand it on elsewhere. Nothing about
this device is sent before the volunteer agreed. Spec: spec/volunteer.md; spec/enrolment.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from probe.about import INVITED, About, EnrolError, about, check_about, check_taken, read_about
from probe.ask import Answer, ask, words
from probe.consent import VERSION
from probe.netio.control import Url, UrlError
from probe.netio.dial import Dialer
from probe.plan import Fetched, fetch, keep, stored
from probe.settings import Language, Settings
from probe.state import State, StateError, write_whole
from probe.upload import collector_url
from probe.wire.codec import KEY_ID, WireError, bounded, dumps, from_dict, loads, text
from probe.wire.envelope import Envelope, seal, to_json
from probe.wire.failure import Failure
from probe.wire.limits import MAX_TIME_MS
from probe.wire.records import Enrolment, Leave, Software
from probe.wire.signing import key_bytes

__all__ = [
    "About",
    "EnrolError",
    "Enrolled",
    "Joined",
    "Left",
    "about",
    "check_about",
    "check_free",
    "check_taken",
    "enrolled",
    "erase",
    "is_leaving",
    "join",
    "leave",
    "plan_file",
    "read_about",
    "record_of",
    "renew_plan",
]

_MOST_FILE: Final = 16 * 1024
_ENROLMENT: Final = "enrolment.json"
_LEAVING: Final = "leaving.json"
_PLAN: Final = "plan.jsonl"
_ERASED: Final = (
    "enrolment.json",
    "plan.jsonl",
    "key",
    "life",
    "sequence",
    "next",
    "budget.json",
    "spend.json",
    "ledger.json",
    "schedule.json",
    "upload.json",
    "turn.json",
    "status.json",
    "last.json",
)
_HALF_WRITTEN: Final = (".*.tmp", "key.*.tmp")
_ERASED_FOLDERS: Final = ("spool",)
"""By name, because somebody may have named a directory that holds other things too."""


# -- what is kept -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """`enrolment.json`: whom this probe works for, and what was agreed to."""

    v: Literal[1] = 1
    collector: Annotated[str, text(longest=512)]
    """Address, with its pin where one was given."""
    key: Annotated[str, text(pattern=KEY_ID)]
    """The collector's, pinned."""
    name: Annotated[str, text(longest=160)] = ""
    consent: Annotated[str, text(longest=32)] = ""
    language: Literal["nl", "fr", "de", "en"] = "en"
    enrolled_ms: Annotated[int, bounded(low=0, high=MAX_TIME_MS)] = 0

    @property
    def url(self) -> Url:
        """Where to upload and to ask. It was checked when it was read."""
        return collector_url(self.collector)


def enrolled(state: State) -> Enrolled | None:
    """Whom this probe works for; None where it has not joined anybody. Raises EnrolError where the file is spoilt."""
    path = state.directory / _ENROLMENT
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_FILE + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EnrolError(f"{path} cannot be read ({error.strerror})") from None
    try:
        found = from_dict(Enrolled, loads(raw, longest=_MOST_FILE))
        key_bytes(found.key)
        collector_url(found.collector)
    except (WireError, UrlError):
        raise EnrolError(f"{path} was spoilt: join again with `evenlane probe enrol --collector URL --again`") from None
    return found


def is_leaving(state: State) -> bool:
    """Whether the volunteer wants to leave and the collector does not know it yet: nothing is measured any more."""
    return (state.directory / _LEAVING).exists()


def plan_file(state: State) -> Path:
    """Where the newest accepted plan is kept."""
    return state.directory / _PLAN


# -- joining ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What came of joining."""

    status: Literal["enrolled", "known"]
    """known: the collector had this probe already, and now has its newest answers."""
    vetted: bool
    """Whether somebody whom the collector trusts vouches for this volunteer."""
    enrolled: Enrolled
    probe: str
    """Key id of this probe."""
    fetched: Fetched


def check_free(state: State, found: About, collector: str) -> Enrolled | None:
    """The enrolment that would be renewed; None for a first one. Raises EnrolError where another one holds."""
    if is_leaving(state):
        raise EnrolError(
            "the wish to leave the former collector has not reached it yet: run `evenlane probe leave` first "
            "(or `evenlane probe leave --here-only`)"
        )
    before = enrolled(state)
    if before is None or before.key == found.key:
        return before
    if before.collector == collector:
        raise EnrolError(
            f"{before.name or collector} has another key than when this device joined: ask its people whether that is "
            "right, and if it is, join anew with --again"
        )
    raise EnrolError(
        f"this device works for {before.name or before.collector} ({before.collector}): leave it first with "
        "`evenlane probe leave`, or forget it with --again"
    )


def record_of(
    settings: Settings, *, collector: str, now_ms: int, language: Language, token: str | None, software: Software
) -> Enrolment:
    """The record that is signed; pure. `collector` is its key id."""
    return Enrolment(
        type="enrolment",
        v=1,
        collector=collector,
        at_ms=now_ms,
        consent=VERSION,
        language=language,
        token=token,
        hotspot=settings.stands_at_hotspot,
        declared_position=settings.declared_position,
        brand=settings.brand,
        tariff=settings.tariff,
        contract_down_mbps=settings.contract_down_mbps,
        contract_up_mbps=settings.contract_up_mbps,
        opt_in_filters=settings.opt_in_filters,
        software=software,
    )


def join(
    state: State,
    collector: str,
    found: About,
    settings: Settings,
    *,
    language: Language,
    token: str | None,
    software: Software,
    now_ms: int,
    dialer: Dialer | None = None,
) -> Joined:
    """Sign, send, keep, fetch the plan. The volunteer has agreed before this is called.

    Repeat-safe: the same again renews the answers. Raises EnrolError, StateError, UrlError.
    """
    url = collector_url(collector)
    state.prepare()
    signer = state.signer()
    record = record_of(settings, collector=found.key, now_ms=now_ms, language=language, token=token, software=software)
    answer = ask(url, "/v1/enrol", body=_body(seal(record, signer)), dialer=dialer)
    status = answer.plain.get("status")
    if answer.status not in {200, 201} or status not in ("enrolled", "known"):  # perhaps not hashable
        raise EnrolError(_refusal(answer))
    kept = Enrolled(
        collector=collector,
        key=found.key,
        name=found.name,
        consent=VERSION,
        language=language,
        enrolled_ms=now_ms,
    )
    _write(state, _ENROLMENT, asdict(kept))
    fetched = renew_plan(state, kept, probe=signer.key_id, now_ms=now_ms, dialer=dialer)
    return Joined(
        status="known" if status == "known" else "enrolled",
        vetted=answer.plain.get("vetted") is True,
        enrolled=kept,
        probe=signer.key_id,
        fetched=fetched,
    )


def renew_plan(state: State, kept: Enrolled, *, probe: str, now_ms: int, dialer: Dialer | None = None) -> Fetched:
    """Fetch the plan; keep it where it is another one than the known. Raises StateError where it cannot be written."""
    path = plan_file(state)
    known = stored(path, kept.key)
    fetched = fetch(kept.url, probe=probe, collector_key=kept.key, now_ms=now_ms, known=known, dialer=dialer)
    if fetched.status == "new" and fetched.found is not None:
        try:
            keep(path, fetched.found)
        except OSError as error:
            raise StateError(f"{path} cannot be written ({error.strerror}): make room there") from None
    return fetched


def _refusal(answer: Answer) -> str:
    if answer.error == "bad_token":
        told = words(answer.plain.get("detail", "")) or "ask whoever gave it to you"
        return f"the collector does not take this token ({told}); nothing was joined"
    if answer.error == "token_required":
        return f"the collector takes only volunteers with a token: {INVITED}"
    if answer.error == "old_consent":
        return f"the collector asks for a newer consent text than that of {VERSION}: update evenlane"
    if answer.failure is not None:
        return f"{answer.detail}; nothing was joined, so try again later"
    return answer.detail or "the collector's answer cannot be read; nothing was joined"


def _body(envelope: Envelope) -> bytes:
    return dumps(to_json(envelope))


def _write(state: State, name: str, document: dict[str, Any]) -> None:
    path = state.directory / name
    try:
        write_whole(path, dumps(document) + b"\n")
    except OSError as error:
        raise StateError(f"{path} cannot be written ({error.strerror}): make room there") from None


# -- leaving ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What came of leaving."""

    status: Literal["left", "pending", "not_enrolled"]
    """pending: the collector could not be told yet. Nothing is measured, and the wish is sent again."""
    detail: str = ""
    failure: Failure | None = None
    retry_after_s: int | None = None


def leave(state: State, now_ms: int, *, dialer: Dialer | None = None, has_lock: bool = False) -> Left:
    """Tell the collector to forget this probe, then forget it here. Also what a turn calls while `is_leaving`.

    The wish is written down first: from then on nothing is measured, whatever happens next. Only when the collector
    says that it is done (also of a probe that it does not know) is the key erased, because nobody else could ask again.
    `has_lock`: the caller is within `state.exclusive()`. Raises StateError (also while a measurement is running),
    EnrolError.
    """
    kept = enrolled(state)
    if kept is None and not is_leaving(state):
        return Left(status="not_enrolled")
    if kept is None:  # a power cut while erasing
        erase(state, has_lock=has_lock)
        return Left(status="left")
    if not is_leaving(state):
        _write(state, _LEAVING, {"v": 1, "collector": kept.key, "since_ms": now_ms})
    if state.known_key() is None:
        raise EnrolError(
            f"the key of this device is gone, so {kept.name or 'the collector'} cannot know who asks: write to its "
            "people, and forget it here with `evenlane probe leave --here-only`"
        )
    record = Leave(type="leave", v=1, collector=kept.key, at_ms=now_ms)
    answer = ask(kept.url, "/v1/leave", body=_body(seal(record, state.signer())), dialer=dialer)
    if answer.status != 200 or answer.plain.get("status") != "left":
        detail = answer.detail or "the collector's answer cannot be read"
        return Left(status="pending", detail=detail, failure=answer.failure, retry_after_s=answer.retry_after_s)
    erase(state, has_lock=has_lock)
    return Left(status="left")


def erase(state: State, *, has_lock: bool = False) -> None:
    """Forget everything here that belongs to the network: key, enrolment, plan, counters, ledger, what was measured.

    What stays: `settings.json`, because the owner wrote it for this device and nobody else has it; the lock, which is
    empty. Waits for no measurement: raises StateError while one is running, which would write its record afterwards.
    """
    with _readable(state):
        state.run.mkdir(parents=True, exist_ok=True, mode=0o700)  # after a reboot it is not there to be locked
    with nullcontext() if has_lock else state.exclusive(), _readable(state):
        for folder in _folders(state):
            for name in _ERASED_FOLDERS:
                _remove_folder(folder / name)
            for name in _ERASED:
                (folder / name).unlink(missing_ok=True)
            for pattern in _HALF_WRITTEN:
                for beside in folder.glob(pattern):
                    beside.unlink(missing_ok=True)
        # The wish last: after a power cut half way it is still known that nothing may be measured.
        (state.directory / _LEAVING).unlink(missing_ok=True)


@contextmanager
def _readable(state: State) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StateError(
            f"not everything in {state.directory} could be erased ({error.strerror}): erase it by hand"
        ) from None


def _remove_folder(folder: Path) -> None:
    """The standard library's own way imports the compression modules, which a router may lack."""
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in files:
            Path(parent, name).unlink(missing_ok=True)
        for name in folders:
            below = Path(parent, name)
            below.unlink() if below.is_symlink() else below.rmdir()
    if folder.is_dir():
        folder.rmdir()


def _folders(state: State) -> tuple[Path, ...]:
    """That of the run first: the key goes last."""
    return (state.run, state.directory) if state.is_split else (state.directory,)
