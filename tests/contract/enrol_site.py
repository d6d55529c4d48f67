# SPDX-License-Identifier: EUPL-1.2
"""A running collector and a client, for tests of those who take part."""

import dataclasses
import json
import random
from contextlib import asynccontextmanager

from aiohttp.test_utils import TestClient, TestServer

from collector.app import create_app
from collector.config import Config
from collector.enrolment import CONSENT, new_token
from collector.judge import Judge
from collector.keys import CONFIG, IDENTITY, STORE, WORKER
from collector.rehearsal import Rehearsal, Truth, signer
from probe.wire.envelope import read_payload, seal, to_json
from probe.wire.records import Enrolment, Leave, Origin, Plan, PlannedNettest, PlannedReflector

NOW = 1_790_002_800_000
DAY_MS = 86_400_000
JSON = "application/json"


class Site:
    """A running collector and a client; `now` may be moved."""

    def __init__(self, client, app, clock, data):
        self.client, self.app, self.clock, self.data = client, app, clock, data
        self.rng = random.Random(5)
        self.probe = signer(self.rng)
        self.identity = app[IDENTITY]
        self.reflector = signer(self.rng)
        self.rehearsal = Rehearsal(rng=self.rng, reflector=self.reflector)
        self.probes = [signer(self.rng) for _ in range(4)]

    def wish(self, who=None, *, of=Enrolment, **told):
        fields = {"collector": self.identity.key_id, "at_ms": self.clock[0], "v": 1}
        fields |= {"type": "enrolment", "consent": CONSENT} if of is Enrolment else {"type": "leave"}
        return seal(of(**fields | told), who or self.probe)

    async def post(self, door, body, kind=JSON, **headers):
        if not isinstance(body, bytes):
            body = json.dumps(to_json(body)).encode()
        sent = {"Content-Type": kind, **headers}
        async with self.client.post(f"/v1/{door}", data=body, headers=sent) as answer:
            return answer.status, await answer.json(content_type=None)

    async def enrol(self, who=None, **told):
        return await self.post("enrol", self.wish(who, **told))

    async def plan(self, probe=None, **headers):
        path = f"/v1/plan?probe={probe or self.probe.key_id}"
        async with self.client.get(path, headers=headers) as answer:
            text = await answer.text()
            return answer.status, answer.headers, json.loads(text) if text else None

    async def leave(self, who=None, **told):
        return await self.post("leave", self.wish(who, of=Leave, **told))

    def session(self, who, network=None, **options):
        origin = Origin(
            asn=64500, operator="Example Net", country="NL", network=network or f"{who + 1:032x}", edge=True
        )
        told = {"started_ms": NOW - 3_600_000, "pairs": 8, "origin": origin, **options}
        return self.rehearsal.session(self.probes[who], **told)

    async def upload(self, *envelopes):
        """What the collector says of each."""
        answers = []
        for envelope in envelopes:
            door = "receipts" if envelope.key == self.reflector.public_key else "measurements"
            status, answer = await self.post(door, envelope)
            answers.append((status, answer.get("status") if status < 300 else answer["error"]))
        return answers

    async def judged(self):
        self.app[WORKER].wake()
        await self.app[WORKER].judged()

    async def caught(self):
        """Four probes measure two slowed apps, with placebo pairs, lost ones and a record that never came."""
        sent = []
        for app, pairs in (("youtube", 18), ("zoom", 4)):
            for who in range(4):
                truth = Truth(slowdown=0.5, noise=0.12)
                sent += self.session(who, app=app, pairs=pairs, placebo=1, unfinished=who % 2, truth=truth).all
        half = self.session(2, pairs=4, started_ms=NOW - 1_800_000)
        sent += [*half.started, half.receipt, *self.session(2, pairs=3, started_ms=NOW - 900_000).started]
        # Its list of started pairs names another operator than its receipt: such pairs are lost, in the list's cell.
        torn = self.session(0, pairs=2, started_ms=NOW - 600_000)
        sent += [torn.receipt, torn.measurement]
        for one in torn.started:
            record = read_payload(one.payload)
            other = dataclasses.replace(record.origin, asn=64501, operator="Other Net")
            sent.append(seal(dataclasses.replace(record, origin=other), self.reflector))
        for door in ("receipts", "measurements"):
            chosen = [to_json(e) for e in sent if (e.key == self.reflector.public_key) == (door == "receipts")]
            for begin in range(0, len(chosen), 100):
                status, answer = await self.post(door, json.dumps({"envelopes": chosen[begin : begin + 100]}).encode())
                assert status == 200
                assert {one["status"] for one in answer["results"]} == {"accepted"}
        # Some figures of a case are those of its last judging; judged as a whole, all are of one moment.
        await self.rejudged()

    async def rejudged(self):
        """All of it judged again from the beginning."""
        await self.judged()
        judge = Judge(self.app[CONFIG])
        self.app[STORE].write(judge.rejudge).result()
        while self.app[STORE].write(lambda book: judge.step(book, self.clock[0], 50)).result().left:
            pass

    async def public(self):
        """Every byte that a reader can get of cells, evidence, cases and the register."""
        found = {}
        for path in ("/v1/cells", "/v1/cases", "/v1/operators", "/v1/cells?format=csv"):
            async with self.client.get(path) as answer:
                found[path] = await answer.read()
        for cell in json.loads(found["/v1/cells"])["cells"]:
            names = ("operator", "app", "direction", "access", "effect")
            path = "/v1/evidence?" + "&".join(f"{name}={cell[name]}" for name in names)
            for whole in (path, path + "&format=csv"):
                async with self.client.get(whole) as answer:
                    found[whole] = await answer.read()
        for case in json.loads(found["/v1/cases"])["cases"]:
            async with self.client.get(f"/v1/cases/{case['id']}") as answer:
                found[case["id"]] = await answer.read()
        return found

    def on_disk(self, who):
        """Files of the data directory in which a probe's key stands, as text or as bytes."""
        keys = (who.key_id.encode(), who.public_key, who.public_key.hex().encode())
        files = [path for path in sorted(self.data.rglob("*")) if path.is_file()]
        return [path.name for path in files if any(key in path.read_bytes() for key in keys)]

    def token(self, **options):
        told = {"uses": 1, "days": None, "now_ms": self.clock[0], **options}
        text, token = new_token("the library", drawn=self.rng.randbytes(36), **told)
        self.app[STORE].roll(lambda roll: roll.put_token(token)).result()
        return text

    def plan_of(self, version, **options):
        plan = Plan(
            type="plan",
            v=1,
            version=version,
            issued_ms=self.clock[0],
            expires_ms=self.clock[0] + 14 * DAY_MS,
            reflectors=(PlannedReflector(url="https://r1.example:4443", key=self.probe.key_id),),
            nettests=(PlannedNettest(nettest="differential", apps=("youtube",)),),
            weights=(),
        )
        return dataclasses.replace(plan, **options)


@asynccontextmanager
async def running(directory, clock=None, **options):
    """A collector on a directory. It trusts the reflector of its `Site`, whose keys are always the same."""
    clock = clock or [NOW]
    rng = random.Random(5)
    reflector = [signer(rng) for _ in range(2)][1]
    told = {"data": directory, "name": "Measuring Club", "contact": "club@example.org"}
    told |= {"reflectors": (reflector.key_id,), **options}
    app = create_app(Config(**told), clock_ms=lambda: clock[0])
    async with TestClient(TestServer(app)) as client:
        yield Site(client, app, clock, directory)
