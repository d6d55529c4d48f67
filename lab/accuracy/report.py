# SPDX-License-Identifier: EUPL-1.2
"""The report of the accuracy study, made of the committed results and of nothing else. spec/accuracy.md section 9.

    evenlane lab accuracy --report

Plain words first, then what was promised and found, then every row. A test makes it again and compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from lab.accuracy import drawing, results
from lab.accuracy.expectation import differs
from lab.accuracy.figures import Figure, all_of, attacks_of, megabytes, percent, sizes_of
from lab.accuracy.model import Row
from lab.accuracy.requirements import Promise, cells_by_app, gates_left_out, is_attack, noise_of, of, unmet
from lab.accuracy.requirements import all_of as promises_of

Result = dict[str, Any]
README: Final = "README.md"
_NEUTRAL_HEAD: Final = ("row", "what it is", "pair noise", "repeats accused", "streams E ≥ 20", "Wehe flags", "real")
_MARKS: Final = {True: "yes", False: "**no**", None: "not known"}


def write(rows: Sequence[Row], directory: Path) -> dict[str, Any]:
    """Write README.md and the pictures; returns what `--json` prints."""
    known = gather(rows, directory)
    files = build(known)
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        directory.joinpath(name).write_text(text, "utf-8")
    promises = promises_of(known)
    unlike = {one["row"]: one["differs"] for one in known if one["differs"]}
    return {
        "files": sorted(str(directory / name) for name in files),
        "requirements": [asdict(one) for one in promises],
        "differs": unlike,
        "ok": not unmet(promises) and not unlike,
    }


def summary(written: dict[str, Any]) -> str:
    """What was written, for people."""
    lines = [f"{_plain(one['met']):<9} {one['promise']}: {one['figure']}" for one in written["requirements"]]
    lines += [f"differs   {row}: {'; '.join(why)}" for row, why in written["differs"].items()]
    return "\n".join([*lines, *(f"wrote {name}" for name in written["files"])])


def _plain(met: bool | None) -> str:
    return _MARKS[met].strip("*")


def gather(rows: Sequence[Row], directory: Path) -> list[Result]:
    """The committed result of each row, held against its file as it is now; one never played is its head alone."""
    from lab.accuracy.study import head  # noqa: PLC0415 - the study plays; the report only reads

    known = [(row, results.read(row.name, directory) or head(row)) for row in rows]
    return [{**result, "differs": differs(row, result)} for row, result in known]


def build(known: Sequence[Result]) -> dict[str, str]:
    """All files of the report by name: a function of the results alone."""
    played = [one for one in known if "virtual" in one]
    figures = all_of(played)
    promises = promises_of(known)
    files = {f"{figure.name}.svg": drawing.draw(figure) for figure in figures}
    files[README] = "\n".join(_document(known, played, promises, figures)) + "\n"
    return files


def _document(
    known: Sequence[Result], played: Sequence[Result], promises: Sequence[Promise], figures: Sequence[Figure]
) -> list[str]:
    by_kind = {kind: [one for one in played if one["kind"] == kind] for kind in ("neutral", "discriminating")}
    lines = ["# How often the verdict is right", "", *_words(known, played, promises), ""]
    lines += ["## What was promised, and what was found", "", *_promises(promises), ""]
    for figure in figures:
        lines += [f"## {figure.title}", "", f"![{_alt(figure)}]({figure.name}.svg)", "", figure.description, ""]
        lines += ["<details><summary>The figures</summary>", "", *table(figure.head, figure.rows), "", "</details>", ""]
    lines += ["## Operators that do nothing: never to be accused", "", *_neutral(by_kind["neutral"]), ""]
    lines += ["## Operators that treat apps differently: to be found", "", *_treated(by_kind["discriminating"]), ""]
    lines += ["## Somebody cheats, or a protection is taken away on purpose", "", *_attacks(attacks_of(played)), ""]
    lines += ["## What each gate is for", "", *_gates(played), ""]
    lines += ["## Real sockets beside virtual time", "", *_real(known), ""]
    lines += ["## What is not as its row says", "", *_differs(known), ""]
    return [*lines, "## How to play it again", "", *_again(played)]


def _alt(figure: Figure) -> str:
    return figure.title.replace("[", "(").replace("]", ")")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; an empty one says so."""
    found = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    if not found:
        return ["None yet."]
    return ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |", *found]


def _words(known: Sequence[Result], played: Sequence[Result], promises: Sequence[Promise]) -> list[str]:
    """The study in one paragraph that needs no statistics."""
    repeats = sum(one["virtual"]["repeats"] for one in played)
    pairs = sum(one["virtual"]["pairs"] for one in played)
    neutral = [one for one in played if one["kind"] == "neutral"]
    cells = sum(
        max(cell["corroborated"]["n"] for cell in found) for one in neutral for found in cells_by_app(one).values()
    )
    wrong = sum(one["virtual"]["wrong"]["k"] for one in played if not is_attack(one))
    inside = [one for one in played if one["kind"] == "discriminating" and one["inside"]]
    found = sum(one["virtual"]["found"]["k"] for one in inside)
    tried = sum(one["virtual"]["found"]["n"] for one in inside)
    missed = len(unmet(promises))
    return [
        f"{len(known)} operators whose behaviour is known were measured {_count(repeats)} times in virtual time, with "
        f"{_count(pairs)} pairs, and a few pairs of each that has a line were measured through real sockets.",
        "",
        f"- **Operators that do nothing** made {_count(cells)} cells that could have been accused. "
        f"Wrongly accused at any look, there or anywhere else: {_count(wrong)}.",
        f"- **Operators that treat an app differently**, strongly enough to be promised: found in {_count(found)} of "
        f"{_count(tried)} runs.",
        f"- Of {len(promises)} promises {len(promises) - missed} are met"
        + ("." if not missed else "; those that are not stand below with their figure."),
        "",
        "Every share is given as k of n with its 95 % interval (Wilson), because never among 73 is another claim than "
        "never among 10 000. Below a slowdown of about 20 % nothing is promised and nothing is claimed. How rows are "
        "played and judged: [spec/accuracy.md](../../spec/accuracy.md).",
    ]


def _count(number: float) -> str:
    return f"{number:,.0f}".replace(",", " ")


def _promises(promises: Sequence[Promise]) -> list[str]:
    rows = [(one.promise, one.figure, _MARKS[one.met], ", ".join(one.rows) if not one.met else "") for one in promises]
    return table(("promise", "found", "met", "rows that miss it"), rows)


def _neutral(found: Sequence[Result]) -> list[str]:
    """Rows of one kind, and what was said of them."""
    rows = []
    for one in found:
        virtual = one["virtual"]
        even = virtual["peer"].get("even")
        rows.append(
            (
                one["row"],
                one["title"],
                f"{noise_of(one):.2f}",
                of(virtual["wrong"]),
                of(virtual["streams"]["reached_20"]),
                "–" if even is None else of(even["positive"], 1),
                _real_word(one),
            )
        )
    lines = table(_NEUTRAL_HEAD, rows)
    note = "A stream is counted once, whichever of its effects reached 20. Wehe flags: single tests, their confirmation"
    return [*lines, "", f"{note} run included."]


def _treated(found: Sequence[Result]) -> list[str]:
    rows = []
    for one in found:
        for name in one["expected"]:
            cell = one["virtual"]["cells"][name]
            size = cell.get("slowdown")
            pairs = cell.get("pairs_to_case", {}).get("last", {})
            cost = cell.get("octets_to_case", {})
            rows.append(
                (
                    one["row"],
                    name.replace(":", ", "),
                    "–" if size is None else f"{percent(size['estimate'])} ± {percent(_half(size))}",
                    "–" if size is None else of(size["covered"], 1),
                    f"{noise_of(one):.2f}",
                    of(cell["corroborated"], 1) + ("" if one["inside"] else " (not promised)"),
                    f"{_whole(pairs.get('50'))} / {_whole(pairs.get('95'))}",
                    megabytes(cost.get("50")),
                    _real_word(one),
                )
            )
    head = ("row", "truth", "slowdown", "interval holds it", "pair noise", "found", "pairs 50 / 95 %", "bytes", "real")
    return table(head, rows)


def _half(size: dict[str, Any]) -> float | None:
    return None if size["width"] is None else size["width"] / 2


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _attacks(found: Sequence[Result]) -> list[str]:
    rows = [
        (
            one["row"],
            one["title"],
            one["why"],
            of(one["virtual"]["wrong"]),
            of(one["virtual"]["streams"]["reached_20"]),
            "–" if one["virtual"]["found"] is None else of(one["virtual"]["found"], 1),
            "misled, as it is meant to show" if is_attack(one) else "holds",
        )
        for one in found
    ]
    head = ("row", "what happens", "why", "wrongly accused", "streams E ≥ 20", "truth found", "meant to be")
    return table(head, rows)


def _gates(played: Sequence[Result]) -> list[str]:
    """Each gate with its row: what is said with it, and what would be without."""
    rows = []
    for one in played:
        for gate in gates_left_out(one):
            for name, cell in one["virtual"]["cells"].items():
                without = cell.get("without", {}).get(gate)
                if without is not None and without != cell["states"]:
                    rows.append(
                        (
                            gate.replace("_", " "),
                            one["row"],
                            name.replace(":", ", "),
                            _states(cell["states"]),
                            _states(without),
                        )
                    )
    return table(("gate", "row", "of", "with it", "without it"), sorted(rows))


def _states(states: dict[str, int]) -> str:
    return ", ".join(f"{state.replace('_', ' ')} {count}" for state, count in states.items())


def _real(known: Sequence[Result]) -> list[str]:
    rows = []
    for one in known:
        real = one.get("real")
        if real is None:
            rows.append((one["row"], "not played yet", "", ""))
        elif real.get("skipped"):
            rows.append((one["row"], "not played", real["skipped"], ""))
        else:
            sizes = "; ".join(
                f"{app} {told['real']['y']:+.2f}{unit} where {told['virtual']['y']:+.2f}{unit}"
                for what, unit in (("rates", ""), ("delays", " ms"))
                for app, told in sizes_of(real, what)
            )
            said = real.get("void") or "; ".join(real["differs"]) or sizes
            how = f"{real['driver']}, {real['pairs']} pairs of {real['segment_s']:g} s"
            rows.append((one["row"], _real_word(one), said, how))
    head = ("row", "real sockets", "median of y, real where virtual; or why", "how")
    same = {row[2] for row in rows if row[1] == "not played"}
    shown = [row for row in rows if row[1] != "not played"]
    lines = table(head, shown)
    for why in sorted(same):
        names = ", ".join(row[0] for row in rows if row[1] == "not played" and row[2] == why)
        lines += ["", f"Not played, {why}: {names}."]
    return lines


def _real_word(one: Result) -> str:
    real = one.get("real")
    if real is None:
        return "not yet"
    if real.get("skipped"):
        return "–"
    if real.get("void"):
        return "void"
    return "agrees" if real["agrees"] else "**differs**"


def _differs(known: Sequence[Result]) -> list[str]:
    found = [f"- {one['row']}: {why}" for one in known for why in one["differs"]]
    return found or ["Nothing."]


def _again(played: Sequence[Result]) -> list[str]:
    rules = sorted({one["versions"]["rule"] for one in played})
    versions = sorted({one["versions"]["evenlane"] for one in played})
    dates = sorted({one["date"] for one in played})
    span = dates[0] if dates and dates[0] == dates[-1] else " to ".join((dates[0], dates[-1])) if dates else "never"
    return [
        "```",
        "evenlane lab accuracy --fresh",
        "evenlane lab accuracy --report",
        "```",
        "",
        f"Played: {span}, with evenlane {', '.join(versions) or '–'} and the rule {', '.join(rules) or '–'}. "
        "Each row's result is one file in `docs/accuracy/rows`; every random number follows from the row's name and "
        "the repeat's number, so that virtual time gives the same again wherever it is played.",
    ]
