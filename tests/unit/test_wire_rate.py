# SPDX-License-Identifier: EUPL-1.2
"""The rate is that of the last half of the nominal time, whatever the readings' true times were."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.wire.rate import rate_mbps
from probe.wire.records import Segment


def segment(ms, counts, end="complete"):
    return Segment(arm="app", end=end, bins_ms=tuple(ms), bins_bytes=tuple(counts), bytes=sum(counts))


def test_a_steady_segment():
    assert rate_mbps(segment(range(100, 1001, 100), [150_000] * 10), 1.0) == pytest.approx(12.0)


def test_a_burst_in_the_first_half_does_not_count():
    assert rate_mbps(segment(range(100, 1001, 100), [900_000] * 5 + [18_750] * 5), 1.0) == pytest.approx(1.5)


def test_bytes_after_the_nominal_end_do_not_count():
    assert rate_mbps(segment([500, 1000, 1500], [0, 125_000, 999_999]), 1.0) == pytest.approx(2.0)


@pytest.mark.parametrize("end", ["aborted", "reset", "absent", "mismatch", "control_lost"])
def test_a_segment_that_did_not_complete_has_no_rate(end):
    assert rate_mbps(segment([1000], [1000], end), 1.0) is None


def test_a_silent_segment_has_rate_zero():
    assert rate_mbps(segment([], []), 1.0) == 0.0


@given(st.lists(st.integers(1, 300), min_size=4, max_size=40), st.floats(0.1, 100))
def test_late_readings_do_not_change_a_constant_rate(gaps, mbps):
    at, ms = 0, []
    for gap in gaps:
        at += gap
        ms.append(at)
    counts = [gap * mbps * 125 for gap in gaps]
    seconds = at / 1000
    read = segment(ms, counts)
    assert rate_mbps(read, seconds) == pytest.approx(mbps, rel=1e-6)
