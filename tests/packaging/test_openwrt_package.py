# SPDX-License-Identifier: EUPL-1.2
"""The OpenWrt package: built, laid out as opkg does, and measuring from there with what its DEPENDS bring."""

import ast
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FEED = ROOT / "deploy/openwrt"
MOST_BYTES = 1_000_000
pytestmark = pytest.mark.packaging

SPLITS = {
    # Of openwrt/packages, lang/python/python3/files/python3-package-*.mk (24.10 and 25.12): what is not in python3-base
    # and python3-light. A folder or file there is the module of that name here, C parts (lib-dynload) included.
    "python3-asyncio": {"asyncio"},
    "python3-cgi": {"cgi", "cgitb"},
    "python3-codecs": {
        *("unicodedata", "_codecs_cn", "_codecs_hk", "_codecs_iso2022", "_codecs_jp", "_codecs_kr", "_codecs_tw"),
    },
    "python3-ctypes": {"ctypes", "_ctypes"},
    "python3-dbm": {"dbm", "_dbm", "_gdbm"},
    "python3-decimal": {"decimal", "_decimal"},
    "python3-distutils": {"distutils"},
    "python3-email": {"email"},
    "python3-lib2to3": {"lib2to3"},
    "python3-logging": {"logging"},
    "python3-lzma": {"lzma", "_lzma"},
    "python3-multiprocessing": {"multiprocessing", "_multiprocessing"},
    "python3-ncurses": {"curses", "_curses", "_curses_panel"},
    "python3-openssl": {"_hashlib", "_ssl"},
    "python3-pydoc": {"doctest", "pydoc", "pydoc_data"},
    "python3-readline": {"readline"},
    "python3-sqlite3": {"sqlite3", "_sqlite3"},
    "python3-unittest": {"unittest"},
    "python3-urllib": {"urllib"},
    "python3-uuid": {"uuid", "_uuid"},
    "python3-venv": {"venv", "ensurepip"},
    "python3-xml": {"xml", "xmlrpc", "pyexpat", "_elementtree"},
    "nowhere": {"idlelib", "tkinter", "_tkinter", "turtle", "turtledemo", "test", "webbrowser"},
}
BRINGS = {"python3-urllib": {"python3-email"}}
"""DEPENDS of the splits themselves."""

# Put before whatever runs: a Python that has those splits alone, and no other package. `[]` is the tree on sys.path.
ONLY = """
import sys
tree, splits = sys.argv[1], set(sys.argv[2].split(","))
absent = {name: split for split, names in SPLITS.items() if split not in splits for name in names}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}: {absent[name.partition('.')[0]]}", name=name)
sys.meta_path.insert(0, Absent())
loaded = set(absent) & set(sys.modules)
assert not loaded, f"already loaded: {loaded}"
sys.path.insert(0, tree)
sys.argv = ["evenlane", *sys.argv[3:]]
"""


def load(path):
    """A module by its file: deploy/ is no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


build_ipk, pack = load(FEED / "build_ipk.py"), load(FEED / "evenlane/pack.py")
joined = load(Path(__file__).with_name("joined.py"))


def splits_of(depends):
    """The splits that a list of dependencies brings."""
    found = {one for one in depends if one in SPLITS}
    return found.union(*(BRINGS.get(one, set()) for one in found))


def python(tree, splits, code, *argv, **options):
    """Run code with the standard library as a router has it: no site, no other packages, no environment."""
    program = f"SPLITS = {SPLITS!r}\n{ONLY}\n{code}"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", program, str(tree), ",".join(sorted(splits)), *argv],
        **({"capture_output": True, "text": True, "timeout": 120, "env": {"PATH": os.environ["PATH"]}} | options),
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_ipk.build(tmp_path_factory.mktemp("ipk"))


@pytest.fixture(scope="module")
def router(built, tmp_path_factory):
    """A root file system with the package in it."""
    root = tmp_path_factory.mktemp("router")
    for name in ("etc", "lib", "usr/lib", "var/run"):
        (root / name).mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/ash\n")
    (root / "lib/functions.sh").write_text(DEFAULT_POSTINST)
    scripts = lay_out(built.path, root)
    for name in ("preinst", "postinst"):
        environ = {"PATH": os.environ["PATH"], "IPKG_INSTROOT": str(root)}
        argv = ["sh", str(scripts / name), "install"]
        done = subprocess.run(argv, env=environ, text=True, capture_output=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
    return root


DEFAULT_POSTINST = """
# STUB of OpenWrt's /lib/functions.sh: of default_postinst what happens with a root elsewhere (an image is built).
default_postinst() {
    local scripts="${1%/*}" name="$(sed -n 's/^Package: //p' "${1%/*}/control")" user
    user="$(sed -n 's/^Require-User: //p' "$scripts/control")"
    [ -z "$user" ] || echo "${user%%=*}:x:4481:4481::/var/run:/bin/false" >>"$IPKG_INSTROOT/etc/passwd"
    [ ! -f "$scripts/postinst-pkg" ] || sh "$scripts/postinst-pkg" || return 1
    mkdir -p "$IPKG_INSTROOT/etc/rc.d"
    ln -sf "../init.d/$name" "$IPKG_INSTROOT/etc/rc.d/S95$name"
}
"""


def lay_out(ipk, root):
    """As opkg does: data into the root, control beside it; gives the folder of the scripts."""
    with tarfile.open(ipk, "r:gz") as outer:
        assert outer.getnames() == ["./debian-binary", "./data.tar.gz", "./control.tar.gz"]
        assert outer.extractfile("./debian-binary").read() == b"2.0\n"
        scripts = root / "usr/lib/opkg/info/evenlane"
        for name, target in (("data", root), ("control", scripts)):
            target.mkdir(parents=True, exist_ok=True)
            with tarfile.open(fileobj=io.BytesIO(outer.extractfile(f"./{name}.tar.gz").read()), mode="r:gz") as inner:
                for member in inner.getmembers():
                    assert member.isreg() or member.isdir()
                    assert member.name == "." or member.name.startswith("./")
                    assert ".." not in member.name
                    assert (member.uid, member.gid, member.mtime) == (0, 0, build_ipk.EPOCH_S)
                inner.extractall(target, filter="fully_trusted")  # noqa: S202 - every member was looked at
    return scripts


def tree_of(root):
    (tree,) = root.glob("usr/lib/python3.*/site-packages")
    return tree


# -- layout -----------------------------------------------------------------------------------------------------


def test_it_is_small_enough_for_a_router(built):
    sources = build_ipk.build(built.path.parent, "evenlane-src")
    for one in (built, sources):
        print(
            f"{one.path.name}: {one.path.stat().st_size / 1000:.0f} kB to fetch, {one.installed_bytes / 1000:.0f} kB "
            f"installed, {one.block_bytes / 1000:.0f} kB in blocks of 4 KiB"
        )
    assert built.installed_bytes <= MOST_BYTES
    assert built.path.stat().st_size <= MOST_BYTES


def test_the_same_bytes_on_every_build(built, tmp_path):
    assert build_ipk.build(tmp_path).path.read_bytes() == built.path.read_bytes()


def test_what_is_installed_and_as_what(built, router):
    modes = {
        "etc/config/evenlane": 0o600,
        "etc/init.d/evenlane": 0o755,
        "etc/uci-defaults/80-evenlane": 0o755,
        "etc/hotplug.d/iface/95-evenlane": 0o644,
        "etc/hotplug.d/ntp/95-evenlane": 0o644,
        "etc/capabilities/evenlane.json": 0o644,
        "lib/upgrade/keep.d/evenlane": 0o644,
        "usr/bin/evenlane": 0o755,
    }
    assert {name: (router / name).stat().st_mode & 0o777 for name in modes} == modes
    files = {name.removeprefix("./") for name in built.files}
    outside = {name for name in files if not name.startswith("usr/lib/python3.")}
    assert outside == set(modes)
    inside = {Path(name).parts[4] for name in files - outside}
    assert inside == {
        "probe",
        "analysis",
        "evenlane",
        f"evenlane-{build_ipk.read_recipe().variables['PKG_VERSION']}.dist-info",
    }
    assert (router / "etc/evenlane").is_dir()
    assert "evenlane:x:4481:4481" in (router / "etc/passwd").read_text()
    assert (router / "etc/rc.d/S95evenlane").resolve() == (router / "etc/init.d/evenlane").resolve()
    info = router / "usr/lib/opkg/info/evenlane"
    assert (info / "conffiles").read_text() == "/etc/config/evenlane\n"
    assert f"\nInstalled-Size: {built.installed_bytes}\n" in (info / "control").read_text()


def test_nothing_of_the_other_rooms_is_in_it(built):
    tree = tree_of_names(built.files)
    assert not [name for name in tree if "reflector" in Path(name).parts or "packet" in Path(name).parts]
    assert not [name for name in tree if name.endswith(".py") or "__pycache__" in name]


def tree_of_names(files):
    return [name.split("site-packages/")[1] for name in files if "site-packages/" in name]


def test_the_version_is_that_of_the_distribution():
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert build_ipk.read_recipe().variables["PKG_VERSION"] == version


@pytest.mark.parametrize(
    ("memory_kb", "free_kb", "sentence"),
    [
        (120_000, 20_000, None),
        (58_000, 20_000, "this device has 56 MB of memory and the probe needs 100 MB"),
        (120_000, 5_000, "4 MB are free on this device and the probe needs 8 MB"),
        (0, 0, None),  # nothing is known: no reason to refuse
    ],
)
def test_devices_that_are_too_small_are_refused_with_a_sentence(tmp_path, memory_kb, free_kb, sentence):
    (tmp_path / "meminfo").write_text(f"MemTotal:       {memory_kb} kB\nMemFree: 1 kB\n")
    df = tmp_path / "df"
    df.write_text(
        "#!/bin/sh\n# STUB\necho 'Filesystem 1K-blocks Used Available Use% Mounted on'\n"
        f"echo 'overlayfs:/overlay 30000 1 {free_kb} 1% /'\n"
    )
    df.chmod(0o755)
    script = tmp_path / "preinst"
    script.write_text(build_ipk.read_recipe().script("evenlane", "preinst"))
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "EVENLANE_PROC": str(tmp_path)}
    done = subprocess.run(["sh", str(script)], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == (1 if sentence else 0), done.stderr
    assert done.stderr.count("\n") == (1 if sentence else 0)
    assert (sentence or "") in done.stderr


# -- dependencies -----------------------------------------------------------------------------------------------

EVERYTHING = """
import importlib, json, socket
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
import hashlib, ssl
ssl.create_default_context()
hashlib.sha256(b"")
socket.getaddrinfo("localhost", 443)  # a name goes through encodings.idna
print("all of it")
"""


def wanted():
    """Our modules, and every module of the standard library that they import anywhere, also within functions."""
    ours = pack.reachable(ROOT)
    return sorted(ours), standard_of(ours)


def standard_of(ours):
    standard = set()
    for path in ours.values():
        for node in ast.walk(without_type_checking(ast.parse(path.read_text(encoding="utf-8")))):
            if isinstance(node, ast.Import):
                standard.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                standard.add(node.module)
    standard = {name for name in standard if name.partition(".")[0] in sys.stdlib_module_names - {"__future__"}}
    return sorted(standard)


def without_type_checking(tree):
    class Without(ast.NodeTransformer):
        def visit_If(self, node):
            if "TYPE_CHECKING" in ast.dump(node.test):
                return [self.visit(one) for one in node.orelse] or None
            return self.generic_visit(node)

    return Without().visit(tree)


def test_the_recipe_depends_on_all_that_is_imported():
    splits = splits_of(build_ipk.read_recipe().depends("evenlane"))
    ours, standard = wanted()
    done = python(ROOT, splits, EVERYTHING, json.dumps(ours + standard))
    assert done.stdout == "all of it\n", f"DEPENDS lacks a split: {done.stderr.strip().splitlines()[-1]}"


@pytest.mark.parametrize("split", [one for one in build_ipk.read_recipe().depends("evenlane") if one in SPLITS])
def test_no_dependency_is_superfluous(split):
    if split == "python3-urllib" and sys.version_info >= (3, 12):
        pytest.skip("only pathlib of Python 3.11 (OpenWrt 24.10) imports urllib")
    splits = splits_of(set(build_ipk.read_recipe().depends("evenlane")) - {split})
    done = python(ROOT, splits, EVERYTHING, json.dumps(wanted()[1]))
    assert done.returncode != 0
    told = {split, *BRINGS.get(split, ())}
    assert any(one in done.stderr for one in told) or split == "python3-codecs", done.stderr


def test_a_router_without_urllib_email_and_the_like_is_enough():
    """Beyond what the recipe names nothing may creep in (docs/architecture.md, "Footprint")."""
    depends = build_ipk.read_recipe().depends("evenlane")
    assert {one for one in depends if one.startswith("python3-")} == {
        *("python3-light", "python3-codecs", "python3-decimal", "python3-openssl", "python3-urllib"),
    }


# -- from there -------------------------------------------------------------------------------------------------

COMMAND = "from evenlane.cli import main\nsys.exit(main(sys.argv[1:]))"


def evenlane(router, *argv, **options):
    return python(tree_of(router), splits_of(build_ipk.read_recipe().depends("evenlane")), COMMAND, *argv, **options)


def test_a_differential_nettest_from_the_routers_tree(router, reflector):
    done = evenlane(
        router,
        *["probe", "run", "differential", "--reflector", reflector.url, "--app", "youtube", "--pairs", "1"],
        *["--segment-s", "0.5", "--pace-mbps", "4", "--state", str(router / "etc/evenlane"), "--json"],
        *["--out", str(router / "var/run/out.jsonl")],
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["pairs"]
    lines = (router / "var/run/out.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert not list(tree_of(router).rglob("__pycache__"))


def test_a_turn_of_the_service_from_the_routers_tree(router, reflector, tmp_path):
    """What procd's agent starts: settings that were rendered from UCI, state and volatile files where they are told."""
    state, run = tmp_path / "etc/evenlane", tmp_path / "var/run/evenlane"
    joined.join(state, reflector.url, reflector.key)
    settings = tmp_path / "settings.json"
    settings.write_text('{"enabled": "1", "brand": "Example", "daily_mb": "lots", "language": "nl"}')
    places = ["--state", str(state), "--run", str(run), "--settings", str(settings)]
    done = evenlane(router, "probe", "once", "--now", "--json", *places)
    assert done.returncode == 0, done.stderr
    turn = json.loads(done.stdout)
    assert turn["outcome"] == "measured", turn
    assert len(turn["problems"]) == 1
    assert turn["problems"][0].startswith("daily_mb must be")
    status = json.loads((run / "status.json").read_text())  # what the page of the router shows
    assert status["sentences"]["nl"]
    assert status["last"]["apps"][0].keys() >= {"app", "app_mbps", "neutral_mbps"}
    assert {path.name for path in state.iterdir()} <= {"key", "enrolment.json", "plan.jsonl", "life", "budget.json"}


@pytest.mark.parametrize("argv", [["probe", "list"], ["probe", "--help"], ["--help"], ["--version"]])
def test_other_commands_from_the_routers_tree(router, argv):
    done = evenlane(router, *argv)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_a_command_that_is_not_installed_is_one_sentence(router):
    done = evenlane(router, "lab", "run", "x")
    assert done.returncode == 3, done.stderr
    assert (
        done.stderr == "evenlane: this installation has no `evenlane lab`: pip install evenlane brings all commands\n"
    )
