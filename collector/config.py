# SPDX-License-Identifier: EUPL-1.2
"""What a collector is told: defaults and one TOML file, validated whole at the start.

Every wrong key is named by its path, all of them at once, so that a file is repaired in one go.
Spec: spec/api.md, section "Configuration".
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from probe.wire.codec import WireError
from probe.wire.signing import key_bytes

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class ConfigError(ValueError):
    """The configuration cannot be used; `problems` are sentences that begin with the path of a key."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(f"{source} is wrong: {'; '.join(problems)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorEntry:
    """One line of the register that people keep. `timezone` None means its country's, else the default."""

    id: str
    brand: str = ""
    asns: tuple[int, ...] = ()
    country: str | None = None
    timezone: str | None = None
    cgnat: bool = False
    """Its fixed lines share addresses behind carrier-grade NAT."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InfluxSink:
    """Where the outbox writes points."""

    url: str
    token: str
    org: str
    bucket: str

    def __repr__(self) -> str:
        return f"InfluxSink({self.url}, org={self.org}, bucket={self.bucket})"  # never the token


@dataclass(frozen=True, slots=True, kw_only=True)
class GrafanaSink:
    """Where the outbox writes annotations."""

    url: str
    token: str

    def __repr__(self) -> str:
        return f"GrafanaSink({self.url})"  # never the token


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything a collector may be told; the defaults suit one machine."""

    data: Path = Path("collector-data")
    host: str = "127.0.0.1"
    port: int = 8080
    name: str = "an evenlane collector (its configuration has no name)"
    """Shown to volunteers before they enrol."""
    contact: str = "not told (its configuration has no contact)"
    """Whom a volunteer asks: an address of mail or a page."""
    key_file: Path | None = None
    """The collector's own key; None means `key` in the data directory, made at the first start."""
    enrolment: Literal["open", "token", "closed"] = "open"
    """Who may enrol: anybody, whoever has a token, nobody new."""
    reflectors: tuple[str, ...] = ()
    """Key ids whose receipts and started pairs are believed."""
    publish: Literal["auto"] = "auto"
    """auto: a case is public as soon as it is open."""
    public_url: str | None = None
    """Where readers reach this collector, for permanent addresses; None means relative ones."""
    trusted_proxies: tuple[Network, ...] = ()
    """Whose `X-Forwarded-For` is believed, for rate limits in memory alone."""
    uploads_per_minute: int = 1200
    """Requests that write, per client network (/32 or /48); 0 means no limit."""
    timezone: str | None = None
    """Where neither the operator nor its country tells; None means UTC, and the verdict says that none is known."""
    timezones: tuple[tuple[str, str], ...] = ()
    """Country code and IANA zone."""
    operators: tuple[OperatorEntry, ...] = ()
    influx: InfluxSink | None = None
    grafana: GrafanaSink | None = None

    def zone_of(self, operator: str, country: str | None) -> str | None:
        """The IANA zone that was told for an operator or its country; None where none was."""
        for entry in self.operators:
            if entry.id == operator and entry.timezone is not None:
                return entry.timezone
        return dict(self.timezones).get(country or "")


_MISSING: Final = object()


class _Table:
    """One TOML table that is read key by key; what is wrong or left over is collected with its path."""

    def __init__(self, value: dict[str, Any], path: str, problems: list[str], where: Path) -> None:
        self._left = dict(value)
        self._path = path
        self._problems = problems
        self._where = where

    def key(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def wrong(self, name: str, problem: str) -> None:
        self._problems.append(f"{self.key(name)} {problem}")

    def take(self, name: str, default: Any, check: Callable[[Any], Any]) -> Any:
        """The value of a key passed through `check`, which raises ValueError with what it must be."""
        value = self._left.pop(name, _MISSING)
        if value is _MISSING:
            if default is _MISSING:
                self.wrong(name, "is missing")
                return None
            return default
        try:
            return check(value)
        except ValueError as error:
            self.wrong(name, str(error))
            return default if default is not _MISSING else None

    def list_of(self, name: str, check: Callable[[Any], Any]) -> tuple[Any, ...]:
        value = self._left.pop(name, [])
        if not isinstance(value, list):
            self.wrong(name, "must be a list")
            return ()
        found = []
        for index, item in enumerate(value):
            try:
                found.append(check(item))
            except ValueError as error:
                self.wrong(f"{name}[{index}]", str(error))
        return tuple(found)

    def table(self, name: str) -> _Table | None:
        value = self._left.pop(name, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.wrong(name, "must be a table")
            return None
        return _Table(value, self.key(name), self._problems, self._where)

    def tables(self, name: str) -> list[_Table]:
        value = self._left.pop(name, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            self.wrong(name, f"must be tables, [[{self.key(name)}]]")
            return []
        return [_Table(v, f"{self.key(name)}[{i}]", self._problems, self._where) for i, v in enumerate(value)]

    def rest(self) -> dict[str, Any]:
        left, self._left = self._left, {}
        return left

    def secret(self) -> str:
        """`token`, or the first line of the file that `token_file` names (relative to the configuration)."""
        token = self.take("token", "", _text)
        named = self.take("token_file", "", _text)
        if bool(token) == bool(named):
            self.wrong("token", "must be given, or token_file instead")
            return ""
        if token:
            return str(token)
        try:
            return (self._where / str(named)).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            self.wrong("token_file", "cannot be read")
            return ""

    def end(self) -> None:
        for name in self._left:
            self.wrong(name, "is not a key that is known here")


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or any(ord(char) < 32 for char in value):
        raise ValueError("must be a text that is not empty")
    return value


def _label(value: Any) -> str:
    if len(_text(value)) > 128:
        raise ValueError("must have at most 128 characters")
    return str(value)


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return value

    return check


def _key_id(value: Any) -> str:
    try:
        key_bytes(_text(value))
    except (WireError, ValueError):
        raise ValueError("is not a key id (43 characters of base64url)") from None
    return str(value)


def _network(value: Any) -> Network:
    try:
        return ipaddress.ip_network(_text(value), strict=False)
    except ValueError:
        raise ValueError("is not an address or a network such as 10.0.0.0/8") from None


def _zone(value: Any) -> str:
    try:
        ZoneInfo(_text(value))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            "is not a time zone that this system knows, such as Europe/Brussels (package tzdata)"
        ) from None
    return str(value)


def _country(value: Any) -> str:
    if not isinstance(value, str) or re.fullmatch(r"[A-Z]{2}", value) is None:
        raise ValueError("is not a country code such as NL")
    return value


def _url(value: Any) -> str:
    if re.fullmatch(r"https?://[^\s/]+\S*", _text(value)) is None:
        raise ValueError("must begin with http:// or https://")
    return str(value).rstrip("/")


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _publish(value: Any) -> Literal["auto"]:
    if value != "auto":
        raise ValueError('must be "auto" (a case is public as soon as it is open)')
    return "auto"


def _enrolment(value: Any) -> Literal["open", "token", "closed"]:
    if value not in ("open", "token", "closed"):
        raise ValueError('must be "open", "token" (whoever has one) or "closed" (nobody new)')
    return value  # type: ignore[no-any-return]


def _influx(table: _Table | None) -> InfluxSink | None:
    if table is None:
        return None
    url, token = table.take("url", _MISSING, _url), table.secret()
    org, bucket = table.take("org", _MISSING, _text), table.take("bucket", _MISSING, _text)
    table.end()
    return InfluxSink(url=url, token=token, org=org, bucket=bucket)


def _grafana(table: _Table | None) -> GrafanaSink | None:
    if table is None:
        return None
    found = GrafanaSink(url=table.take("url", _MISSING, _url), token=table.secret())
    table.end()
    return found


def _operators(tables: list[_Table]) -> tuple[OperatorEntry, ...]:
    found: list[OperatorEntry] = []
    names: set[str] = set()
    numbers: set[int] = set()
    for table in tables:
        entry = OperatorEntry(
            id=table.take("id", _MISSING, _label),
            brand=table.take("brand", "", _label),
            asns=table.list_of("asns", _integer(0, 2**32 - 1)),
            country=table.take("country", None, _country),
            timezone=table.take("timezone", None, _zone),
            cgnat=table.take("cgnat", False, _flag),
        )
        table.end()
        if entry.id in names:
            table.wrong("id", "is used twice")
        names.add(entry.id)
        for number in entry.asns:
            if number in numbers:
                table.wrong("asns", f"has {number}, which another operator has")
            numbers.add(number)
        found.append(entry)
    return tuple(found)


def _timezones(table: _Table | None) -> tuple[tuple[str, str], ...]:
    if table is None:
        return ()
    found = []
    for country, zone in table.rest().items():
        try:
            found.append((_country(country), _zone(zone)))
        except ValueError as error:
            table.wrong(country, str(error))
    return tuple(sorted(found))


def from_dict(value: dict[str, Any], *, source: str = "the configuration", where: Path = Path()) -> Config:
    """Validate plain TOML values. Raises ConfigError with every problem at once."""
    problems: list[str] = []
    top = _Table(value, "", problems, where)
    plain = Config()
    config = Config(
        data=top.take("data", plain.data, lambda v: where / _text(v)),
        host=top.take("host", plain.host, _text),
        port=top.take("port", plain.port, _integer(0, 65535)),
        name=top.take("name", plain.name, _label),
        contact=top.take("contact", plain.contact, _label),
        key_file=top.take("key_file", None, lambda v: where / _text(v)),
        enrolment=top.take("enrolment", plain.enrolment, _enrolment),
        reflectors=top.list_of("reflectors", _key_id),
        publish=top.take("publish", plain.publish, _publish),
        public_url=top.take("public_url", None, _url),
        trusted_proxies=top.list_of("trusted_proxies", _network),
        uploads_per_minute=top.take("uploads_per_minute", plain.uploads_per_minute, _integer(0, 10_000_000)),
        timezone=top.take("timezone", plain.timezone, _zone),
        timezones=_timezones(top.table("timezones")),
        operators=_operators(top.tables("operators")),
        influx=_influx(top.table("influx")),
        grafana=_grafana(top.table("grafana")),
    )
    top.end()
    if problems:
        raise ConfigError(source, problems)
    return config


def load(path: Path) -> Config:
    """Read a configuration file; relative paths in it are relative to it. Raises ConfigError."""
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(str(path), [f"it cannot be read ({(error.strerror or 'unknown reason').lower()})"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"it is not TOML ({error})"]) from None
    return from_dict(value, source=str(path), where=path.parent)
