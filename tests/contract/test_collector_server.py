# SPDX-License-Identifier: EUPL-1.2
"""The collector inside another program (the demo): its own port, sockets handed in, and a way to wait for verdicts."""

import random
import socket

import aiohttp
import pytest

from collector.config import Config
from collector.rehearsal import Rehearsal, Truth, signer
from collector.server import ServeError, running
from collector.store.base import StoreError
from probe.wire.envelope import to_json


async def test_both_sockets_lead_to_one_collector(tmp_path):
    rng = random.Random(4)
    reflector = signer(rng)
    rehearsal = Rehearsal(rng=rng, reflector=reflector)
    config = Config(data=tmp_path, port=0, reflectors=(reflector.key_id,))
    other = socket.create_server(("127.0.0.1", 0))
    async with running(config, extra_sockets=[other]) as collector, aiohttp.ClientSession() as client:
        urls = [collector.url, f"http://127.0.0.1:{other.getsockname()[1]}"]
        from collector.app import now_ms

        told = rehearsal.session(signer(rng), started_ms=now_ms() - 60_000, pairs=4, truth=Truth(slowdown=0.5))
        for url, door, envelopes in (
            (urls[0], "receipts", (*told.started, told.receipt)),
            (urls[1], "measurements", (told.measurement,)),
        ):
            body = {"envelopes": [to_json(envelope) for envelope in envelopes]}
            async with client.post(f"{url}/v1/{door}", json=body) as answer:
                assert answer.status == 200
        await collector.judged()
        assert {cell.pairs for cell in collector.store.cells()} == {4}
        for url in urls:
            async with client.get(f"{url}/v1/cells") as answer:
                assert len((await answer.json())["cells"]) == 4
    # Everything was let go of: the same directory and port can be used again.
    async with running(config) as collector:
        assert {cell.pairs for cell in collector.store.cells()} == {4}


async def test_a_port_in_use_lets_go_of_the_directory(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = Config(data=tmp_path, port=taken.getsockname()[1])
        for _ in range(2):
            with pytest.raises(ServeError, match="choose another with --port"):
                async with running(config):
                    pass


async def test_two_in_one_process_do_not_mix(tmp_path):
    configs = [Config(data=tmp_path / name, port=0) for name in "ab"]
    async with running(configs[0]) as first, running(configs[1]) as second:
        assert first.port != second.port
        with pytest.raises(StoreError, match="another collector"):
            async with running(configs[0]):
                pass
