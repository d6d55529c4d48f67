# SPDX-License-Identifier: EUPL-1.2
"""Scenario files: an emulated operator as TOML, read strictly into lab.model.

Whatever is not understood is refused by its path, because a rule that is silently ignored would make the lab
say that an operator was caught doing nothing. The format is in spec/lab.md section 1.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast

from lab.classify import PAYLOADS, Direction, Match
from lab.model import (
    ACTIONS,
    EFFECTS,
    NATS,
    PATTERNS,
    TCP_OPTIONS,
    Action,
    CrossTraffic,
    Family,
    Link,
    Nat,
    Pattern,
    Rule,
    Scenario,
)

MAX_RULES: Final = 64
MAX_NAME: Final = 64
MAX_MBPS: Final = 100_000.0
_COMMON: Final = ("match", "action", "after_kb", "linger_s", "hours", "share", "flows")
_RATES: Final = ("down_mbps", "up_mbps", "burst_kb")
_KEYS_OF: Final[dict[str, tuple[str, ...]]] = {
    "police": _RATES,
    "shape": (*_RATES, "buffer_ms"),
    "delay": ("delay_ms",),
    "drop": ("loss",),
    "dscp": ("dscp",),
    "strip_option": ("option",),
    "dns": ("answer",),
    "http_header": ("header",),
    "alter": ("packets",),
}
_REQUIRED: Final[dict[str, tuple[str, ...]]] = {
    "delay": ("delay_ms",),
    "drop": ("loss",),
    "dscp": ("dscp",),
    "strip_option": ("option",),
    "dns": ("answer",),
    "http_header": ("header",),
    "alter": ("packets",),
}
_HEADER: Final = re.compile(r"[A-Za-z0-9-]{1,64}: [\x20-\x7e]{0,190}")


class ScenarioError(ValueError):
    """A scenario file cannot be used; the message names the key by its path."""


class Table:
    """A TOML table that is asked for its keys and afterwards says which ones nobody asked for."""

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, Mapping):
            raise ScenarioError(f"{path or 'the file'}: must be a table")
        self._values = value
        self._path = path
        self._asked: set[str] = set()

    def path(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def refuse(self, key: str, why: str) -> ScenarioError:
        return ScenarioError(f"{self.path(key)}: {why}")

    def get(self, key: str) -> Any:
        self._asked.add(key)
        return self._values.get(key)

    def has(self, key: str) -> bool:
        return key in self._values

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """A finite number within [low, high]."""
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.refuse(key, f"must be a number, not {value!r}")
        if not low <= value <= high:
            raise self.refuse(key, f"must be between {low:g} and {high:g}, not {value:g}")
        return float(value)

    def rate(self, key: str) -> float | None:
        """A rate in Mbit/s, None where it is absent."""
        return self.number(key, 0.0, 0.001, MAX_MBPS) if self.has(key) else self.get(key)

    def text(self, key: str, choices: tuple[str, ...] = ()) -> str | None:
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not value:
            raise self.refuse(key, f"must be a text, not {value!r}")
        if choices and value not in choices:
            raise self.refuse(key, f"must be one of {', '.join(choices)}, not {value!r}{_suggest(value, choices)}")
        return value

    def texts(self, key: str, choices: tuple[str, ...] = ()) -> tuple[str, ...] | None:
        """A text or an array of texts."""
        value = self.get(key)
        if value is None:
            return None
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(one, str) and one for one in values):
            raise self.refuse(key, f"must be a text or an array of texts, not {value!r}")
        for one in values:
            if choices and one not in choices:
                raise self.refuse(key, f"must be one of {', '.join(choices)}, not {one!r}{_suggest(one, choices)}")
        return tuple(values)

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.refuse(key, f"must be true or false, not {value!r}")
        return bool(value)

    def finish(self) -> None:
        """Refuse the first key that was not asked for."""
        for key in self._values:
            if key not in self._asked:
                raise self.refuse(key, f"unknown key{_suggest(key, tuple(self._asked))}")


def _suggest(word: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def load(path: str | Path) -> Scenario:
    """Read a scenario file; raises ScenarioError with one sentence that names file and key."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        return from_table(tomllib.loads(text))
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ScenarioError(f"{path}: is not valid TOML ({error})") from error
    except ScenarioError as error:
        raise ScenarioError(f"{path}: {error}") from error


def from_table(table: Mapping[str, Any]) -> Scenario:
    """A scenario from a parsed TOML document."""
    top = Table(table, "")
    name = top.text("name")
    if name is None:
        raise top.refuse("name", "is missing; give the operator a name")
    if len(name) > MAX_NAME or not name.isprintable():
        raise top.refuse("name", f"must be printable and at most {MAX_NAME} characters long")
    rules = top.get("rule")
    if rules is not None and not isinstance(rules, list):
        raise top.refuse("rule", "must be an array of tables; write [[rule]]")
    if rules and len(rules) > MAX_RULES:
        raise top.refuse("rule", f"has {len(rules)} rules; at most {MAX_RULES} are supported")
    cross = top.get("cross_traffic")
    scenario = Scenario(
        name=name,
        link=_link(Table(top.get("link") or {}, "link")),
        cross_traffic=None if cross is None else _cross_traffic(Table(cross, "cross_traffic")),
        rules=tuple(_rule(Table(rule, f"rule[{i}]")) for i, rule in enumerate(rules or ())),
        expect=_expect(Table(top.get("expect") or {}, "expect")),
    )
    top.finish()
    return scenario


def _link(table: Table) -> Link:
    default = Link()
    link = Link(
        down_mbps=table.number("down_mbps", default.down_mbps, 0.01, MAX_MBPS),
        up_mbps=table.number("up_mbps", default.up_mbps, 0.01, MAX_MBPS),
        rtt_ms=table.number("rtt_ms", default.rtt_ms, 0, 10_000),
        buffer_ms=table.number("buffer_ms", default.buffer_ms, 1, 10_000),
        loss=table.number("loss", default.loss, 0, 1),
        loss_burst=table.number("loss_burst", default.loss_burst, 1, 1000),
        jitter_ms=table.number("jitter_ms", default.jitter_ms, 0, 10_000),
        vary=table.number("vary", default.vary, 0, 0.99),
        vary_s=table.number("vary_s", default.vary_s, 0.01, 3600),
        family=_family(table),
        nat=cast("Nat", table.text("nat", NATS) or default.nat),
        path_mtu=_path_mtu(table),
        reorder=table.number("reorder", default.reorder, 0, 1),
        reorder_ms=table.number("reorder_ms", default.reorder_ms, 0, 10_000),
        duplicate=table.number("duplicate", default.duplicate, 0, 1),
        corrupt=table.number("corrupt", default.corrupt, 0, 1),
        corrupt_payload=table.number("corrupt_payload", default.corrupt_payload, 0, 1),
    )
    table.finish()
    if link.family == 6 and link.nat != "none":
        raise table.refuse("nat", "does not go with family 6: the lab translates IPv4 addresses alone")
    return link


def _family(table: Table) -> Family:
    value = table.get("family")
    if value is not None and (isinstance(value, bool) or value not in (4, 6)):
        raise table.refuse("family", f"must be 4 or 6, not {value!r}")
    return cast("Family", value or 4)


def _path_mtu(table: Table) -> int:
    """0, or the largest packet that comes through; IPv6 promises 1280 bytes, IPv4 hosts 576 (RFC 8200, 791)."""
    mtu = table.number("path_mtu", 0, 0, 1500)
    least = 1280 if table.get("family") == 6 else 576
    if mtu and (mtu < least or not mtu.is_integer()):
        raise table.refuse("path_mtu", f"must be 0 (no black hole) or a whole number from {least} to 1500, not {mtu:g}")
    return int(mtu)


def _cross_traffic(table: Table) -> CrossTraffic:
    pattern = table.text("pattern", PATTERNS)
    if pattern is None:
        raise table.refuse("pattern", f"is missing; choose one of {', '.join(PATTERNS)}")
    traffic = CrossTraffic(
        pattern=cast("Pattern", pattern),
        down_mbps=table.number("down_mbps", 0.0, 0, MAX_MBPS),
        up_mbps=table.number("up_mbps", 0.0, 0, MAX_MBPS),
    )
    if not traffic.down_mbps and not traffic.up_mbps:
        raise table.refuse("down_mbps", "is missing; give down_mbps, up_mbps or both")
    table.finish()
    return traffic


def _rule(table: Table) -> Rule:
    action = table.text("action")
    if action is None:
        raise table.refuse("action", f"is missing; choose one of {', '.join(ACTIONS)}")
    table.text("action", ACTIONS)
    allowed = (*_COMMON, *_KEYS_OF.get(action, ()))
    for key in _ALL_KEYS:
        if table.has(key) and key not in allowed:
            raise table.refuse(key, f"has no meaning for the action {action}")
    for key in _REQUIRED.get(action, ()):
        if not table.has(key):
            raise table.refuse(key, f"is missing; the action {action} needs it")
    rule = Rule(
        match=_match(Table(table.get("match") if table.has("match") else {}, table.path("match"))),
        action=cast("Action", action),
        down_mbps=table.rate("down_mbps"),
        up_mbps=table.rate("up_mbps"),
        burst_kb=table.number("burst_kb", Rule.burst_kb, 0, 1e6),
        buffer_ms=table.number("buffer_ms", Rule.buffer_ms, 1, 60_000),
        delay_ms=table.number("delay_ms", 0.0, 0, 60_000),
        loss=table.number("loss", 0.0, 0, 1),
        dscp=int(table.number("dscp", 0, 0, 63)),
        option=table.text("option", tuple(TCP_OPTIONS)) or "",
        answer=_answer(table),
        header=_header(table),
        packets=table.number("packets", 0.0, 0, 1),
        after_kb=table.number("after_kb", 0.0, 0, 1e9),
        linger_s=table.number("linger_s", 0.0, 0, 86_400),
        hours=_hours(table),
        share=table.number("share", 1.0, 0, 1),
        flows=table.number("flows", 1.0, 0, 1),
    )
    table.finish()
    _check_rule(rule, table)
    return rule


_ALL_KEYS: Final = tuple(sorted({key for keys in _KEYS_OF.values() for key in keys}))


def _check_rule(rule: Rule, table: Table) -> None:
    """What no single key shows."""
    if rule.action in {"police", "shape"} and rule.down_mbps is None and rule.up_mbps is None:
        raise table.refuse("down_mbps", f"is missing; the action {rule.action} needs down_mbps, up_mbps or both")
    if rule.action == "dns" and rule.match.proto == "tcp":
        raise table.refuse("match.proto", "the action dns answers queries over UDP only")
    if rule.action in {"reset", "strip_option", "http_header"} and rule.match.proto == "udp":
        raise table.refuse("match.proto", f"the action {rule.action} exists for TCP only")


def _answer(table: Table) -> str:
    value = table.text("answer")
    if value is None or value in {"nxdomain", "refused"}:
        return value or ""
    try:
        return str(ipaddress.ip_address(value))
    except ValueError as error:
        raise table.refuse("answer", f"must be nxdomain, refused or an IP address, not {value!r}") from error


def _header(table: Table) -> str:
    value = table.text("header") or ""
    if value and not _HEADER.fullmatch(value):
        raise table.refuse("header", f'must read "Name: value", not {value!r}')
    return value


def _hours(table: Table) -> tuple[float, float] | None:
    value = table.get("hours")
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise table.refuse("hours", f"must be two hours of the day, such as [18, 23], not {value!r}")
    pair = Table({"from": value[0], "to": value[1]}, table.path("hours"))
    start, end = pair.number("from", 0, 0, 24), pair.number("to", 0, 0, 24)
    if start == end:
        raise table.refuse("hours", "begin and end at the same time; leave the key out for the whole day")
    return start, end


def _match(table: Table) -> Match:
    proto, direction = table.text("proto", ("tcp", "udp")), table.text("direction", ("down", "up"))
    match = Match(
        sni=table.texts("sni"),
        http_host=table.texts("http_host"),
        dns=table.texts("dns"),
        quic_sni=table.texts("quic_sni"),
        proto=cast("Any", proto),
        port=_ports(table),
        payload=table.texts("payload", PAYLOADS),
        direction=cast("Direction | None", direction),
        established_only=table.flag("established_only"),
        split=table.flag("split") if table.has("split") else None,
    )
    table.finish()
    if match.quic_sni is not None and match.proto == "tcp":
        raise table.refuse("proto", "QUIC travels over UDP, so no flow could match quic_sni too")
    return match


def _ports(table: Table) -> tuple[tuple[int, int], ...] | None:
    """A port, a range "6881-6889", or an array of both."""
    value = table.get("port")
    if value is None:
        return None
    ranges = []
    for one in value if isinstance(value, list) else [value]:
        low, dash, high = str(one).partition("-")
        valid = not isinstance(one, bool) and isinstance(one, int | str) and low.isdigit()
        if not valid or (dash and not high.isdigit()):
            raise table.refuse("port", f'must be a port or a range such as "6881-6889", not {one!r}')
        first, last = int(low), int(high or low)
        if not 0 < first <= last <= 65535:
            raise table.refuse("port", f"must lie between 1 and 65535, not {one!r}")
        ranges.append((first, last))
    return tuple(ranges)


def _expect(table: Table) -> frozenset[tuple[str, str]]:
    effects = table.get("effects")
    if effects is not None and not isinstance(effects, list):
        raise table.refuse("effects", 'must be an array such as ["youtube:slowing"]')
    found = set()
    for index, text in enumerate(effects or ()):
        app, colon, effect = text.partition(":") if isinstance(text, str) else ("", "", "")
        if not app or not colon:
            raise table.refuse(f"effects[{index}]", f'must read "app:effect", not {text!r}')
        if effect not in EFFECTS:
            why = f"the effect must be one of {', '.join(EFFECTS)}, not {effect!r}{_suggest(effect, EFFECTS)}"
            raise table.refuse(f"effects[{index}]", why)
        found.add((app, effect))
    table.finish()
    return frozenset(found)


def to_table(scenario: Scenario) -> dict[str, Any]:
    """The scenario as a document that `from_table` reads back unchanged, to be handed to another process."""
    table: dict[str, Any] = {"name": scenario.name, "link": vars(scenario.link)}
    if scenario.cross_traffic is not None:
        table["cross_traffic"] = vars(scenario.cross_traffic)
    table["rule"] = [_rule_table(rule) for rule in scenario.rules]
    table["expect"] = {"effects": scenario.expected}
    return table


def _rule_table(rule: Rule) -> dict[str, Any]:
    keys = (*_KEYS_OF.get(rule.action, ()), "after_kb", "linger_s", "share", "flows")
    table = {key: getattr(rule, key) for key in keys if getattr(rule, key) is not None}
    match = {key: value for key, value in vars(rule.match).items() if value is not None}
    listed: Callable[[Any], Any] = lambda value: list(value) if isinstance(value, tuple) else value  # noqa: E731
    table["match"] = {key: listed(value) for key, value in match.items()}
    if rule.match.port is not None:
        table["match"]["port"] = [f"{low}-{high}" for low, high in rule.match.port]
    if rule.hours is not None:
        table["hours"] = list(rule.hours)
    return {**table, "action": rule.action}
