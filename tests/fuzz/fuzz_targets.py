# SPDX-License-Identifier: EUPL-1.2
"""All targets: importing this module enters them into the list."""

import fuzz_archive
import fuzz_carriers
import fuzz_collector
import fuzz_files
import fuzz_hello_oracle
import fuzz_lab
import fuzz_network
import fuzz_wire
from fuzz_registry import TARGETS, Target

__all__ = [
    "TARGETS",
    "Target",
    "fuzz_archive",
    "fuzz_carriers",
    "fuzz_collector",
    "fuzz_files",
    "fuzz_hello_oracle",
    "fuzz_lab",
    "fuzz_network",
    "fuzz_wire",
]
