# SPDX-License-Identifier: EUPL-1.2
"""Queues in virtual time keep to the arithmetic of token buckets and of a finite line."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.links import CrossLoad, LinkQueue, TokenBucket

PACKET = bytes(1500)


def queue(**changes: object) -> LinkQueue:
    options: dict[str, object] = {"mbps": 12.0, "buffer_ms": 100.0, "delay_ms": 10.0, "rng": random.Random(1)}
    return LinkQueue(**{**options, **changes})  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(
    st.floats(0.1, 50),
    st.floats(2, 500),
    st.lists(st.tuples(st.floats(0, 0.2), st.integers(40, 1500)), min_size=1, max_size=300),
)
def test_a_policer_never_passes_more_than_burst_plus_rate(
    mbps: float, burst_kb: float, arrivals: list[tuple[float, int]]
) -> None:
    bucket = TokenBucket(mbps * 1e6, burst_kb * 1e3)
    now = 100.0
    passed: list[tuple[float, int]] = []
    for gap, size in arrivals:
        now += gap
        if bucket.take(size, now):
            passed.append((now, size))
    for first in range(len(passed)):
        total = 0
        for when, size in passed[first:]:
            total += size
            assert total <= bucket.burst + (when - passed[first][0]) * mbps * 1e6 / 8 + 1e-6


def test_a_policed_stream_passes_at_its_rate() -> None:
    bucket = TokenBucket(1.5e6, 32_000)
    passed = sum(1500 for tick in range(20_000) if bucket.take(1500, tick * 0.001))
    assert passed == pytest.approx(32_000 + 20 * 1.5e6 / 8, rel=0.01)


def test_a_shaper_delays_to_its_rate_and_drops_beyond_its_queue() -> None:
    bucket = TokenBucket(1.5e6, 15_000)
    waits = [bucket.delay(1500, 0.0, 0.2) for _ in range(60)]
    assert waits[:10] == [0.0] * 10, "the burst passes at once"
    queued = [wait for wait in waits[10:] if wait is not None]
    assert queued == pytest.approx([1500 * 8 / 1.5e6 * (n + 1) for n in range(len(queued))])
    assert 0.2 < max(queued) <= 0.2 + 0.008 + 1e-9
    assert waits[-1] is None


def test_a_line_serialises_and_delays() -> None:
    line = queue()
    for _ in range(3):
        line.offer(PACKET, 5.0)
    assert [round(release, 6) for release, _ in line.out] == [5.011, 5.012, 5.013]


def test_a_line_never_queues_more_than_its_buffer() -> None:
    line = queue()
    for _ in range(500):
        line.offer(PACKET, 1.0)
    assert len(line.out) == 101
    assert line.dropped == 399
    assert line.out[-1][0] - 1.0 - 0.010 <= 0.1 + 0.001 + 1e-9


def test_loss_has_its_rate_and_jitter_keeps_the_order() -> None:
    line = queue(loss=0.05, jitter_ms=5.0, mbps=1000.0)
    for index in range(20_000):
        line.offer(PACKET, index * 0.001)
    assert line.lost / 20_000 == pytest.approx(0.05, abs=0.008)
    releases = [release for release, _ in line.out]
    assert releases == sorted(releases)


def test_low_priority_waits_for_an_idle_line() -> None:
    line = queue(delay_ms=0.0)
    for _ in range(5):
        line.offer(b"h" * 1500, 0.0)
    line.offer_low(b"l" * 1500, 0.0)
    line.offer(b"h" * 1500, 0.0)
    assert line.low_due == pytest.approx(0.006)
    line.serve_low(0.0061)
    assert [packet[:1] for _, packet in line.out] == [b"h"] * 6 + [b"l"]
    assert line.low_due is None


def test_low_priority_is_bounded_too() -> None:
    line = queue(delay_ms=0.0)
    line.offer(PACKET, 0.0)
    for _ in range(300):
        line.offer_low(PACKET, 0.0)
    assert line.dropped >= 199


@pytest.mark.parametrize(("load", "expected"), [(3.0, 9.0), (6.0, 6.0), (9.0, 3.0)])
def test_household_traffic_takes_its_share_of_the_line(load: float, expected: float) -> None:
    line = queue(cross=CrossLoad("constant", load, random.Random(2)))
    carried = 0
    for tick in range(20_000):  # 12 Mbit/s are offered on a line of 12 Mbit/s
        carried += line.carry(1500, 50.0 + tick * 0.001) is not None
    measured = carried * 1500 * 8 / 20 / 1e6
    fair = 12 * 12 / (12 + load)  # what unresponsive loads get of a drop-tail queue
    assert measured == pytest.approx(fair, rel=0.1)
    assert measured >= expected


def test_household_traffic_below_the_line_only_adds_delay() -> None:
    line = queue(cross=CrossLoad("constant", 6.0, random.Random(2)))
    carried = sum(line.carry(1500, tick * 0.003) is not None for tick in range(5000))
    assert carried == 5000


def test_onoff_is_active_half_the_time_and_repeats_with_its_seed() -> None:
    def pattern(seed: int) -> tuple[float, float]:
        load, now, active = CrossLoad("onoff", 8.0, random.Random(seed)), 0.0, 0.0
        while now < 4000:
            load.turn(now)
            active += (load.until - now) * (load.bps > 0)
            now = load.until
        return active, now

    active, total = pattern(3)
    assert active / total == pytest.approx(0.5, abs=0.05)
    assert pattern(3) == (active, total)
    assert pattern(4) != (active, total)


def test_a_web_load_is_bursts_at_its_rate() -> None:
    load, now = CrossLoad("web", 8.0, random.Random(5)), 0.0
    rates = set()
    for _ in range(50):
        load.turn(now)
        rates.add(load.bps)
        assert load.until > now
        now = load.until
    assert rates == {0.0, 8e6}


def losses(burst: float, loss: float = 0.08, count: int = 60_000) -> tuple[float, float]:
    """The share that is lost, and how many are lost in a row on average."""
    line = queue(loss=loss, loss_burst=burst, buffer_ms=1e9)
    lost = [line.carry(1500, tick * 0.001) is None for tick in range(count)]
    runs = sum(here and not before for before, here in zip([False, *lost], lost, strict=False))
    return sum(lost) / count, sum(lost) / runs


@pytest.mark.parametrize("burst", [1, 4, 10])
def test_losses_come_in_bursts_of_the_given_length_and_are_no_more_for_it(burst: float) -> None:
    share, length = losses(burst)
    assert share == pytest.approx(0.08, rel=0.1)
    assert length == pytest.approx(1 / 0.92 if burst == 1 else burst, rel=0.1)


def test_a_varying_line_is_slower_by_half_its_depth_and_by_fits() -> None:
    line = queue(vary=(0.8, 0.5), buffer_ms=20)
    carried = [0] * 100
    for tick in range(100_000):  # 12 Mbit/s offered for 100 s
        carried[tick // 1000] += line.carry(1500, tick * 0.001) is not None
    rates = [count * 1500 * 8 / 1e6 for count in carried]
    assert sum(rates) / 100 == pytest.approx(12 * 0.6, rel=0.08)
    assert min(rates) < 5
    assert max(rates) > 9
    assert max(rates) <= 12


def test_a_line_that_neither_varies_nor_bursts_draws_as_it_always_did() -> None:
    one, other = queue(loss=0.1), queue(loss=0.1, loss_burst=1.0, vary=(0.0, 1.0))
    assert [one.carry(1500, t / 1e3) for t in range(500)] == [other.carry(1500, t / 1e3) for t in range(500)]
