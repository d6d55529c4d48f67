# SPDX-License-Identifier: EUPL-1.2
"""Writes lines to an InfluxDB through influxdb-client: the one module that uses it (extra `influx`).

Tells apart what may be tried again from what never will be taken. Nothing is retried here: the outbox does.
Works with InfluxDB from 1.8 on and with VictoriaMetrics, which both have `/api/v2/write`; for InfluxDB 1.x the
token is `USER:PASSWORD`, the bucket `DATABASE/RETENTION` and the organisation `-`. Spec: spec/series.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import urllib3
from influxdb_client.client.exceptions import InfluxDBError
from influxdb_client.client.influxdb_client import InfluxDBClient
from influxdb_client.client.write_api import SYNCHRONOUS
from influxdb_client.domain.write_precision import WritePrecision

from collector.config import InfluxSink
from collector.sinks import Refused, Unreachable

TIMEOUT_MS: Final = 10_000
_NEVER: Final = {400, 413, 422}
"""Answers about the points themselves. Everything else is about the way there, and may change."""


class InfluxWriter:
    """A connection to one bucket."""

    def __init__(self, sink: InfluxSink, *, timeout_ms: int = TIMEOUT_MS) -> None:
        self._bucket = sink.bucket
        self._client = InfluxDBClient(
            url=sink.url, token=sink.token, org=sink.org, timeout=timeout_ms, enable_gzip=True, retries=False
        )
        self._api = self._client.write_api(write_options=SYNCHRONOUS)

    def write(self, lines: Sequence[str]) -> None:
        """Write lines with times in milliseconds. Raises Unreachable or Refused; nothing is lost either way."""
        try:
            # The client's own constants are plain text, whatever its annotation says.
            self._api.write(self._bucket, record="\n".join(lines), write_precision=WritePrecision.MS)  # type: ignore[arg-type]
        except InfluxDBError as error:
            status = getattr(error, "status", None)
            # Only the status and the server's own sentence: the error's text would hold headers and the token.
            reason = f"InfluxDB answered {status}: {str(error.message)[:200]}"
            raise (Refused if status in _NEVER else Unreachable)(reason) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unreachable(f"InfluxDB cannot be reached ({type(error).__name__})") from None

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()  # type: ignore[no-untyped-call]
