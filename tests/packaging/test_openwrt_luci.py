# SPDX-License-Identifier: EUPL-1.2
"""The LuCI page: its scripts run (in node, with a stub of LuCI), its grants and its translations are complete."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from probe.settings import NAMES

APP = Path(__file__).parents[2] / "deploy/openwrt/luci-app-evenlane"
VIEWS = APP / "htdocs/luci-static/resources/view/evenlane"

LUCI = r"""
// A STUB of LuCI: elements become plain objects, a form writes down its options. Like LuCI's own, E() takes a bare
// string for HTML; here that is an error.
function E(tag, attributes, children) {
    if (!Array.isArray(children)) throw new Error('bare content would be HTML: ' + JSON.stringify(children));
    return { tag, attributes, children };
}
String.prototype.format = function() {
    let at = 0; const values = arguments;
    return this.replace(/%[sfd%]/g, what => what == '%%' ? '%' : String(values[at++]));
};
const _ = text => '«' + text + '»';
const L = { resolveDefault: (promise, otherwise) => Promise.resolve(promise).catch(() => otherwise) };
const document = { documentElement: { lang: 'nl-BE' } };
let file = null; const polled = [], options = [];
const view = { extend: what => what };
const fs = { read: path => file === null ? Promise.reject(new Error('no such file')) : Promise.resolve(file) };
const poll = { add: (what, seconds) => polled.push([what, seconds]) };
const dom = { content: (node, children) => { node.children = children; } };
const section = {
    tab: () => {},
    taboption: (tab, kind, name, title) => {
        options.push({ kind, name, title, value: () => {} });
        return options[options.length - 1];
    },
};
const form = { Map: function() { return { section: () => section, render: () => options }; } };
for (const kind of ['NamedSection', 'Flag', 'Value', 'ListValue', 'DynamicList']) form[kind] = kind;
const widgets = { NetworkSelect: 'NetworkSelect' };
const words = node => node.children ? node.children.map(words).join('\n') : String(node);
const source = require('fs').readFileSync(process.argv[2], 'utf8');
const needs = ['view', 'form', 'fs', 'poll', 'dom', 'widgets', 'E', '_', 'L', 'document'];
const page = new Function(...needs, source)(view, form, fs, poll, dom, widgets, E, _, L, document);
"""


@pytest.fixture(scope="module")
def luci(program, tmp_path_factory):
    """Runs a view in node; gives what the code after it prints."""
    node = program("node", "nodejs")
    script = tmp_path_factory.mktemp("luci") / "run.js"

    def run(name, code, *argv):
        script.write_text(LUCI + code)
        argv = [node, str(script), str(VIEWS / name), *argv]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


SHOW = """
file = process.argv[3] === '' ? null : process.argv[3];
page.load().then(raw => page.render(raw)).then(tree =>
    console.log(JSON.stringify({ words: words(tree), tree, polled: polled.map(one => one[1]) })));
"""
STATUS = {
    "v": 1,
    "at_ms": 1_800_000_000_000,
    "next_ms": 1_800_000_600_000,
    "outcome": "measured",
    "problems": ["daily_mb must be a whole number of megabytes (0 or more), not 'lots'"],
    "budget": {"day_mb": 41.6, "daily_mb": 200, "month_mb": 900.2, "monthly_mb": 5000},
    "collector": {"contact_ms": 1_800_000_000_000},
    "spool": {"sessions": 2, "bytes": 40_000, "dropped": 0},
    "last": {"apps": [{"app": "youtube", "app_mbps": 1.5, "neutral_mbps": 6.0}, {"app": "zoom", "app_mbps": None}]},
    "sentences": {"en": ["YouTube was slower."], "nl": ["YouTube was trager."]},
}


def test_the_status_page_shows_the_probes_own_sentences_in_the_pages_language(luci):
    shown = luci("status.js", SHOW, json.dumps(STATUS))
    assert "YouTube was trager." in shown["words"]
    assert "YouTube was slower." not in shown["words"]
    assert STATUS["problems"][0] in shown["words"]
    assert "42 of 200 MB" in shown["words"]
    assert "youtube" in shown["words"]
    assert "zoom" not in shown["words"]  # half a comparison is none
    widths = re.findall(r"width:([0-9.]+)%", json.dumps(shown["tree"]))
    assert [float(width) for width in widths] == [25.0, 100.0]
    assert shown["polled"] == [30]


def test_a_language_without_sentences_falls_back(luci):
    shown = luci("status.js", SHOW, json.dumps(STATUS | {"sentences": {"en": ["In English."]}}))
    assert "In English." in shown["words"]


@pytest.mark.parametrize(
    "raw", ["", "{", "null", "[]", '"text"', "{}", '{"sentences": 5, "budget": 1, "last": "x", "spool": []}']
)
def test_whatever_the_file_is_the_page_is_drawn(luci, raw):
    shown = luci("status.js", SHOW, raw)
    assert "«What was measured»" in shown["words"]


def test_a_strangers_text_never_becomes_html(luci):
    """The stub refuses bare strings; this makes sure that hostile texts reach it on every way."""
    evil = "<img src=x onerror=alert(1)>"
    hostile = STATUS | {"sentences": {"nl": [evil]}, "problems": [evil], "language": evil}
    hostile["last"] = {"apps": [{"app": evil, "app_mbps": 1e308, "neutral_mbps": -5}]}
    shown = luci("status.js", SHOW, json.dumps(hostile))
    assert shown["words"].count(evil) == 3
    for node in walk(shown["tree"]):
        assert evil not in json.dumps(node["attributes"])


def walk(node):
    yield node
    for child in node["children"]:
        if isinstance(child, dict):
            yield from walk(child)


def test_the_form_offers_every_setting(luci):
    code = "page.render(); console.log(JSON.stringify(options.map(one => [one.name, one.kind])));"
    offered = [name for name, _ in luci("settings.js", code)]
    assert sorted(offered) == sorted(NAMES)


PIN = "a" * 64


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        (
            "collector",
            ["https://c.example.org", f"http://c/x#sha256={PIN}", ""],
            ["c.example.org", "ftp://x", "https://a b"],
        ),
        ("quiet_hours", ["22:30-07:00", "0:00-24:00"], ["night", "25:00-26:00", "22:30"]),
        ("brand", ["Käse & Söhne"], ["x" * 65, "two\nlines"]),
        ("login_hook", ["/root/login"], ["login", "/"]),
    ],
)
def test_the_form_refuses_what_the_probe_would(luci, name, good, bad):
    code = (
        "page.render(); const [name, values] = JSON.parse(process.argv[3]);"
        "const check = options.find(one => one.name == name).validate;"
        "console.log(JSON.stringify(values.map(one => check('main', one) === true)));"
    )
    assert luci("settings.js", code, json.dumps([name, good + bad])) == [True] * len(good) + [False] * len(bad)


# -- menu, grants, translations ---------------------------------------------------------------------------------


def test_menu_and_grants_name_what_is_there():
    menu = json.loads((APP / "root/usr/share/luci/menu.d/luci-app-evenlane.json").read_text())
    views = {entry["action"]["path"] for entry in menu.values() if entry["action"]["type"] == "view"}
    assert views == {f"evenlane/{path.stem}" for path in VIEWS.glob("*.js")}
    ((name, grants),) = json.loads((APP / "root/usr/share/rpcd/acl.d/luci-app-evenlane.json").read_text()).items()
    assert menu["admin/services/evenlane"]["depends"]["acl"] == [name]
    read = re.findall(r"'(/var/run/[^']+)'", (VIEWS / "status.js").read_text())
    assert list(grants["read"]["file"]) == read
    assert set(grants["write"]) == {"uci"}  # the page can change settings, and nothing else on the router


def texts():
    """Every text of the app, as LuCI's own i18n-scan finds them."""
    found = set()
    for path in APP.glob("htdocs/**/*.js"):
        found.update(re.findall(r"_\('((?:[^'\\]|\\.)*)'\)", path.read_text()))
    for path in APP.glob("root/usr/share/**/*.json"):
        found.update(re.findall(r'"(?:title|description)": "(.*)"', path.read_text()))
    return found


def messages(path):
    """The texts of a .po file and their translations."""
    body = path.read_text(encoding="utf-8").split("\n\n", 1)[1]
    found = re.findall(r'^msgid (".*")\nmsgstr (".*")$', body, re.MULTILINE)
    return {json.loads(source): json.loads(target) for source, target in found}


def test_every_text_is_in_the_template():
    assert set(messages(APP / "po/templates/evenlane.pot")) == texts()
    assert len(texts()) > 60


@pytest.mark.parametrize("language", ["nl", "fr", "de"])
def test_every_text_is_translated(language):
    path = APP / f"po/{language}/evenlane.po"
    assert f'"Language: {language}\\n"' in path.read_text(encoding="utf-8")
    found = messages(path)
    assert set(found) == texts()
    assert [source for source, target in found.items() if not target.strip()] == []
    assert [source for source, target in found.items() if target.count("%s") != source.count("%s")] == []
    same = {source for source, target in found.items() if source == target}
    assert len(same) <= 5, same  # names and units
