# SPDX-License-Identifier: EUPL-1.2
"""Targets: files that people, other programs or a power cut write."""

from __future__ import annotations

import ipaddress
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fuzz_registry import ROOT, golden_lines, target

from analysis.judge import judge
from analysis.plan import DEFAULT_PLAN
from analysis.sources import SourceError, corpus, read_files
from collector.config import Config, ConfigError, load
from lab import scenario
from probe.profiles.model import LIBRARY, NEUTRAL, AppFile, NeutralPool, ProfileError, parse
from probe.reflector.origin import Origins, TableError, entry_of, read_table
from probe.spool import Entry, Spool
from probe.state import State, StateError
from probe.wire.codec import WireError, dumps, from_dict, loads, to_dict
from probe.wire.envelope import Envelope, from_line, to_line
from probe.wire.records import Origin
from probe.wire.scrub import find_address
from probe.wire.signing import SeedSigner, load_or_create

_MEMORY = "/dev/shm"  # noqa: S108 - a directory of our own is made in it
_SCRATCH = tempfile.TemporaryDirectory(dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None)


@contextmanager
def written(data: bytes, name: str) -> Iterator[Path]:
    """A file with these bytes."""
    path = Path(_SCRATCH.name, f"{os.getpid()}-{name}")
    path.write_bytes(data)
    try:
        yield path
    finally:
        path.unlink()


@target(
    seeds=lambda: [
        b"prefix,asn,country,operator,access\n192.0.2.0/24,64500,NL,Example Net,fixed\n"
        b"2001:db8::/32,AS64501,BE,,mobile\n",
        b"# comment\n198.51.100.0/24,64502\n",
        b'192.0.2.0/24,64500,NL,"seen at 203.0.113.9, Ltd",fixed\n',
        b"\xab\xcd\xefMaxMind.com\xe9",
    ],
    most=6000,
    examples=100,
)
def fuzz_origin_table(data: bytes) -> None:
    """A table of prefixes is refused with TableError, or gives origins that a record can carry, without addresses."""
    with written(data, "asn.csv") as path:
        try:
            table = read_table(path)
        except TableError:
            return
    for address in ("192.0.2.1", "2001:db8::1", "203.0.113.9"):
        try:
            origin = Origins([table]).find(ipaddress.ip_address(address), b"k" * 32, "192.0.2.1")
        except ValueError as error:  # a damaged MaxMind file shows where it is read
            assert data.rfind(b"MaxMind.com") >= 0, error
            return
        _carried(origin)


def _carried(origin: Origin) -> None:
    assert from_dict(Origin, loads(dumps(to_dict(origin)))) == origin
    assert find_address(origin.operator or "") is None


@target(
    seeds=lambda: [
        b'{"autonomous_system_number":64500,"autonomous_system_organization":"Example"}',
        b'{"asn":"AS64500","as_name":"Example","country_code":"NL"}',
        b'{"asn":64500,"name":"1.2.3.4","country":{"iso_code":"be"}}',
    ],
    most=6000,
)
def fuzz_maxmind_entry(data: bytes) -> None:
    """Whatever a MaxMind entry holds becomes an entry; what cannot be read is left out."""
    try:
        found = loads(data)
    except WireError:
        return
    if isinstance(found, dict):
        entry = entry_of(found)
        assert entry.asn is None or 0 <= entry.asn < 2**32
        assert entry.country is None or (len(entry.country) == 2 and entry.country.isupper())


@target(seeds=lambda: [path.read_bytes() for path in sorted(LIBRARY.glob("*.toml"))], most=3000, examples=80)
def fuzz_profile(data: bytes) -> None:
    """A profile is refused with ProfileError in one sentence, or is read again as itself."""
    text = data.decode("utf-8", "replace")
    for kind in (AppFile, NeutralPool):
        try:
            found = parse(kind, text, f"{NEUTRAL}.toml")
        except ProfileError as error:
            assert str(error).startswith(NEUTRAL)
            continue
        assert parse(kind, text, "again") == found
        assert len(found.digest) == 64


@target(
    seeds=lambda: [
        b'host = "127.0.0.1"\nport = 8080\nreflectors = ["' + b"A" * 43 + b'"]\ntrusted_proxies = ["10.0.0.0/8"]\n'
        b'timezone = "Europe/Brussels"\n[timezones]\nPT = "Atlantic/Azores"\n'
        b'[[operators]]\nid = "a"\nasns = [1]\ncountry = "NL"\n',
        b'[influx]\nurl = "http://127.0.0.1:8086"\ntoken = "t"\norg = "o"\nbucket = "b"\n'
        b'[grafana]\nurl = "http://127.0.0.1:3000"\ntoken_file = "f"\n',
        (ROOT / "deploy/docker/collector.toml").read_bytes(),
        b'timezone = "a\\u0000b"', b'timezone = "/etc/passwd"', b'timezone = "..\\\\x"',
        b'[grafana]\ntoken_file="\\uFFFF"',
    ],
    most=3000,
    examples=80,
)  # fmt: skip
def fuzz_collector_config(data: bytes) -> None:
    """A configuration is refused with every wrong key by its path, or is a Config."""
    with written(data, "collector.toml") as path:
        try:
            config = load(path)
        except ConfigError as error:
            assert error.problems
            return
    assert isinstance(config, Config)
    assert 0 <= config.port <= 65535


@target(
    seeds=lambda: [path.read_bytes() for path in sorted((ROOT / "lab/scenarios").rglob("*.toml"))],
    most=3000,
    examples=80,
)
def fuzz_scenario(data: bytes) -> None:
    """A scenario is refused with one sentence, or says the same when it is written and read again."""
    with written(data, "scenario.toml") as path:
        try:
            found = scenario.load(path)
        except scenario.ScenarioError:
            return
    assert scenario.from_table(scenario.to_table(found)) == found


KEYS = {name: SeedSigner(bytes([number]) * 32) for number, name in enumerate(("probe", "reflector", "other"), start=1)}


def stories() -> list[bytes]:
    """Golden payloads by signer: lines of a letter (p, r, o), a blank and a payload."""
    lines = []
    for raw in golden_lines():
        payload = from_line(raw).payload
        signer = b"p" if json.loads(payload)["type"] == "measurement" else b"r"
        lines.append(signer + b" " + payload)
    ids = json.loads(lines[0][2:])
    everything = b"\n".join(lines).replace(str(ids.get("reflector", "-")).encode(), KEYS["reflector"].key_id.encode())
    for line in lines:
        probe = json.loads(line[2:]).get("probe")
        if probe:
            everything = everything.replace(probe.encode(), KEYS["probe"].key_id.encode())
    return [everything, *lines, b"o " + lines[-1][2:]]


def sealed(data: bytes) -> bytes:
    """Each line's payload signed as it stands: a stranger has a key, too."""
    out = []
    for line in data.split(b"\n")[:30]:
        signer = KEYS[{b"p": "probe", b"r": "reflector"}.get(line[:1], "other")]
        if line[2:]:
            out.append(to_line(Envelope(payload=line[2:], key=signer.public_key, signature=signer.sign(line[2:]))))
    return b"".join(out)


@target(seeds=golden_lines, most=8000, examples=40)
def fuzz_source_lines(data: bytes) -> None:
    """A file given to `analysis verdict` is judged, or refused with SourceError."""
    with written(data, "lines.jsonl") as path:
        try:
            records = read_files([path])
        except SourceError:
            return
    corpus(records)


@target(seeds=stories, most=16000, examples=40)
def fuzz_judged(data: bytes) -> None:
    """Well-signed nonsense is judged like anything else: the verdict is JSON, and nobody is accused by so little."""
    with written(sealed(data), "signed.jsonl") as path:
        try:
            records = read_files([path])
        except SourceError:
            return
    found = corpus(records)
    for verdict in judge(found.pairs, DEFAULT_PLAN, zones=found.zones, lost_known=found.lost_known):
        json.dumps(verdict.row(), allow_nan=False)
        assert verdict.state in {"insufficient", "not_testable", "inconclusive", "no_indication"}


@target(
    seeds=lambda: [
        b"key\n" + b"0f" * 32 + b"\n",
        b"sequence\n12\n",
        b'last.json\n{"a":1}',
        b"sequence\n9\xb2",
    ]
)
def fuzz_state(data: bytes) -> None:
    """What a power cut or a person left in the state directory: StateError that says what to do, or a usable state."""
    name, _, content = data.partition(b"\n")
    name = name if name in {b"key", b"sequence", b"last.json"} else b"sequence"
    with tempfile.TemporaryDirectory(dir=_SCRATCH.name) as folder:
        state = State(Path(folder))
        (state.directory / name.decode()).write_bytes(content)
        try:
            assert len(state.signer().key_id) == 43
            assert state.last_sequence() >= -1
            assert state.next_sequence() == state.last_sequence()
            last = state.last()
        except StateError as error:
            assert folder in str(error)
            return
        assert last is None or isinstance(last, dict)


@target(seeds=lambda: [b"0f" * 32, b"0F" * 32 + b"\n", b" ".join([b"0f"] * 32), b"\xff"], most=200)
def fuzz_key_file(data: bytes) -> None:
    """A key file is a key, or refused with a sentence that names it; it is never written over."""
    with written(data, "key") as path:
        try:
            signer = load_or_create(path)
        except ValueError as error:
            assert str(path) in str(error), error
        else:
            assert signer.sign(b"x") == SeedSigner(bytes.fromhex(data.decode("ascii"))).sign(b"x")
        assert path.read_bytes() == data


@target(seeds=lambda: [*golden_lines(), b"".join(golden_lines())], most=16000, examples=40)
def fuzz_spool(data: bytes) -> None:
    """A spooled file gives all its envelopes or none, and does not stop the spool."""
    with tempfile.TemporaryDirectory(dir=_SCRATCH.name) as folder:
        Path(folder, "000000000001-x.jsonl").write_bytes(data)
        (entry,) = Spool(Path(folder)).entries()
        assert entry == Entry(entry.path, len(data))
        found = entry.envelopes()
        assert b"".join(map(to_line, found)).count(b"\n") == len(found)
        assert Spool(Path(folder), most_bytes=max(len(data), 20_000)).put(2, "y", []) in {0, 1}
