# SPDX-License-Identifier: EUPL-1.2
"""Ed25519 in plain Python, for probes without a compiled library. Follows RFC 8032, sections 5.1.5 to 5.1.7.

Not constant-time: on the probe it signs its own measurements, once a session, and nobody can time it closely.
Verification is strict where libraries differ from each other (`is_canonical`), and without a cofactor, as OpenSSL's.
"""

from __future__ import annotations

import hashlib
from typing import Final

_P: Final = 2**255 - 19
_L: Final = 2**252 + 27742317777372353535851937790883648493
_D: Final = -121665 * pow(121666, _P - 2, _P) % _P
_SQRT_M1: Final = pow(2, (_P - 1) // 4, _P)

# Extended homogeneous coordinates (X, Y, Z, T) with x = X/Z, y = Y/Z, x*y = T/Z (section 5.1.4).
_Point = tuple[int, int, int, int]
_IDENTITY: Final[_Point] = (0, 1, 1, 0)


def _add(p: _Point, q: _Point) -> _Point:
    a = (p[1] - p[0]) * (q[1] - q[0]) % _P
    b = (p[1] + p[0]) * (q[1] + q[0]) % _P
    c = 2 * p[3] * q[3] * _D % _P
    d = 2 * p[2] * q[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _double(p: _Point) -> _Point:
    a = p[0] * p[0] % _P
    b = p[1] * p[1] % _P
    c = 2 * p[2] * p[2] % _P
    h = a + b
    e = h - (p[0] + p[1]) ** 2
    g = a - b
    f = c + g
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _multiply(scalar: int, point: _Point) -> _Point:
    result = _IDENTITY
    while scalar:
        if scalar & 1:
            result = _add(result, point)
        point = _double(point)
        scalar >>= 1
    return result


def _recover_x(y: int, sign: int) -> int | None:
    if y >= _P:
        return None
    square = (y * y - 1) * pow(_D * y * y + 1, _P - 2, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * _SQRT_M1 % _P
    if (x * x - square) % _P or (x == 0 and sign):
        return None
    return _P - x if x & 1 != sign else x


_BASE_Y: Final = 4 * pow(5, _P - 2, _P) % _P
_BASE_X: Final = _recover_x(_BASE_Y, 0) or 0
_BASE: Final[_Point] = (_BASE_X, _BASE_Y, 1, _BASE_X * _BASE_Y % _P)


def _compress(point: _Point) -> bytes:
    inverse = pow(point[2], _P - 2, _P)
    x, y = point[0] * inverse % _P, point[1] * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def _decompress(raw: bytes) -> _Point | None:
    value = int.from_bytes(raw, "little")
    y = value & (1 << 255) - 1
    x = _recover_x(y, value >> 255)
    return None if x is None else (x, y, 1, x * y % _P)


def _expand(seed: bytes) -> tuple[int, bytes]:
    digest = hashlib.sha512(seed).digest()
    scalar = int.from_bytes(digest[:32], "little") & (1 << 254) - 8 | 1 << 254
    return scalar, digest[32:]


def _challenge(*parts: bytes) -> int:
    return int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little") % _L


_ORDER_8_Y: Final = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER_Y: Final = frozenset({0, 1, _P - 1, _ORDER_8_Y, _P - _ORDER_8_Y})
"""y of the eight points whose order divides the cofactor (each but the first two with either sign of x)."""


def _is_canonical_point(raw: bytes) -> bool:
    y = int.from_bytes(raw, "little") & (1 << 255) - 1
    return y < _P and y not in _SMALL_ORDER_Y


def is_canonical(public: bytes, signature: bytes) -> bool:
    """Whether key (32 bytes) and signature (64 bytes) are written as every honest signer writes them. Cheap.

    RFC 8032 leaves open, and libraries decide differently, what becomes of points of small order (such a key verifies
    one signature over every message) and of second spellings of a point or of S, so all of them are refused first.
    """
    return (
        len(public) == 32
        and len(signature) == 64
        and int.from_bytes(signature[32:], "little") < _L
        and _is_canonical_point(public)
        and _is_canonical_point(signature[:32])
    )


def public_key(seed: bytes) -> bytes:
    """Public key (32 bytes) of a 32-byte seed (section 5.1.5)."""
    return _compress(_multiply(_expand(seed)[0], _BASE))


def sign(seed: bytes, message: bytes, public: bytes) -> bytes:
    """Signature (64 bytes) of `message` (section 5.1.6). `public` must be the seed's own public key."""
    scalar, prefix = _expand(seed)
    r = _challenge(prefix, message)
    commitment = _compress(_multiply(r, _BASE))
    s = (r + _challenge(commitment, public, message) * scalar) % _L
    return commitment + s.to_bytes(32, "little")


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is valid (section 5.1.7, the equation without the cofactor) and canonical."""
    if not is_canonical(public, signature):
        return False
    s = int.from_bytes(signature[32:], "little")
    key, commitment = _decompress(public), _decompress(signature[:32])
    if key is None or commitment is None:
        return False
    left = _multiply(s, _BASE)
    right = _add(commitment, _multiply(_challenge(signature[:32], public, message), key))
    return (left[0] * right[2] - right[0] * left[2]) % _P == 0 and (left[1] * right[2] - right[1] * left[2]) % _P == 0
