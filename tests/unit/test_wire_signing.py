# SPDX-License-Identifier: EUPL-1.2
"""Signers give RFC 8032's bytes, agree with each other and never lose a key."""

import importlib.util
import stat

import pytest

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
BACKENDS = ["python", "cryptography"] + (["pynacl"] if importlib.util.find_spec("nacl") else [])
ORDER = 2**252 + 27742317777372353535851937790883648493


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


def test_backends_agree_on_many_messages():
    for index in range(8):
        seed = bytes([index]) * 32
        message = bytes(range(index * 20))
        signed = {SeedSigner(seed, backend).sign(message) for backend in BACKENDS}
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
