# SPDX-License-Identifier: EUPL-1.2
"""Reads app profiles from files and from a plan's documents, with the same checks and the same digest.

Whatever is wrong is named by the path of its key. Spec: spec/profiles.md, sections "File" and "In a plan".
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import tomllib
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from probe.profiles import browser, firstbytes
from probe.profiles.schema import NAMED, NEUTRAL, AppFile, BytesCarrier, NeutralPool, ProfileError
from probe.wire.codec import WireError, dumps, from_dict, loads
from probe.wire.limits import MAX_ANSWER, MAX_FLIGHT, MAX_HEAD, MAX_PROFILE
from probe.wire.records import Carrier

T = TypeVar("T")


@cache
def _hints(cls: type) -> dict[str, Any]:
    # Most of the time that reading a profile takes, and a router has little to spare.
    return get_type_hints(cls)


def parse(cls: type[T], content: str, source: str) -> T:
    """Read an AppFile or NeutralPool from TOML; each wrong key is named by its path. Raises ProfileError."""
    try:
        document = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"{source}: not TOML: {error}") from None
    return _read(cls, document, source)


def document_of(content: str, source: str) -> str:
    """A TOML file as the document that a plan delivers: canonical JSON. Raises ProfileError."""
    parse(NeutralPool if source == f"{NEUTRAL}.toml" else AppFile, content, source)
    document = dumps(tomllib.loads(content)).decode()
    if len(document) > MAX_PROFILE:
        raise ProfileError(f"{source}: longer than the {MAX_PROFILE} characters that a plan carries")
    return document


def parse_document(cls: type[T], document: str, source: str) -> T:
    """Read an AppFile or NeutralPool from a plan's document: the checks of a file and the same digest."""
    try:
        plain = loads(document.encode(), longest=MAX_PROFILE)
    except (WireError, UnicodeEncodeError) as error:
        raise ProfileError(f"{source}: {error}") from None
    if not isinstance(plain, dict) or dumps(plain) != document.encode():
        raise ProfileError(f"{source}: is not canonical JSON, so that its digest would say nothing")
    return _read(cls, plain, source)


def _read(cls: type[T], document: dict[str, Any], source: str) -> T:
    stray = _unknown_key(cls, document, "")
    if stray:
        raise ProfileError(f"{source}: {stray}: unknown key")
    for key, value in document.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ProfileError(f"{source}: {key}: must be a finite number")
    if "digest" in document:
        raise ProfileError(f"{source}: digest: is computed and cannot be set")
    try:
        record = from_dict(cls, document)
    except WireError as error:
        raise ProfileError(f"{source}: {error}") from None
    _refuse_empty_and_double(record, document, source, "")
    if isinstance(record, AppFile):
        _check_carriers(record, source)
    return dataclasses.replace(record, digest=hashlib.sha256(dumps(document)).hexdigest())  # type: ignore[type-var]


def _unknown_key(cls: type, document: dict[str, Any], path: str) -> str | None:
    # The wire's codec tolerates unknown fields on purpose; in a file written by hand they are typing errors.
    hints = _hints(cls)
    for key, value in document.items():
        here = f"{path}.{key}" if path else key
        if key not in hints:
            return here
        inner = _record_type(hints[key])
        if inner is not None and isinstance(value, dict):
            found = _unknown_key(inner, value, here)
            if found:
                return found
    return None


def _record_type(hint: Any) -> type | None:
    """The dataclass that a field holds, if it does; `X | None` counts."""
    for candidate in (hint, *get_args(hint)):
        if dataclasses.is_dataclass(candidate) and isinstance(candidate, type):
            return candidate
    return None


def _refuse_empty_and_double(record: Any, document: dict[str, Any], source: str, path: str) -> None:
    """A list that is written must hold something, and nothing twice; first bytes may repeat a word."""
    for name, hint in _hints(type(record)).items():  # type: ignore[arg-type]
        if name not in document:
            continue
        here, value = path + name, getattr(record, name)
        if get_origin(hint) is tuple:
            if not value:
                raise ProfileError(f"{source}: {here}: must not be empty")
            if len(set(value)) != len(value) and not isinstance(record, BytesCarrier):
                raise ProfileError(f"{source}: {here}: holds an item twice")
        elif _record_type(hint) is not None:
            _refuse_empty_and_double(value, document[name], source, f"{here}.")


def _check_carriers(file: AppFile, source: str) -> None:
    if file.carrier not in NAMED and getattr(file.carriers, file.carrier) is None:
        raise ProfileError(f"{source}: carriers.{file.carrier}: missing")
    live = file.live.carrier if file.live is not None else file.carrier
    if live != file.carrier and getattr(file.carriers, live) is None:
        raise ProfileError(f"{source}: live.carrier: the app has no carrier {live}")
    for profile in file.profiles().values():
        here = f"carriers.{profile.carrier}"
        own = profile.carrier == file.carrier
        if profile.carrier in NAMED:
            for key in ("names", "alpn"):
                if not getattr(profile, key):
                    raise ProfileError(f"{source}: {key if own else f'{here}.{key}'}: missing")
            if len({name.split(".", name.count(".") - 1)[-1] for name in profile.names}) > 1:
                raise ProfileError(f"{source}: {'' if own else f'{here}.'}names: lie under more than one domain")
            if (profile.carrier != "tls") != (profile.shape in browser.shapes()):
                known = ", ".join(sorted(browser.shapes()))
                what = f"must be one of {known}" if profile.carrier != "tls" else "the probe's own TLS has none"
                raise ProfileError(f"{source}: {here}.shape: {what}")
        if profile.bytes is not None:
            _check_bytes(profile.bytes, profile.carrier, f"{source}: {here}")


def _check_bytes(words: BytesCarrier, carrier: Carrier, where: str) -> None:
    known: dict[str, int] = {}
    for key, most in (("flight", MAX_FLIGHT), ("answer", MAX_ANSWER), ("head", MAX_HEAD)):
        try:
            parts = firstbytes.read(getattr(words, key), known)
        except firstbytes.WordError as error:
            raise ProfileError(f"{where}.{key}: {error}") from None
        length = firstbytes.size(parts)
        if length > most or (parts and not length):
            raise ProfileError(f"{where}.{key}: {length} bytes; between 1 and {most} can be sent")
        if key == "flight" and carrier == "stream" and parts[0].literal[:1] in {b"", b"\x16"}:
            # The reflector tells streams from TLS by the first byte, so it may not be left to chance.
            raise ProfileError(f"{where}.flight: must begin with written bytes, and not with 16, which is TLS")
    if bool(words.head) != (carrier == "datagram"):
        raise ProfileError(f"{where}.head: belongs to datagrams, and each kind of datagram has one")
