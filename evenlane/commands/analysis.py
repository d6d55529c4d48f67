# SPDX-License-Identifier: EUPL-1.2
"""`evenlane analysis`: judges what probes and reflectors recorded. Spec: spec/statistics.md, "Judging files"."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from evenlane.commands import analysis_rejudge
from evenlane.extras import CannotRun


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its actions."""
    parser = sub.add_parser("analysis", help="judge recorded pairs", description="Judge recorded pairs.")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    verdict = actions.add_parser(
        "verdict",
        help="judge files of receipts, started pairs and measurements",
        description="Judge files as written by `evenlane probe run --out` and `evenlane reflector --state`. "
        "With the reflectors' started.jsonl, pairs that were started and withheld count against every claim.",
    )
    verdict.add_argument("files", metavar="FILE.jsonl", nargs="+", type=Path)
    verdict.add_argument("--json", action="store_true", help="print one JSON object")
    verdict.set_defaults(func=run)
    analysis_rejudge.add(actions)
    analysis_rejudge.add_rule(actions)


def run(args: argparse.Namespace) -> int:
    """Judge the files and print the verdict."""
    from analysis.judge import judge
    from analysis.plan import DEFAULT_PLAN
    from analysis.rules import RULES
    from analysis.sources import Corpus, SourceError, corpus, read_files
    from analysis.verdict import paragraphs

    try:
        records = read_files(args.files)
    except SourceError as error:
        raise CannotRun(str(error)) from None
    found: Corpus = corpus(records)
    if not found.pairs:
        refused = "".join(f" {note}" for note in found.notes if "refused" in note)
        raise CannotRun(
            f"the files hold no pair to judge; give receipts.jsonl, started.jsonl or a probe's --out file.{refused}"
        )
    verdicts = judge(found.pairs, DEFAULT_PLAN, zones=found.zones, lost_known=found.lost_known)
    notes = [*found.notes, _weights_note(DEFAULT_PLAN.name, RULES.alpha)]
    if args.json:
        whole: dict[str, Any] = {
            "cells": [verdict.row() for verdict in verdicts],
            "rule": RULES.name,
            "plan": DEFAULT_PLAN.name,
            "inputs": found.inputs,
            "refused": dict(found.refused),
            "notes": notes,
        }
        print(json.dumps(whole, allow_nan=False))
        return 0
    for paragraph in [*paragraphs(verdicts), *notes]:
        print(textwrap.fill(paragraph, 100, break_on_hyphens=False, break_long_words=False), end="\n\n")
    print(f"Judged by {RULES.name}.", file=sys.stderr)
    return 0


def _weights_note(plan: str, alpha: float) -> str:
    return (
        f"Cases are selected with the bundled plan {plan}, operators and cells in the order of their first pairs: "
        f"at most {alpha:.0%} of a list of cases is false in expectation."
    )
