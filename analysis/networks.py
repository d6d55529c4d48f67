# SPDX-License-Identifier: EUPL-1.2
"""Which probes count as one: those that ever shared a network hash, in any month or address family.

Spec: spec/statistics.md, section "Networks".
"""

from __future__ import annotations

from collections.abc import Sequence

from analysis.probes import ProbeSummary

SHARED = ""
"""The tie of those whom no hash tells apart; no hash looks like this."""


def grouped(probes: Sequence[ProbeSummary]) -> list[list[int]]:
    """Indices of the probes of each network, by union-find over shared hashes.

    Probes without any hash, or in a CGNAT or mobile range without enrolment by token, form one network together:
    nobody may multiply himself there.
    """
    parent = list(range(len(probes)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for index, probe in enumerate(probes):
        for label in _ties(probe):
            other = first.setdefault(label, index)
            parent[root(index)] = root(other)
    groups: dict[int, list[int]] = {}
    for index in range(len(probes)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())


def _ties(probe: ProbeSummary) -> frozenset[str]:
    """The labels that tie a probe to others."""
    if probe.standing == "own":
        return frozenset()
    if probe.standing == "shared" or not probe.networks:
        return frozenset({SHARED})
    return probe.networks
