# SPDX-License-Identifier: EUPL-1.2
"""spec/examples.md is what the programs really say, and a stranger's shell comes to the same verdict as we do."""

import importlib.util
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from probe.wire import ed25519
from probe.wire.codec import WireError
from probe.wire.envelope import Envelope, from_line, open_record, seal, to_line
from probe.wire.records import Plan, PlannedProfile
from probe.wire.signing import SeedSigner, key_bytes

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "spec" / "verify-envelope.sh"
GOLDEN = sorted((ROOT / "tests" / "contract" / "golden").rglob("*.jsonl"))

_spec = importlib.util.spec_from_file_location("spec_examples", Path(__file__).with_name("spec_examples.py"))
examples = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(examples)


def _openssl_is_new_enough() -> bool:
    found = shutil.which("openssl")
    return bool(found) and subprocess.run([found, "version"], capture_output=True, text=True).stdout >= "OpenSSL 3"


needs_openssl = pytest.mark.skipif(not _openssl_is_new_enough(), reason="OpenSSL 3.0 or later is not on the path")


def verify(tmp_path: Path, lines: list[bytes], *keys: str) -> tuple[int, list[str]]:
    """The script's exit code and its verdict of each line."""
    file = tmp_path / "envelopes.jsonl"
    file.write_bytes(b"".join(line.rstrip(b"\n") + b"\n" for line in lines))
    ran = subprocess.run(["sh", SCRIPT, file, *keys], capture_output=True, text=True, timeout=120)
    assert ran.stderr == ""
    return ran.returncode, ran.stdout.splitlines()


def is_good_here(line: bytes) -> bool:
    """Our own verdict on a line."""
    try:
        return from_line(line).is_valid()
    except WireError:
        return False


def test_the_page_is_what_the_programs_say():
    """Written anew by `python tests/contract/spec_examples.py`, when something on the wire was added."""
    assert examples.PAGE.read_text(encoding="utf-8") == examples.page()


def test_every_envelope_of_the_page_is_a_record():
    kinds = [open_record(envelope).type for envelope in examples.envelopes()]
    assert kinds == ["started", "receipt", "measurement"]


@needs_openssl
def test_a_shell_and_openssl_verify_what_we_signed(tmp_path):
    lines = [path.read_bytes() for path in GOLDEN] + [to_line(envelope) for envelope in examples.envelopes()]
    code, verdicts = verify(tmp_path, lines)
    envelopes = [from_line(line) for line in lines]
    assert (code, verdicts) == (0, [f"good {envelope.key_id} {envelope.digest}" for envelope in envelopes])


@needs_openssl
def test_the_script_is_short_enough_to_be_read():
    assert len(SCRIPT.read_text().splitlines()) <= 50


@needs_openssl
def test_only_the_keys_that_one_names_are_trusted(tmp_path):
    started, receipt, measurement = examples.envelopes()
    lines = [to_line(receipt), to_line(measurement)]
    assert verify(tmp_path, lines, started.key_id, measurement.key_id)[0] == 0
    code, verdicts = verify(tmp_path, lines, receipt.key_id)
    assert code == 1
    assert [verdict.split()[0] for verdict in verdicts] == ["good", "BAD"]
    assert measurement.key_id in verdicts[1]


@needs_openssl
def test_both_refuse_the_same_damaged_envelopes(tmp_path):
    """Every part is damaged in many places; whichever way, both programs say the same."""
    good = to_line(examples.envelopes()[0]).rstrip(b"\n")
    rng = random.Random(20261122)
    alphabet = b'ABCXYZabcxyz0189-_=+/ "{}:,\\'
    lines = [good, good[:-1], good + b"}", b"", b"{}", good.replace(b'"evenlane":1', b'"evenlane":2')]
    for part in (b'"key":"', b'"payload":"', b'"sig":"'):
        start = good.index(part) + len(part)
        end = good.index(b'"', start)
        for at in (start, end - 1, *(rng.randrange(start, end) for _ in range(6))):
            lines.append(good[:at] + bytes([rng.choice(alphabet)]) + good[at + 1 :])
        lines += [good[: end - 1] + good[end:], good[:end] + b"A" + good[end:], good[:end] + b"=" + good[end:]]
    _, verdicts = verify(tmp_path, lines)
    here = ["good" if is_good_here(line) else "BAD" for line in lines]
    assert [verdict.split()[0] for verdict in verdicts] == here
    assert here[0] == "good"
    assert here.count("good") <= 3  # the undamaged one, and a draw that happened to change nothing


@needs_openssl
def test_both_refuse_forgers_points(tmp_path):
    """A key of small order verifies one signature over every message: neither program may take it."""
    payload = json.dumps({"type": "receipt", "v": 1}).encode()
    lines = []
    for y in sorted({*ed25519._SMALL_ORDER_Y, *(2**255 - 19 + extra for extra in (0, 1, 2, 18))}):
        for sign in (0, 1 << 255):
            point = (y | sign).to_bytes(32, "little")
            honest = SeedSigner(bytes(32), "python")
            lines.append(to_line(Envelope(payload=payload, key=point, signature=point + bytes(32))))
            lines.append(to_line(Envelope(payload=payload, key=honest.public_key, signature=point + bytes(32))))
    code, verdicts = verify(tmp_path, lines)
    assert code == 1
    assert set(verdicts) == {"BAD key or signature of a forger's shape"}
    assert not any(is_good_here(line) for line in lines)


@needs_openssl
def test_the_largest_payload_can_be_verified(tmp_path):
    signer = SeedSigner(b"\7" * 32)
    plan = open_record(from_line((ROOT / "tests/contract/golden/plan.jsonl").read_bytes()))
    assert isinstance(plan, Plan)
    profiles = tuple(PlannedProfile(id=f"app{number}", document="x" * 31_000) for number in range(46))
    whole = seal(Plan(**{**{f: getattr(plan, f) for f in plan.__dataclass_fields__}, "profiles": profiles}), signer)
    assert len(whole.payload) > 1_400_000
    broken = Envelope(payload=whole.payload[:-1] + b" ", key=key_bytes(whole.key_id), signature=whole.signature)
    code, verdicts = verify(tmp_path, [to_line(whole), to_line(broken)])
    assert (code, [verdict.split()[0] for verdict in verdicts]) == (1, ["good", "BAD"])


def test_it_says_what_it_lacks(tmp_path):
    usage = subprocess.run(["sh", SCRIPT], capture_output=True, text=True)
    assert (usage.returncode, "usage:" in usage.stderr) == (2, True)
    missing = subprocess.run(["sh", SCRIPT, tmp_path / "none"], capture_output=True, text=True)
    assert missing.returncode == 2
    for name in ("sh", "cat", "mktemp"):
        os.symlink(shutil.which(name), tmp_path / name)
    bare = subprocess.run(
        [tmp_path / "sh", SCRIPT, GOLDEN[0]], capture_output=True, text=True, env={"PATH": str(tmp_path)}
    )
    assert (bare.returncode, "OpenSSL 3.0" in bare.stderr) == (3, True)
