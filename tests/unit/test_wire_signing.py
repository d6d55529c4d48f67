# SPDX-License-Identifier: EUPL-1.2
"""Signers give RFC 8032's bytes, agree with each other and never lose a key."""

import importlib.util
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.wire import ed25519, signing
from probe.wire.codec import WireError
from probe.wire.signing import SeedSigner, key_bytes, load_or_create, verify

# RFC 8032, section 7.1: seed, public key, message, signature (TEST 1, 2, 3 and SHA(abc)).
VECTORS = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    (
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
        "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b589"
        "09351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ),
]

needs_pynacl = pytest.mark.skipif(importlib.util.find_spec("nacl") is None, reason="PyNaCl is not installed")
BACKENDS = ["python", "cryptography", pytest.param("pynacl", marks=needs_pynacl)]
PRESENT = ["python", "cryptography"] + (["pynacl"] if importlib.util.find_spec("nacl") else [])
ORDER = 2**252 + 27742317777372353535851937790883648493
PRIME = 2**255 - 19


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("seed", "public", "message", "signature"), VECTORS)
def test_rfc_8032_vectors(backend, seed, public, message, signature):
    signer = SeedSigner(bytes.fromhex(seed), backend)
    assert signer.public_key.hex() == public
    assert signer.sign(bytes.fromhex(message)).hex() == signature
    assert verify(bytes.fromhex(public), bytes.fromhex(message), bytes.fromhex(signature), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_changed_byte_is_refused(backend):
    seed, public, message, signature = (bytes.fromhex(part) for part in VECTORS[2])
    for index in range(0, 64, 7):
        wrong = bytearray(signature)
        wrong[index] ^= 0x40
        assert not verify(public, message, bytes(wrong), backend)
    assert not verify(public, message + b"x", signature, backend)
    assert not verify(SeedSigner(b"\1" * 32).public_key, message, signature, backend)
    assert seed


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_spelling_of_a_signature_is_refused(backend):
    """S + L verifies under a lax check; RFC 8032 section 5.1.7 demands S < L (else ids could be forged)."""
    _, public, message, signature = (bytes.fromhex(part) for part in VECTORS[1])
    s = int.from_bytes(signature[32:], "little") + ORDER
    assert not verify(public, message, signature[:32] + s.to_bytes(32, "little"), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("key", "signature"), [(b"", b""), (b"\0" * 31, b"\0" * 64), (b"\xff" * 32, b"\0" * 64)])
def test_malformed_keys_and_signatures_are_false_not_errors(backend, key, signature):
    assert verify(key, b"", signature, backend) is False


def verdicts(public, message, signature):
    return {backend: verify(public, message, signature, backend) for backend in PRESENT}


def unanimous(public, message, signature):
    found = verdicts(public, message, signature)
    assert len(set(found.values())) == 1, found
    return found["python"]


def signed_by_hand(secret, key, commitment, nonce, message):
    """A signature that solves the equation for key and commitment as they are written, whatever they are."""
    s = (nonce + ed25519._challenge(commitment, key, message) * secret) % ORDER
    return commitment + s.to_bytes(32, "little")


def torsion_points():
    """The eight points whose order divides 8."""
    y = ed25519._ORDER_8_Y
    x = ed25519._recover_x(y, 0)
    point = (x, y, 1, x * y % PRIME)
    found = [ed25519._IDENTITY]
    for _ in range(7):
        found.append(ed25519._add(found[-1], point))
    return found


def test_the_points_of_small_order_are_the_eight_there_are():
    points = torsion_points()
    assert len({ed25519._compress(point) for point in points}) == 8
    assert ed25519._compress(ed25519._add(points[7], points[1])) == ed25519._compress(ed25519._IDENTITY)
    ys = {int.from_bytes(ed25519._compress(point), "little") & (1 << 255) - 1 for point in points}
    assert ys == ed25519._SMALL_ORDER_Y


def spellings(raw):
    """A point's bytes, the same with the other sign, and with y + p where that fits into 255 bits."""
    value = int.from_bytes(raw, "little")
    y, sign = value & (1 << 255) - 1, value >> 255
    ys = [y] if y + PRIME >= 1 << 255 else [y, y + PRIME]
    return [(one | either << 255).to_bytes(32, "little") for one in ys for either in (sign, 1 - sign)]


@pytest.mark.parametrize("which", range(8))
def test_a_key_of_small_order_signs_nothing(which):
    """With such a key S = 0 and R = identity verify (nearly) any message under a lax check."""
    identity = ed25519._compress(ed25519._IDENTITY)
    for raw in spellings(ed25519._compress(torsion_points()[which])):
        for message in (b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h"):
            for commitment in (identity, raw):
                assert unanimous(raw, message, commitment + bytes(32)) is False


@pytest.mark.parametrize("which", range(8))
def test_a_commitment_of_small_order_is_refused(which):
    secret, _ = ed25519._expand(b"\5" * 32)
    key = ed25519._compress(ed25519._multiply(secret, ed25519._BASE))
    commitment = ed25519._compress(torsion_points()[which])
    signature = signed_by_hand(secret, key, commitment, 0, b"message")
    assert unanimous(key, b"message", signature) is False


@pytest.mark.parametrize("y", range(19))
@pytest.mark.parametrize("sign", [0, 1])
def test_second_spellings_of_points_are_refused(y, sign):
    """The encodings with p <= y < 2^255, as a key and as a commitment."""
    raw = (PRIME + y | sign << 255).to_bytes(32, "little")
    signer = SeedSigner(b"\5" * 32, "python")
    assert unanimous(raw, b"message", raw + bytes(32)) is False
    assert unanimous(signer.public_key, b"message", raw + signer.sign(b"message")[32:]) is False


def test_keys_of_mixed_order_get_one_verdict():
    """A forger may add a point of order 8 to his key or commitment: with the cofactor all of these verify, without
    it only some do. What counts is that all backends say the same."""
    secret, _ = ed25519._expand(b"\6" * 32)
    honest = ed25519._multiply(secret, ed25519._BASE)
    seen = set()
    for number, torsion in enumerate(torsion_points()):
        key = ed25519._compress(ed25519._add(honest, torsion))
        for nonce in range(1000, 1012):
            bare = ed25519._multiply(nonce, ed25519._BASE)
            for commitment in (bare, ed25519._add(bare, torsion)):
                message = b"%d %d" % (number, nonce)
                signature = signed_by_hand(secret, key, ed25519._compress(commitment), nonce, message)
                seen.add((number > 0, unanimous(key, message, signature)))
    # Mixed order: accepted sometimes (the slow path of PyNaCl says yes, too), refused sometimes.
    assert seen == {(False, True), (True, True), (True, False)}


@settings(max_examples=60)
@given(
    seed=st.binary(min_size=32, max_size=32),
    message=st.binary(max_size=100),
    at=st.integers(0, 8 * 96 - 1),
    make=st.sampled_from(PRESENT),
)
def test_any_one_bit_of_key_or_signature_decides_for_all_alike(seed, message, at, make):
    signer = SeedSigner(seed, make)
    signature = signer.sign(message)
    assert unanimous(signer.public_key, message, signature) is True
    changed = bytearray(signer.public_key + signature)
    changed[at // 8] ^= 1 << at % 8
    assert unanimous(bytes(changed[:32]), message, bytes(changed[32:])) is False


@settings(max_examples=60)
@given(key=st.binary(min_size=32, max_size=32), signature=st.binary(min_size=64, max_size=64))
def test_any_bytes_get_one_verdict(key, signature):
    assert unanimous(key, b"", signature) is False


@pytest.mark.parametrize("change", [ORDER, 2 * ORDER, 7 * ORDER])
def test_no_multiple_of_the_order_makes_another_signature(change):
    signer = SeedSigner(b"\5" * 32, "python")
    signature = signer.sign(b"message")
    s = int.from_bytes(signature[32:], "little") + change
    assert unanimous(signer.public_key, b"message", signature[:32] + s.to_bytes(32, "little")) is False


def test_backends_agree_on_many_messages():
    for index in range(8):
        seed = bytes([index]) * 32
        message = bytes(range(index * 20))
        signed = {SeedSigner(seed, backend).sign(message) for backend in PRESENT}
        assert len(signed) == 1


def test_a_key_file_is_made_once_private_and_kept(tmp_path):
    path = tmp_path / "state" / "key"
    first = load_or_create(path)
    assert load_or_create(path).public_key == first.public_key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "key" in {entry.name for entry in path.parent.iterdir()}
    assert len(list(path.parent.iterdir())) == 1, "no temporary file is left"
    assert ed25519.public_key(bytes.fromhex(path.read_text())) == first.public_key


def test_a_damaged_key_file_is_said_not_replaced(tmp_path):
    path = tmp_path / "key"
    path.write_text("garbage")
    with pytest.raises(ValueError, match="is not a key file"):
        load_or_create(path)
    assert path.read_text() == "garbage"


def test_the_seed_is_never_shown():
    signer = SeedSigner(b"\7" * 32)
    assert (b"\7" * 32).hex() not in repr(signer)
    assert key_bytes(signer.key_id) == signer.public_key


@pytest.mark.parametrize("key_id", ["", "A" * 43 + "=", "A" * 42 + "B", "A" * 44, "é" * 43])
def test_a_wrong_key_id_is_refused(key_id):
    with pytest.raises(WireError):
        key_bytes(key_id)


def test_a_process_may_prefer_a_backend(monkeypatch):
    monkeypatch.setattr(signing, "_preferred", [])
    assert SeedSigner(b"\1" * 32).backend == "cryptography"
    signing.prefer("python")
    assert SeedSigner(b"\1" * 32).backend == "python"
    assert SeedSigner(b"\1" * 32, "cryptography").backend == "cryptography"
