# SPDX-License-Identifier: EUPL-1.2
"""The accuracy study: how often the product is right about operators whose truth is known. spec/accuracy.md."""
