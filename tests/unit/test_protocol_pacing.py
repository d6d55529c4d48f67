# SPDX-License-Identifier: EUPL-1.2
"""Paces, costs, and what a segment can see."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.protocol import pacing


@pytest.mark.parametrize(
    ("calibration", "expected"), [(None, 12.0), (100.0, 12.0), (20.0, 12.0), (10.0, 6.0), (1.0, 0.6), (0.0, 0.1)]
)
def test_pace_is_the_smaller_of_twelve_and_six_tenths_of_the_line(calibration: float | None, expected: float) -> None:
    assert pacing.pace_mbps(calibration) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("wanted", "most", "expected"), [(12, 0, 12), (0, 0, 0), (0, 50, 50), (60, 50, 50), (12, 50, 12)]
)
def test_zero_means_unlimited_on_both_sides(wanted: float, most: float, expected: float) -> None:
    assert pacing.allowed_pace_mbps(wanted, most) == expected


def test_a_segment_costs_what_measurement_says() -> None:
    assert pacing.segment_bytes(12, 4) == pytest.approx(6.36e6)
    assert pacing.pair_bytes(12, 4) == 2 * pacing.segment_bytes(12, 4)
    assert pacing.segment_bytes(0, 4) == 0


@given(
    pace=st.floats(0.5, 100),
    share=st.floats(0.05, 0.95),
    segment_s=st.floats(0.5, 20),
    fill=st.floats(0.1, 3),
)
def test_largest_burst_is_the_bucket_that_is_empty_at_half_time(
    pace: float, share: float, segment_s: float, fill: float
) -> None:
    """Against a token bucket followed in small steps."""
    rate = share * pace
    claimed_kb = pacing.largest_burst_kb(pace, rate, segment_s)
    bucket_kb = claimed_kb * fill
    steps = 2000
    for _ in range(steps):
        bucket_kb += (rate - pace) * 1000 / 8 * (segment_s / 2 / steps)
    assert (bucket_kb <= claimed_kb * 1e-6) is (fill <= 1 or bucket_kb <= 0)
    if fill > 1.001:
        assert bucket_kb > 0


def test_detectable_region_of_the_usual_segment() -> None:
    region = pacing.detectable_region(12, 4)
    assert (region.rate_mbps, region.burst_kb, region.after_kb) == (6, 1500, 3000)
    near = pacing.detectable_region(12, 4, rate=9.6)
    assert near.burst_kb == pytest.approx(600)
    with pytest.raises(ValueError, match="unlimited"):
        pacing.detectable_region(0, 4)
