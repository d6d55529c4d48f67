# SPDX-License-Identifier: EUPL-1.2
"""What an app is called: the titles of the profiles, in each language of the pages.

Profiles are data that travels with the program; read here are their titles alone, not the probe's code. A variant
(`youtube+quic`) without a title of its own is its app's title with the variant behind it; a name that nobody knows
is shown as it is, never left out. Spec: spec/profiles.md; spec/series.md, section "Words and figures".
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Final

from collector.pages.language import Words

_SPELT: Final = {
    "bittorrent": "BitTorrent",
    "disney-plus": "Disney+",
    "disneyplus": "Disney+",
    "facetime": "FaceTime",
    "openvpn": "OpenVPN",
    "prime-video": "Prime Video",
    "primevideo": "Prime Video",
    "wireguard": "WireGuard",
}
"""Names that do not merely begin with a capital, for profiles which a collector does not have (yet)."""
_VARIANTS: Final = {"hello": "TLS hello", "quic": "QUIC", "tcp": "TCP", "udp": "UDP"}


@cache
def titles() -> dict[str, dict[str, str]]:
    """Id of each bundled profile → language → title."""
    found: dict[str, dict[str, str]] = {}
    for file in (resources.files("probe.profiles") / "library").iterdir():
        if file.name.endswith(".toml"):
            profile = tomllib.loads(file.read_text(encoding="utf-8"))
            if isinstance(profile.get("title"), dict):
                found[str(profile.get("id"))] = {code: str(text) for code, text in profile["title"].items()}
    return found


def app_name(words: Words, app: str) -> str:
    """An app as people read it, with the component that is imitated: "YouTube (video)"."""
    if (title := titles().get(app, {}).get(words.language)) is not None:
        return title
    base, plus, variant = app.partition("+")
    if plus and base:
        return f"{app_name(words, base)} – {_VARIANTS.get(variant, variant)}"
    plain = app.replace("-", " ").replace("_", " ")
    return _SPELT.get(app, plain[:1].upper() + plain[1:])
