# SPDX-License-Identifier: EUPL-1.2
"""Puts the boards into a running Grafana by its API, where file provisioning is not at hand (extra `grafana`).

Pushing again replaces what was pushed. Spec: spec/series.md, section "Grafana".
"""

from __future__ import annotations

from typing import Final

from collector.grafana import Grafana
from dashboards.build import boards

FOLDER: Final = "evenlane"
FOLDER_UID: Final = "evenlane"


def push(url: str, token: str) -> list[str]:
    """Push every board; gives their addresses. Raises collector.sinks.Unreachable or Refused."""
    grafana = Grafana(url, token)
    try:
        return [
            url.rstrip("/") + grafana.upsert(board, folder=FOLDER, folder_uid=FOLDER_UID) for board in boards().values()
        ]
    finally:
        grafana.close()
