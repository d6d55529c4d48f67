#!/usr/bin/env python3
# SPDX-License-Identifier: EUPL-1.2
"""Builds evenlane's .ipk as OpenWrt's own tools would, from the recipe in evenlane/Makefile, in Python alone.

For two reasons: what the recipe says is tested without OpenWrt's build system, and a router with OpenWrt 24.10 can be
given a package from a checkout. The layout is that of OpenWrt's scripts/ipkg-build and include/package-pack.mk: a
gzipped tar of debian-binary, data.tar.gz and control.tar.gz. The bytes are the same on every run with the same Python.
What it cannot do: .apk files of 25.12 and later, and whatever in a recipe is not in ours.

    python3.11 deploy/openwrt/build_ipk.py --out dist     (bytecode is for the Python that builds: 24.10 has 3.11)
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RECIPE = HERE / "evenlane/Makefile"
EPOCH_S = 1_767_225_600
"""2026-01-01: no file of a package has another date."""
MOST_BYTES = 1_000_000
MODES = {"INSTALL_BIN": 0o755, "INSTALL_CONF": 0o600, "INSTALL_DATA": 0o644}
BLOCK = 4096


class RecipeError(Exception):
    """The recipe cannot be carried out; the message says what of it."""


@dataclass(frozen=True)
class Recipe:
    """What stands in a package's Makefile, as far as it is needed here."""

    variables: Mapping[str, str]
    blocks: Mapping[str, str]

    def value(self, package: str, name: str) -> str:
        """A line of `define Package/NAME`, without the colon and what is before it."""
        found = re.search(rf"^\s*{name}:=(.*)$", self.blocks[f"Package/{package}"], re.MULTILINE)
        return found[1].strip() if found else ""

    def depends(self, package: str) -> list[str]:
        """The packages that DEPENDS names."""
        return [one.lstrip("+") for one in self.value(package, "DEPENDS").split()]

    def script(self, package: str, name: str) -> str:
        """A script as it is on the router: make turns $$ into $."""
        return self.blocks.get(f"Package/{package}/{name}", "").replace("$$", "$")


def read_recipe(path: Path = RECIPE) -> Recipe:
    """Variables and `define` blocks of a Makefile."""
    text = path.read_text(encoding="utf-8")
    blocks = dict(re.findall(r"^define (\S+)\n(.*?)^endef$", text, re.MULTILINE | re.DOTALL))
    outside = re.sub(r"^define .*?^endef$", "", text, flags=re.MULTILINE | re.DOTALL)
    return Recipe(dict(re.findall(r"^([A-Z0-9_]+):=(.*)$", outside, re.MULTILINE)), blocks)


@dataclass
class Built:
    """A package and what it takes."""

    path: Path
    package: str
    files: dict[str, int] = field(default_factory=dict)

    @property
    def installed_bytes(self) -> int:
        """The sum of the files."""
        return sum(self.files.values())

    @property
    def block_bytes(self) -> int:
        """On a file system that gives each file whole blocks of 4 KiB and does not compress."""
        return sum(-(-size // BLOCK) * BLOCK for size in self.files.values())


def install(
    recipe: Recipe, package: str, root: Path, *, source: Path = ROOT, folder: Path = RECIPE.parent
) -> dict[str, int]:
    """Carry out `Package/NAME/install` below a directory; gives the modes of what it installed."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    modes: dict[str, int] = {}
    words = {
        "$(1)": str(root),
        "$(HOST_PYTHON3_BIN)": sys.executable,
        "$(PKG_BUILD_DIR)": str(source),
        "$(PKG_VERSION)": recipe.variables["PKG_VERSION"],
        "$(PYTHON3_PKG_DIR)": f"/usr/lib/python{version}/site-packages",
    }
    for line in recipe.blocks[f"Package/{package}/install"].splitlines():
        told = line
        for word, meaning in words.items():
            told = told.replace(word, meaning)
        match told.split():
            case []:
                continue
            case ["$(INSTALL_DIR)", *folders]:
                for one in folders:
                    Path(one).mkdir(parents=True, exist_ok=True)
            case [tool, name, target] if (mode := MODES.get(tool.strip("$()"))) is not None:
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                Path(target).write_bytes((folder / name).read_bytes())
                modes[str(Path(target).relative_to(root))] = mode
            case [program, *rest] if program == sys.executable:
                subprocess.run([program, *rest], cwd=folder, check=True)
            case other:
                raise RecipeError(f"a line of the recipe is not known here: {' '.join(other)}")
    return modes


def control(recipe: Recipe, package: str, installed_bytes: int) -> dict[str, tuple[int, str]]:
    """The control files, with their modes."""
    description = "\n".join(f" {line.strip()}" for line in recipe.blocks[f"Package/{package}/description"].splitlines())
    lines = {
        "Package": package,
        "Version": f"{recipe.variables['PKG_VERSION']}-r{recipe.variables['PKG_RELEASE']}",
        "Depends": ", ".join(["libc", *recipe.depends(package)]),
        "Source": f"feeds/evenlane/{recipe.variables['PKG_NAME']}",
        "SourceName": recipe.variables["PKG_NAME"],
        "License": recipe.variables["PKG_LICENSE"],
        "LicenseFiles": recipe.variables["PKG_LICENSE_FILES"],
        "Section": recipe.value(package, "SECTION"),
        "SourceDateEpoch": str(EPOCH_S),
        "URL": recipe.value(package, "URL"),
        "Maintainer": recipe.variables["PKG_MAINTAINER"],
        "Require-User": recipe.value(package, "USERID"),
        "Architecture": recipe.value(package, "PKGARCH"),
        "Installed-Size": str(installed_bytes),
    }
    head = "".join(f"{name}: {value}\n" for name, value in lines.items() if value)
    found = {"control": (0o644, f"{head}Description: {description}\n")}
    for name, call in (("postinst", "default_postinst"), ("prerm", "default_prerm")):
        found[name] = (
            0o755,
            '#!/bin/sh\n[ "${IPKG_NO_SCRIPT}" = "1" ] && exit 0\n[ -s ${IPKG_INSTROOT}/lib/functions.sh ] || exit 0\n'
            f". ${{IPKG_INSTROOT}}/lib/functions.sh\n{call} $0 $@\n",
        )
        if own := recipe.script(package, name):
            found[f"{name}-pkg"] = (0o755, own)
    for name in ("preinst", "postrm"):
        if own := recipe.script(package, name):
            found[name] = (0o755, own)
    return found


def archive(members: Mapping[str, tuple[int, bytes | None]]) -> bytes:
    """A gzipped GNU tar, sorted, of root's and of one date; None is a directory."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, (mode, content) in sorted(members.items()):
            entry = tarfile.TarInfo(name)
            entry.mtime, entry.mode, entry.uname, entry.gname = EPOCH_S, mode, "", ""
            entry.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            entry.size = len(content or b"")
            tar.addfile(entry, io.BytesIO(content or b""))
    return gzip.compress(raw.getvalue(), 9, mtime=0)


def build(out: Path, package: str = "evenlane", *, source: Path = ROOT) -> Built:
    """Build one package into a directory. Raises RecipeError."""
    recipe = read_recipe()
    if f"Package/{package}" not in recipe.blocks:
        raise RecipeError(f"{RECIPE} has no package {package}")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        modes = install(recipe, package, root, source=source)
        data: dict[str, tuple[int, bytes | None]] = {"./": (0o755, None)}
        for path in sorted(root.rglob("*")):
            name = str(path.relative_to(root))
            data[f"./{name}"] = (0o755, None) if path.is_dir() else (modes.get(name, 0o644), path.read_bytes())
    built = Built(out, package, {name: len(content) for name, (_, content) in data.items() if content is not None})
    files = control(recipe, package, built.installed_bytes)
    kept = recipe.blocks.get(f"Package/{package}/conffiles", "").split()
    # As ipkg-build does: of what is listed, the files that are there.
    resolved = sorted(
        n[1:] for n in built.files if any(n[1:] == k or (k.endswith("/") and n[1:].startswith(k)) for k in kept)
    )
    if resolved:
        files["conffiles"] = (0o644, "".join(f"{name}\n" for name in resolved))
    members: dict[str, tuple[int, bytes | None]] = {"./": (0o755, None)}
    members |= {f"./{name}": (mode, text.encode()) for name, (mode, text) in files.items()}
    version = f"{recipe.variables['PKG_VERSION']}-r{recipe.variables['PKG_RELEASE']}"
    built.path = out / f"{package}_{version}_{recipe.value(package, 'PKGARCH')}.ipk"
    out.mkdir(parents=True, exist_ok=True)
    built.path.write_bytes(
        _outer({"./debian-binary": b"2.0\n", "./data.tar.gz": archive(data), "./control.tar.gz": archive(members)})
    )
    return built


def _outer(parts: Mapping[str, bytes]) -> bytes:
    """The three parts in ipkg-build's own order."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in parts.items():
            entry = tarfile.TarInfo(name)
            entry.mtime, entry.mode, entry.size, entry.uname, entry.gname = EPOCH_S, 0o644, len(content), "", ""
            tar.addfile(entry, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), 9, mtime=0)


def main() -> int:
    """Build and say how large it is; 1 where it is too large for a router."""
    parser = argparse.ArgumentParser(description="build evenlane's .ipk for OpenWrt 24.10")
    parser.add_argument("--out", type=Path, default=Path("dist"), metavar="DIR")
    parser.add_argument("--package", default="evenlane", help="evenlane (bytecode), evenlane-src or evenlane-packet")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        built = build(args.out, args.package)
    except RecipeError as error:
        print(f"build_ipk: {error}", file=sys.stderr)
        return 3
    told = {
        "file": str(built.path),
        "file_bytes": built.path.stat().st_size,
        "installed_bytes": built.installed_bytes,
        "block_bytes": built.block_bytes,
        "files": len(built.files),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
    }
    if args.json:
        print(json.dumps(told))
    else:
        print(
            f"{built.path}: {built.path.stat().st_size / 1000:.0f} kB to fetch, "
            f"{built.installed_bytes / 1000:.0f} kB installed in {len(built.files)} files "
            f"({built.block_bytes / 1000:.0f} kB in blocks of 4 KiB), for Python {told['python']}"
        )
    if sys.version_info[:2] != (3, 11):
        print("build_ipk: OpenWrt 24.10 has Python 3.11, and other bytecode does not run there", file=sys.stderr)
    return 0 if built.installed_bytes <= MOST_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
