# SPDX-License-Identifier: EUPL-1.2
"""Lays out the probe for a router: only the modules that `evenlane probe` can reach, as bytecode in few files.

Called by the recipe beside it (Makefile) with the Python that the router has, and by build_ipk.py. Why zip files inside
packages: bytecode is half as large again as its source, and the whole must stay below 1 MB installed, as the package
manager counts (docs/adr/0014-one-megabyte-on-a-router.md). A package keeps its `__init__` and its data as files, so
nothing but the file system's look changes for whoever imports it.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

ENTRIES = ("evenlane.cli", "evenlane.commands.probe", "probe.agent")
ROOMS = ("probe", "analysis", "evenlane")
NEVER = ("probe.reflector", "probe.packet")
DATA = (".toml", ".txt")
ARCHIVE = "code.zip"
PLAIN = frozenset({"evenlane.cli", "evenlane.extras", "probe.agent"})
"""What every process loads anyway is not worth unpacking, and the agent is started by its file."""

_NAME = re.compile(r"[a-z_][a-z0-9_]*(?:\.[a-z_][a-z0-9_]*)*")


def module_file(source: Path, name: str) -> Path | None:
    """The file of one of our modules; None where there is no such module."""
    base = source.joinpath(*name.split("."))
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.is_file():
            return path
    return None


def referred(path: Path) -> Iterator[str]:
    """Every module that a file may import, lazily too; what only type checkers see is left out.

    Texts that are the name of a module count: that is how a module is named that is loaded later or run with -m.
    """

    def walk(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for branch in node.orelse:
                yield from walk(branch)
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _NAME.fullmatch(node.value):
            yield node.value
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")))


def reachable(source: Path, entries: Iterable[str] = ENTRIES) -> dict[str, Path]:
    """The modules of ours that the entries can reach, with their files."""
    found: dict[str, Path] = {}
    waiting = list(entries)
    while waiting:
        name = waiting.pop()
        if name in found or name.split(".")[0] not in ROOMS or _is_never(name):
            continue
        path = module_file(source, name)
        if path is None:
            continue
        found[name] = path
        waiting += [name.rpartition(".")[0], *referred(path)]
    return dict(sorted(found.items()))


def _is_never(name: str) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in NEVER)


def pack(source: Path, version: str, target: Path, *, form: str) -> None:
    """Write the tree of `form` (`bytecode` or `sources`) below `target`, a site-packages directory."""
    modules = reachable(source)
    _write(target / f"evenlane-{version}.dist-info/METADATA", _metadata(version))
    for path in _data(modules):
        _write(target / path.relative_to(source), path.read_bytes())
    if form == "sources":
        for path in modules.values():
            _write(target / path.relative_to(source), path.read_bytes())
        return
    with tempfile.TemporaryDirectory() as scratch:
        compiled = _compiled(source, modules, Path(scratch))
        for name, path in modules.items():
            if _stays(name, path):
                _write(target / path.relative_to(source).with_suffix(".pyc"), compiled[name])
        for package in sorted({name.rpartition(".")[0] for name in modules} - {""}):
            inside = {
                f"{name.rpartition('.')[2]}.pyc": compiled[name]
                for name, path in modules.items()
                if name.rpartition(".")[0] == package and not _stays(name, path)
            }
            if inside:
                _write_zip(target.joinpath(*package.split(".")) / ARCHIVE, inside)


def _stays(name: str, path: Path) -> bool:
    """Whether a module remains a file: packages, what looks for files beside itself, what every process loads."""
    return path.name == "__init__.py" or name in PLAIN or "__file__" in path.read_text(encoding="utf-8")


def _data(modules: dict[str, Path]) -> list[Path]:
    folders = {path.parent for path in modules.values() if path.name == "__init__.py"}
    inside = {
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in DATA and path.is_file() and not (set(path.parts) & {"reflector", "packet"})
    }
    return sorted(inside)


_COMPILE = """
import marshal, importlib.util, pathlib, sys
source, target = map(pathlib.Path, sys.argv[1:3])
for name, path, extra in (line.split("|") for line in sys.stdin.read().splitlines()):
    text = (source / path).read_text(encoding="utf-8") + extra.replace("~", chr(10))
    code = compile(text, "/" + path, "exec", dont_inherit=True, optimize=2)
    # An unchecked hash (PEP 552): nothing on a router ever compares it, and no time gets into the bytes.
    (target / name).write_bytes(importlib.util.MAGIC_NUMBER + bytes([1, 0, 0, 0]) + bytes(8) + marshal.dumps(code))
"""


def _compiled(source: Path, modules: dict[str, Path], scratch: Path) -> dict[str, bytes]:
    """The bytecode of every module, the same on each run: by a process of its own with a fixed hash seed.

    Without docstrings (-OO) and without columns (no_debug_ranges): a router shows no tracebacks to anybody.
    """
    lines = []
    for name, path in modules.items():
        has_archive = path.name == "__init__.py" and any(
            other.rpartition(".")[0] == name and not _stays(other, file) for other, file in modules.items()
        )
        extra = f"~__path__ = [*__path__, __path__[0] + '/{ARCHIVE}']~" if has_archive else ""
        lines.append(f"{name}|{path.relative_to(source)}|{extra}")
    subprocess.run(
        [sys.executable, "-s", "-S", "-X", "no_debug_ranges", "-c", _COMPILE, str(source), str(scratch)],
        input="\n".join(lines),
        text=True,
        check=True,
        env={"PATH": os.environ.get("PATH", ""), "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},
    )
    return {name: (scratch / name).read_bytes() for name in modules}


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _write_zip(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in sorted(members.items()):
            member = zipfile.ZipInfo(name)  # the date is 1980-01-01, always
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = 0o644 << 16
            archive.writestr(member, content)


def _metadata(version: str) -> bytes:
    return f"Metadata-Version: 2.4\nName: evenlane\nVersion: {version}\nLicense-Expression: EUPL-1.2\n".encode()


def main() -> int:
    """For the recipe: pack.py --source DIR --version X.Y.Z --form bytecode --to DIR."""
    parser = argparse.ArgumentParser(description="lay out the probe for a router")
    parser.add_argument("--source", type=Path, required=True, help="the unpacked source distribution")
    parser.add_argument("--version", required=True)
    parser.add_argument("--form", choices=("bytecode", "sources"), default="bytecode")
    parser.add_argument("--to", type=Path, required=True, help="site-packages below the package's root")
    args = parser.parse_args()
    if module_file(args.source, "evenlane.cli") is None:
        print(f"pack: {args.source} is not evenlane's source", file=sys.stderr)
        return 3
    pack(args.source, args.version, args.to, form=args.form)
    return 0


if __name__ == "__main__":
    sys.exit(main())
