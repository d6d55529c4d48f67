# SPDX-License-Identifier: EUPL-1.2
"""What a probe can measure: nettests and app profiles."""

from __future__ import annotations

from typing import Any

from probe.nettests.registry import NETTESTS
from probe.profiles.model import DEFAULT_APPS, Shelf, every, load, load_neutral

# -- list -------------------------------------------------------------------------------------------------------


def catalogue() -> dict[str, Any]:
    """Nettests and apps, each app by every carrier that it can be sent by."""
    apps = []
    for name in every():
        profile = load(name)
        titles = profile.title
        apps.append(
            {
                "id": profile.id,
                "reference": profile.reference,
                "kind": profile.kind,
                "component": profile.component,
                "title": {"en": titles.en, "nl": titles.nl, "fr": titles.fr, "de": titles.de},
                "direction": profile.direction,
                "carrier": profile.carrier,
                "pace_mbps": profile.pace_mbps,
                "design": profile.design,
                "packet_bytes": profile.live.packet_bytes if profile.live else None,
                "interval_ms": profile.live.interval_ms if profile.live else None,
                "alpn": list(profile.alpn),
                "names": list(profile.names),
                "ndpi": profile.ndpi,
                "sources": list(profile.sources),
                "default": profile.id in DEFAULT_APPS,
            }
        )
    nettests = [{"id": nettest.id, "title": nettest.title} for nettest in NETTESTS.values()]
    return {"nettests": nettests, "apps": apps, "neutral": load_neutral().reference}


def catalogue_lines(found: dict[str, Any]) -> list[str]:
    """For people."""
    lines = ["nettests"]
    lines += [f"  {nettest['id']:<14} {nettest['title']}" for nettest in found["nettests"]]
    lines.append("apps (* measured unless others are named): carrier, direction and pace of one user, component")
    for app in found["apps"]:
        small = app["packet_bytes"]
        pace = f"{small} B/{app['interval_ms']} ms" if small else f"{app['pace_mbps']:g} Mbit/s"
        facts = f"{app['carrier']:<8}  {app['direction']:<4}  {pace:<11}"
        lines.append(f"{'*' if app['default'] else ' ':>2}{app['id']:<18}  {facts}  {app['component']}")
    return lines


def document(app: str) -> str:
    """A profile as a plan delivers it. Raises ProfileError."""
    return Shelf().document(app)
