# SPDX-License-Identifier: EUPL-1.2
"""The probe's sockets: blocking calls with deadlines, no threads, no asyncio, small memory.

`http` speaks HTTP/1.1, `dial` connects and opens TLS, `control` is the control channel, `transfer` runs one
segment, with `stream` where its carrier has no TLS and `datagram` where it is UDP. Nothing here knows an arm.
Spec: spec/protocol.md, sections "Control channel" and "Data connection"; spec/carriers.md.
"""
