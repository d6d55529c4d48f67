# SPDX-License-Identifier: EUPL-1.2
"""What a probe keeps: key, numbers, lock, in one directory and in two, and what a crash or a full disk leaves."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from pathlib import Path

import pytest

import probe.files
from probe.files import read_object, write_small
from probe.state import LIFE_BITS, State, StateError, default_directories, default_directory, write_whole
from probe.wire.limits import MAX_INT

LIFE = 1 << LIFE_BITS


def two(tmp_path: Path) -> State:
    return State(tmp_path / "flash", tmp_path / "ram")


def power_cut(state: State) -> None:
    shutil.rmtree(state.run)


def full(monkeypatch: pytest.MonkeyPatch, directory: Path, code: int = errno.ENOSPC) -> None:
    """No new file gets content below `directory`, as on a full disk. A stand-in: not every machine lets one mount."""
    whole = probe.files.write_whole

    def refuse(path: Path, content: bytes, *, durable: bool = True) -> None:
        if path.is_relative_to(directory):
            raise OSError(code, os.strerror(code))
        whole(path, content, durable=durable)

    monkeypatch.setattr("probe.files.write_whole", refuse)
    monkeypatch.setattr("probe.state.write_whole", refuse)


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
    assert State(tmp_path).sessions() == 4


def test_a_new_life_begins_when_the_ram_was_lost_and_costs_one_write(tmp_path: Path) -> None:
    state = two(tmp_path)
    state.prepare()
    assert [state.next_sequence() for _ in range(3)] == [0, 1, 2]
    power_cut(state)
    assert (state.last_sequence(), state.sessions()) == (-1, 0)
    state.prepare()
    written = (state.directory / "life").stat()
    state.prepare()
    assert [state.next_sequence() for _ in range(3)] == [LIFE, LIFE + 1, LIFE + 2]
    assert state.sessions() == 3
    assert (state.directory / "life").stat() == written
    power_cut(state)
    state.prepare()
    power_cut(state)
    state.prepare()
    assert state.next_sequence() == 3 * LIFE


def test_a_full_life_goes_over_into_the_next_one(tmp_path: Path) -> None:
    state = two(tmp_path)
    state.prepare()
    (state.run / "next").write_text(f"{LIFE - 1}\n")
    assert [state.next_sequence(), state.next_sequence()] == [LIFE - 1, LIFE]
    power_cut(state)
    state.prepare()
    assert state.next_sequence() == 2 * LIFE


def test_numbers_go_on_where_an_earlier_version_stopped(tmp_path: Path) -> None:
    state = State(tmp_path / "one")
    state.prepare()
    (state.directory / "next").unlink()
    (state.directory / "life").unlink()
    (state.directory / "sequence").write_text("12\n")
    assert state.last_sequence() == 12
    assert state.next_sequence() == 13
    (state.directory / "sequence").write_text("20\n")  # the earlier version was put back for a while
    assert state.next_sequence() == 21
    moved = State(state.directory, tmp_path / "ram")
    moved.prepare()
    assert moved.next_sequence() == LIFE


def test_two_directories_on_top_of_an_earlier_version(tmp_path: Path) -> None:
    state = two(tmp_path)
    state.directory.mkdir()
    (state.directory / "sequence").write_text("12\n")
    state.prepare()
    assert state.next_sequence() == 13
    power_cut(state)
    state.prepare()
    assert state.next_sequence() == LIFE


@pytest.mark.parametrize("garbage", [b"", b"abc", b"\xff\x00", b"9" * 17, b"-1", b"1.5", "²".encode()])
def test_numbers_never_come_again_whatever_a_file_holds(tmp_path: Path, garbage: bytes) -> None:
    state = two(tmp_path)
    state.prepare()
    used = [state.next_sequence() for _ in range(3)]
    for damaged in (state.run / "next", state.directory / "life", state.directory / "sequence"):
        damaged.write_bytes(garbage)
        used += [state.next_sequence() for _ in range(3)]
    power_cut(state)
    (state.directory / "life").write_bytes(garbage)
    state.prepare()
    used += [state.next_sequence() for _ in range(3)]
    assert used == sorted(set(used))
    assert used[-1] < MAX_INT // 2


def test_a_single_directory_whose_old_counter_is_garbage_begins_a_new_life(tmp_path: Path) -> None:
    (tmp_path / "sequence").write_text("abc")
    assert State(tmp_path).next_sequence() == LIFE


def test_a_key_that_cannot_be_read_is_said_and_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("not a key")
    with pytest.raises(StateError, match="is not a key file"):
        State(tmp_path).signer()
    assert (tmp_path / "key").read_text() == "not a key"


def test_two_runs_with_one_identity_never_use_a_number_twice(tmp_path: Path) -> None:
    one, other = State(tmp_path / "flash", tmp_path / "a"), State(tmp_path / "flash", tmp_path / "b")
    used = []
    for state in (one, other, one, one, other):
        state.prepare()
        used.append(state.next_sequence())
    assert len(set(used)) == 5


def test_looking_makes_nothing(tmp_path: Path) -> None:
    state = two(tmp_path)
    assert state.known_key() is None
    assert (state.last_sequence(), state.sessions()) == (-1, 0)
    assert state.last() is None
    assert state.spool.entries() == []
    assert list(tmp_path.iterdir()) == []


def test_what_status_tells_of_the_last_run_survives_and_rubbish_is_nothing(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.remember({"session": "ab", "pairs": {"finished": 3}})
    assert State(tmp_path).last() == {"session": "ab", "pairs": {"finished": 3}}
    for rubbish in ("[", "[1]", "[" * 100_000):
        (tmp_path / "last.json").write_text(rubbish)
        assert state.last() is None


def test_one_measurement_at_a_time_also_for_who_names_another_run(tmp_path: Path) -> None:
    state = two(tmp_path)
    state.prepare()
    (tmp_path / "ram2").mkdir()
    for other in (state, State(state.directory, tmp_path / "ram2"), State(state.directory)):
        refused = pytest.raises(StateError, match="another measurement is running")
        with state.exclusive(), refused, other.exclusive():
            pytest.fail("two at once")
        with other.exclusive():
            pass


def test_a_lock_leaves_no_handle_behind(tmp_path: Path) -> None:
    state = two(tmp_path)
    state.prepare()
    before = len(os.listdir("/proc/self/fd"))
    with state.exclusive():
        pass
    handle = os.open(state.run / "lock", os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(StateError), state.exclusive():
        pytest.fail("locked")
    os.close(handle)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("what", ["file", "missing_parent_of_file"])
@pytest.mark.parametrize("which", ["--state", "--run"])
def test_a_directory_that_cannot_be_is_one_sentence(tmp_path: Path, what: str, which: str) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / ("x" if what == "missing_parent_of_file" else "")
    with pytest.raises(StateError) as caught:
        (State(place) if which == "--state" else State(tmp_path / "flash", place)).prepare()
    assert str(caught.value).endswith(f"name another one with {which}")
    assert str(place) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_state_directory_of_somebody_else_is_one_sentence() -> None:
    with pytest.raises(StateError, match="Permission denied"):
        State(Path("/root/evenlane")).prepare()


def test_a_read_only_flash_is_enough_as_long_as_the_ram_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = two(tmp_path)
    state.prepare()
    key = state.signer().key_id
    full(monkeypatch, state.directory, errno.EROFS)
    state.prepare()
    assert (state.signer().key_id, state.next_sequence(), state.next_sequence()) == (key, 0, 1)
    power_cut(state)
    with pytest.raises(StateError, match=r"Read-only file system.*--state"):
        state.prepare()
    assert (state.directory / "life").read_text() == "0\n"


def test_a_full_ram_disk_still_counts_and_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = two(tmp_path)
    state.prepare()
    state.remember({"session": "a long name", "pairs": {"finished": 3}})
    full(monkeypatch, state.run)
    assert [state.next_sequence(), state.next_sequence()] == [0, 1]
    state.remember({"session": "x"})
    assert state.last() == {"session": "x"}
    (state.run / "last.json").unlink()
    with pytest.raises(StateError, match=r"No space left on device.*--run"):
        state.remember({"session": "x"})
    assert state.next_sequence() == 2


def test_a_file_is_written_over_only_where_it_lies_in_ram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.json"
    write_small(path, b'{"a": 12345}\n', durable=True)
    full(monkeypatch, tmp_path)
    with pytest.raises(OSError, match="No space left"):
        write_small(path, b'{"a": 6}\n', durable=True)
    assert read_object(path) == {"a": 12345}
    write_small(path, b'{"a": 6}\n', durable=False)
    assert read_object(path) == {"a": 6}
    write_small(path, b'{"a": 1234567890}\n', durable=False)
    assert read_object(path) == {"a": 1234567890}


def test_the_default_directory_follows_xdg() -> None:
    assert default_directory({"XDG_STATE_HOME": "/x", "HOME": "/h"}) == Path("/x/evenlane/probe")
    assert default_directory({"HOME": "/h"}) == Path("/h/.local/state/evenlane/probe")
    assert default_directory({"XDG_STATE_HOME": "relative", "HOME": "/h"}) == Path("/h/.local/state/evenlane/probe")
    assert default_directory({}) == Path("/.local/state/evenlane/probe")


def test_the_directory_of_the_run_is_in_ram_where_there_is_some(tmp_path: Path) -> None:
    home, named, ram = {"HOME": "/h"}, Path("/state"), {"XDG_RUNTIME_DIR": str(tmp_path)}
    durable = Path("/h/.local/state/evenlane/probe")
    service = {"RUNTIME_DIRECTORY": "/run/evenlane:/run/other"}
    assert default_directories(None, None, home, tmp_path / "none") == (durable, durable)
    (tmp_path / "users" / str(os.getuid())).mkdir(parents=True)
    by_cron = tmp_path / "users" / str(os.getuid()) / "evenlane" / "probe"
    assert default_directories(None, None, home, tmp_path / "users") == (durable, by_cron)
    assert default_directories(None, None, home | ram) == (durable, tmp_path / "evenlane" / "probe")
    assert default_directories(None, None, home | {"XDG_RUNTIME_DIR": str(tmp_path / "none")}) == (durable, durable)
    assert default_directories(None, None, home | {"XDG_RUNTIME_DIR": "relative"}) == (durable, durable)
    assert default_directories(named, None, home | ram) == (named, named)
    assert default_directories(named, None, home | ram | service) == (named, Path("/run/evenlane"))
    assert default_directories(None, None, home | {"RUNTIME_DIRECTORY": "relative"}, tmp_path / "none") == (
        durable,
        durable,
    )
    assert default_directories(named, Path("/ram"), home | ram | service) == (named, Path("/ram"))


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_whole(path, b"one")
    with pytest.raises(TypeError):
        write_whole(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"one"
    with pytest.raises(OSError, match="No such file"):
        write_whole(tmp_path / "missing" / "f", b"")
