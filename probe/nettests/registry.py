# SPDX-License-Identifier: EUPL-1.2
"""The nettests there are, by name. Written out, so that reading this file tells what a probe can do."""

from __future__ import annotations

from probe.nettests.base import Nettest, OptionError
from probe.nettests.differential import Differential

NETTESTS: dict[str, Nettest] = {nettest.id: nettest for nettest in (Differential(),)}


def get(name: str) -> Nettest:
    """The nettest of that name. Raises OptionError."""
    try:
        return NETTESTS[name]
    except KeyError:
        raise OptionError(f"there is no nettest {name!r}; known are {', '.join(sorted(NETTESTS))}") from None
