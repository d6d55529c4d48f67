# SPDX-License-Identifier: EUPL-1.2
"""The spool: bounded, whole files only, damaged ones set aside, room made where that helps and only there."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.spool import MOST_BAD, MOST_BAD_BYTES, Counts, Spool
from probe.state import State
from probe.wire.envelope import Envelope, to_line
from probe.wire.signing import SeedSigner

SIGNER = SeedSigner(bytes(32))
KEY = SIGNER.public_key


def envelope(size: int = 1000, fill: bytes = b"x") -> Envelope:
    """Of that size; nobody here looks at its signature."""
    return Envelope(payload=fill * size, key=KEY, signature=bytes(64))


LINE = len(to_line(envelope()))


def numbers(spool: Spool) -> list[int]:
    return [int(entry.name.split("-")[0]) for entry in spool.entries()]


def fill(spool: Spool, *sequences: int) -> list[int]:
    return [spool.put(n, f"{n:032x}", [envelope()]) for n in sequences]


def disk(monkeypatch: pytest.MonkeyPatch, blocks: int, used: Callable[[], int] = lambda: 0) -> None:
    """A disk of `blocks` of 4 kB that only spools use. A stand-in: not every machine lets one mount."""
    whole = sys.modules["probe.files"].write_whole

    def held(directory: Path) -> int:
        found = (path for path in directory.rglob("*") if path.is_file())
        return used() + sum(-(-path.stat().st_size // 4096) for path in found)

    def write(path: Path, content: bytes, *, durable: bool = True) -> None:
        root = next(parent for parent in path.parents if parent.name == "spool")
        if held(root) - (-len(content) // 4096) > blocks:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(path, content, durable=durable)

    def free(path: Path) -> os.statvfs_result:
        left = blocks - held(path)
        return os.statvfs_result((4096, 4096, blocks, left, left, 100, 100, 100, 0, 255))

    monkeypatch.setattr("probe.spool.write_whole", write)
    monkeypatch.setattr("probe.files.write_whole", write)
    monkeypatch.setattr("probe.spool.os.statvfs", free)


def test_the_spool_gives_back_what_it_was_given_oldest_first(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    assert spool.entries() == []
    for number in (10, 2, 1 << 40, 300, 900_000_000_000):  # more digits than the name is padded to
        assert spool.put(number, f"{number:032x}", [envelope(fill=b"m"), envelope(fill=b"r")]) == 0
    entries = spool.entries()
    assert numbers(spool) == [2, 10, 300, 900_000_000_000, 1 << 40]
    assert [e.payload[:1] for e in entries[0].envelopes()] == [b"m", b"r"]
    assert spool.take(entries[0]) == entries[0].envelopes()
    spool.remove(entries[0])
    spool.remove(entries[0])
    assert len(spool.entries()) == 4


def test_a_full_spool_loses_the_oldest_and_says_how_many(tmp_path: Path) -> None:
    spool = Spool(tmp_path, most_bytes=3 * LINE)
    assert fill(spool, *range(6)) == [0, 0, 0, 1, 1, 1]
    assert numbers(spool) == [3, 4, 5]
    assert spool.counts() == Counts(dropped=3)
    assert Spool(tmp_path).counts() == Counts(dropped=3)
    with pytest.raises(OSError, match="larger than the spool"):
        spool.put(6, "6" * 32, [envelope(10_000)])
    assert numbers(spool) == [3, 4, 5]


def test_a_full_disk_loses_as_many_as_it_takes_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path / "spool", durable=False)
    fill(spool, 1, 2, 3, 4)
    disk(monkeypatch, blocks=5)
    assert fill(spool, 5, 6) == [0, 2]  # the second one also for the file that counts
    assert numbers(spool) == [3, 4, 5, 6]
    assert spool.counts().dropped == 2


def test_where_others_fill_the_disk_nothing_is_thrown_away_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path / "spool", durable=False)
    fill(spool, 1, 2)
    disk(monkeypatch, blocks=3, used=lambda: 1)
    with pytest.raises(OSError, match="No space left"):
        spool.put(3, "3" * 32, [envelope(10_000)])
    assert numbers(spool) == [1, 2]
    assert spool.counts() == Counts()
    assert sorted(path.name for path in spool.directory.iterdir()) == [entry.path.name for entry in spool.entries()]


def test_a_broken_medium_is_no_full_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, durable=False)
    fill(spool, 1, 2)

    def broken(path: Path, content: bytes, *, durable: bool = True) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("probe.spool.write_whole", broken)
    with pytest.raises(OSError, match="Input/output error"):
        fill(spool, 3)
    assert numbers(spool) == [1, 2]


def test_a_real_disk_of_64_kb_that_is_full_still_takes_the_newest(tmp_path: Path) -> None:
    """In a mount namespace of its own, where the kernel lets one make it."""
    script = """
import os, sys
sys.path[:0] = sys.argv[2].split(os.pathsep)
from pathlib import Path
from probe.state import State
from probe.wire.envelope import Envelope
state = State(Path(sys.argv[1], "flash"), Path(sys.argv[1], "ram"))
state.prepare()
state.remember({"session": "0", "pairs": 1})
def put(n):
    return state.spool.put(n, f"{n:032x}", [Envelope(payload=b"x" * 4000, key=bytes(32), signature=bytes(64))])
dropped = [put(state.next_sequence()) for _ in range(30)]
Path(state.run, "others").write_bytes(b"")
try:
    Path(state.run, "others").write_bytes(b"x" * 65536)
except OSError:
    pass
free = os.statvfs(state.run).f_bavail
dropped.append(put(state.next_sequence()))
state.remember({"session": "30"})
spool = state.spool
print(free, sum(dropped), spool.counts().dropped, spool.entries()[-1].name, state.last_sequence(), state.last())
"""
    argv = [
        "unshare",
        "-rm",
        "sh",
        "-c",
        'mount -t tmpfs -o size=64k none "$1/ram" && exec "$2" -c "$3" "$1" "$4"',
        "sh",
    ]
    (tmp_path / "ram").mkdir()
    try:
        argv += [str(tmp_path), sys.executable, script, os.pathsep.join(path for path in sys.path if path)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("unshare is not on this machine (Debian package util-linux)")
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    free, dropped, counted, newest, last, told = done.stdout.strip().split(" ", 5)
    assert int(free) == 0
    assert int(dropped) == int(counted) > 20
    assert (newest, last) == (f"{30:012d}-{30:032x}", "30")
    assert told == "{'session': '30'}"


@pytest.mark.parametrize("cut", [0, 1, 100, LINE - 2, LINE + 5])
def test_a_file_cut_anywhere_is_set_aside_and_the_rest_goes_on(tmp_path: Path, cut: int) -> None:
    spool = Spool(tmp_path)
    for number in (1, 2):
        spool.put(number, f"{number:032x}", [envelope(), envelope()])
    first, second = spool.entries()
    os.truncate(first.path, cut)
    assert spool.take(spool.entries()[0]) == []
    assert spool.entries() == [second]
    assert spool.counts() == Counts(damaged=1)
    assert [path.name for path in (tmp_path / "bad").iterdir()] == [first.path.name]
    assert len(spool.take(second)) == 2


def test_few_damaged_files_are_kept_and_little_of_each(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for number in range(MOST_BAD + 3):
        (tmp_path / f"{number:012d}-ab.jsonl").write_bytes(os.urandom(MOST_BAD_BYTES + number))
    for entry in spool.entries():
        assert spool.take(entry) == []
    kept = sorted((tmp_path / "bad").iterdir())
    assert [int(path.name[:12]) for path in kept] == [3, 4, 5]
    assert all(path.stat().st_size <= MOST_BAD_BYTES for path in kept)
    assert spool.counts().damaged == MOST_BAD + 3


def test_a_file_larger_than_the_spool_is_not_read(tmp_path: Path) -> None:
    spool = Spool(tmp_path, most_bytes=10)
    (tmp_path / "000000000001-ab.jsonl").write_bytes(to_line(envelope()))
    assert spool.take(spool.entries()[0]) == []
    assert spool.counts().damaged == 1


def test_what_vanishes_while_one_looks_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)
    fill(spool, 1, 2)
    entry = spool.entries()[0]
    real = os.scandir

    class Vanishing:
        def __init__(self, path: Path) -> None:
            self._found = list(real(path))
            (tmp_path / entry.path.name).unlink(missing_ok=True)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self._found

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr("probe.spool.os.scandir", Vanishing)
    assert numbers(spool) == [2]
    assert spool.take(entry) == []
    assert spool.counts() == Counts()
    assert entry.envelopes() == []


def test_what_is_not_ours_is_neither_sent_nor_touched(tmp_path: Path) -> None:
    spool = Spool(tmp_path, most_bytes=LINE)
    (tmp_path / "000000000001-dir.jsonl").mkdir()
    (tmp_path / "notes.jsonl").write_text("mine")
    (tmp_path / "1 2-ab.jsonl").write_text("mine")
    (tmp_path / "000000000002-ln.jsonl").symlink_to(tmp_path / "notes.jsonl")
    before = sorted(tmp_path.iterdir())
    assert spool.entries() == []
    assert fill(spool, 3, 4) == [0, 1]
    assert set(before) <= set(tmp_path.iterdir())


def test_what_a_killed_process_left_is_swept_and_a_living_ones_is_not(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    (tmp_path / f".000000000001-ab.jsonl.{int(dead.stdout)}.tmp").write_bytes(b'{"evenlane":1,')
    (tmp_path / ".000000000001-cd.jsonl.9999999999.tmp").write_bytes(b"")
    alive = tmp_path / f".000000000001-ef.jsonl.{os.getppid()}.tmp"
    alive.write_bytes(b'{"evenlane":1,')
    assert spool.entries() == []
    fill(spool, 3)
    assert list(tmp_path.glob(".*.tmp")) == [alive]


def test_what_waited_on_flash_from_an_earlier_version_is_sent_first(tmp_path: Path) -> None:
    fill(Spool(tmp_path / "flash" / "spool"), 1, 2)
    state = State(tmp_path / "flash", tmp_path / "ram")
    state.prepare()
    fill(state.spool, LINE)
    assert numbers(state.spool) == [1, 2, LINE]
    assert len(list((tmp_path / "ram" / "spool").iterdir())) == 1
    small = Spool(tmp_path / "ram" / "spool", 2 * LINE, durable=False, older=(tmp_path / "flash" / "spool",))
    assert fill(small, LINE + 1) == [2]
    assert list((tmp_path / "flash" / "spool").iterdir()) == []
    for entry in small.entries():
        small.remove(entry)
    assert state.spool.entries() == []


@pytest.mark.parametrize("content", ["", "[", "[]", '{"dropped": -1, "damaged": "3"}', '{"dropped": true}', "{}"])
def test_counts_that_cannot_be_read_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "counts.json").write_text(content)
    assert Spool(tmp_path).counts() == Counts()


@given(actions=st.lists(st.tuples(st.sampled_from(["put", "cut", "take", "remove"]), st.integers(0, 7)), max_size=25))
def test_under_any_handling_it_is_bounded_whole_and_counts(
    actions: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Against a list of what must be there."""
    spool = Spool(tmp_path_factory.mktemp("spool"), most_bytes=4 * LINE, durable=False)
    there: dict[int, bool] = {}
    dropped = damaged = 0
    for number, (action, which) in enumerate(actions):
        entries = spool.entries()
        if action == "put":
            assert spool.put(number, f"{number:032x}", [envelope()]) in {0, 1}
            there[number] = True
            whole_or_cut = sum(LINE if sound else 10 for sound in there.values())
            while whole_or_cut > 4 * LINE:
                oldest = min(there)
                whole_or_cut -= LINE if there.pop(oldest) else 10
                dropped += 1
        elif entries:
            entry = entries[which % len(entries)]
            sequence = int(entry.name.split("-")[0])
            if action == "cut":
                os.truncate(entry.path, 10)
                there[sequence] = False
            elif action == "take":
                assert bool(spool.take(entry)) is there[sequence]
                if not there[sequence]:
                    del there[sequence]
                    damaged += 1
            else:
                spool.remove(entry)
                del there[sequence]
        assert numbers(spool) == sorted(there)
        assert spool.counts() == Counts(dropped=dropped, damaged=damaged)
    assert sum(entry.size for entry in spool.entries()) <= 4 * LINE
