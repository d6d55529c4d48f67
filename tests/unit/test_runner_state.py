# SPDX-License-Identifier: EUPL-1.2
"""What a probe keeps: key, counter, lock and spool, and what a crash may leave of them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from probe.spool import Spool
from probe.state import State, StateError, default_directory, write_whole
from probe.wire.envelope import Envelope
from probe.wire.signing import SeedSigner

SIGNER = SeedSigner(bytes(32))


def envelope(size: int = 1000, fill: bytes = b"x") -> Envelope:
    payload = fill * size
    return Envelope(payload=payload, key=SIGNER.public_key, signature=SIGNER.sign(payload))


def test_the_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    state = State(tmp_path / "a" / "b")
    state.prepare()
    first = state.signer().key_id
    assert State(tmp_path / "a" / "b").signer().key_id == first
    assert stat.S_IMODE(state.key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(state.directory.stat().st_mode) == 0o700


def test_the_counter_goes_up_by_one_and_survives(tmp_path: Path) -> None:
    state = State(tmp_path)
    assert state.last_sequence() == -1
    assert [state.next_sequence() for _ in range(3)] == [0, 1, 2]
    assert State(tmp_path).next_sequence() == 3


def test_a_counter_or_key_that_cannot_be_read_is_said_and_never_replaced(tmp_path: Path) -> None:
    state = State(tmp_path)
    (tmp_path / "sequence").write_text("abc")
    with pytest.raises(StateError, match="does not hold a number"):
        state.next_sequence()
    (tmp_path / "key").write_text("not a key")
    with pytest.raises(StateError, match="is not a key file"):
        state.signer()
    assert (tmp_path / "key").read_text() == "not a key"


def test_looking_makes_nothing(tmp_path: Path) -> None:
    state = State(tmp_path / "none")
    assert state.known_key() is None
    assert state.last_sequence() == -1
    assert state.last() is None
    assert state.spool.entries() == []
    assert not state.directory.exists()


def test_what_status_tells_of_the_last_run_survives_and_rubbish_is_nothing(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.remember({"session": "ab", "pairs": {"finished": 3}})
    assert State(tmp_path).last() == {"session": "ab", "pairs": {"finished": 3}}
    (tmp_path / "last.json").write_text("[")
    assert state.last() is None
    (tmp_path / "last.json").write_text("[1]")
    assert state.last() is None


def test_one_measurement_at_a_time(tmp_path: Path) -> None:
    refused = pytest.raises(StateError, match="another measurement is running")
    with State(tmp_path).exclusive(), refused, State(tmp_path).exclusive():
        pytest.fail("two at once")
    with State(tmp_path).exclusive():
        pass


@pytest.mark.parametrize("what", ["file", "missing_parent_of_file"])
def test_a_state_directory_that_cannot_be_is_one_sentence(tmp_path: Path, what: str) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / ("x" if what == "missing_parent_of_file" else "")
    with pytest.raises(StateError) as caught:
        State(place).prepare()
    assert "--state" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_state_directory_of_somebody_else_is_one_sentence() -> None:
    with pytest.raises(StateError, match="Permission denied"):
        State(Path("/root/evenlane")).prepare()


def test_the_default_directory_follows_xdg() -> None:
    assert default_directory({"XDG_STATE_HOME": "/x", "HOME": "/h"}) == Path("/x/evenlane/probe")
    assert default_directory({"HOME": "/h"}) == Path("/h/.local/state/evenlane/probe")
    assert default_directory({"XDG_STATE_HOME": "relative", "HOME": "/h"}) == Path("/h/.local/state/evenlane/probe")
    assert default_directory({}) == Path("/.local/state/evenlane/probe")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_whole(path, b"one")
    with pytest.raises(TypeError):
        write_whole(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"one"
    with pytest.raises(OSError, match="No such file"):
        write_whole(tmp_path / "missing" / "f", b"")


def test_the_spool_gives_back_what_it_was_given_oldest_first(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    assert spool.entries() == []
    for number in (10, 2, 300):
        assert spool.put(number, f"{number:032x}", [envelope(fill=b"m"), envelope(fill=b"r")]) == 0
    entries = spool.entries()
    assert [int(entry.name.split("-")[0]) for entry in entries] == [2, 10, 300]
    kept = entries[0].envelopes()
    assert [e.payload[:1] for e in kept] == [b"m", b"r"]
    assert all(e.is_valid() for e in kept)
    spool.remove(entries[0])
    assert len(spool.entries()) == 2


def test_a_full_spool_loses_the_oldest_and_says_how_many(tmp_path: Path) -> None:
    spool = Spool(tmp_path, most_bytes=5000)
    assert [spool.put(n, f"{n:032x}", [envelope()]) for n in range(5)] == [0, 0, 0, 1, 1]
    assert [int(entry.name.split("-")[0]) for entry in spool.entries()] == [2, 3, 4]
    assert sum(entry.size for entry in spool.entries()) <= 5000
    with pytest.raises(OSError, match="larger than the spool"):
        spool.put(6, "6" * 32, [envelope(10_000)])


def test_what_a_crash_left_is_not_sent_and_is_swept(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    (tmp_path / ".000000000001-ab.jsonl.77.tmp").write_bytes(b'{"evenlane":1,')
    (tmp_path / "000000000002-cd.jsonl").write_bytes(b'{"evenlane":1,')
    assert [entry.envelopes() for entry in spool.entries()] == [[]]
    spool.put(3, "3" * 32, [envelope()])
    assert not list(tmp_path.glob(".*.tmp"))
