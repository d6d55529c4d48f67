# SPDX-License-Identifier: EUPL-1.2
"""The product's own probe with as many placebo pairs as test pairs: `python -m lab.placebo OPTIONS`.

An ordinary run has one pair of two neutral names in ten, too few to say that such pairs come out even. Nothing
but that share is changed: profiles, names, protocol, transfers and records are the product's.
Progress goes to standard error, one JSON object a pair. spec/lab.md section 6.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from probe.nettests import differential
from probe.nettests.base import Options, Progress
from probe.runner import RunError, request_of, run

TESTS_PER_PLACEBO = 1


def main() -> int:
    """Run once; 3 where no session came about."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--reflector", required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--app", action="append", required=True)
    parser.add_argument("--pairs", type=int, required=True)
    parser.add_argument("--segment-s", type=float, required=True)
    parser.add_argument("--pace-mbps", type=float, required=True)
    parser.add_argument("--bind")
    args = parser.parse_args()
    differential.PLACEBO_SHARE = TESTS_PER_PLACEBO  # type: ignore[misc]
    options = Options(
        apps=tuple(args.app), pairs=args.pairs, segment_s=args.segment_s, pace_mbps=args.pace_mbps, direction="down"
    )
    request = request_of(
        "differential", options, reflector=args.reflector, state=args.state, out=args.out, bind=args.bind
    )
    try:
        ran = run(request, on_progress=_tell)
    except RunError as error:
        print(error, file=sys.stderr)
        return 3
    return 0 if ran.measurement.failure is None else 1


def _tell(at: Progress) -> None:
    print(json.dumps({"done": at.done, "of": at.of}), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
