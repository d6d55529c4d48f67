# SPDX-License-Identifier: EUPL-1.2
def main() -> int:
    return 0
