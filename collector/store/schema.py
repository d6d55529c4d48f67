# SPDX-License-Identifier: EUPL-1.2
"""The tables, and how an older file becomes a newer one. `PRAGMA user_version` counts the steps taken.

`envelope`, `kept` and `operator`, `app`, `label`, `cases`, `case_event` and `verdict_by_rule` are the record;
`enrolment`, `token` and `departed` say who takes part (spec/enrolment.md); everything else follows from the record and
can be judged again. No table has a column for an address. Spec: spec/api.md, section "Store".
"""

from __future__ import annotations

import sqlite3
from typing import Final

from collector.store.base import StoreError

_FIRST: Final = """
CREATE TABLE envelope (              -- the bytes as signed
  seq INTEGER PRIMARY KEY,           -- order of arrival
  kind TEXT NOT NULL,                -- measurement, receipt, started
  ident TEXT NOT NULL,               -- what makes it one for its signer
  signer BLOB NOT NULL,
  digest BLOB NOT NULL,              -- SHA-256 of the payload
  session TEXT NOT NULL,
  probe TEXT NOT NULL,
  reflector TEXT NOT NULL,
  payload BLOB NOT NULL,
  signature BLOB NOT NULL,
  received_ms INTEGER NOT NULL,
  UNIQUE (signer, kind, ident)
);
CREATE INDEX envelope_session ON envelope (reflector, session, probe);
CREATE UNIQUE INDEX envelope_measured ON envelope (reflector, session, probe) WHERE kind = 'measurement';

CREATE TABLE pending (               -- sessions about which something new is known
  seq INTEGER PRIMARY KEY,           -- the first to arrive first
  reflector TEXT NOT NULL, session TEXT NOT NULL, probe TEXT NOT NULL,
  UNIQUE (reflector, session, probe)
);

CREATE TABLE operator (              -- the register: a place is given once and for good
  place INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  brand TEXT NOT NULL,
  asns TEXT NOT NULL,                -- JSON list
  country TEXT,
  timezone TEXT NOT NULL,
  configured INTEGER NOT NULL,
  cgnat INTEGER NOT NULL
);
CREATE TABLE app (                   -- apps outside the plan, in the order in which they were first seen
  place INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE
);
CREATE TABLE cell (
  id INTEGER PRIMARY KEY,
  operator INTEGER NOT NULL REFERENCES operator (place),
  app TEXT NOT NULL,
  direction TEXT NOT NULL,
  access TEXT NOT NULL,
  extras TEXT NOT NULL DEFAULT '{}', -- counts for the pictures
  UNIQUE (operator, app, direction, access)
);
CREATE TABLE probe_network (         -- who was ever seen in which network (keyed hash)
  hash TEXT NOT NULL, probe TEXT NOT NULL,
  PRIMARY KEY (hash, probe)
) WITHOUT ROWID;
CREATE TABLE probe_component (       -- which of them are one: named by the first of its probes
  probe TEXT PRIMARY KEY, component TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE pair (
  reflector TEXT NOT NULL, session TEXT NOT NULL, number INTEGER NOT NULL,
  cell INTEGER NOT NULL REFERENCES cell (id),
  probe TEXT NOT NULL,
  kind TEXT NOT NULL,
  started_ms INTEGER NOT NULL,
  body TEXT NOT NULL,                -- facts and score, JSON
  PRIMARY KEY (reflector, session, number)
) WITHOUT ROWID;
CREATE INDEX pair_order ON pair (cell, started_ms, session, number);
CREATE INDEX pair_stream ON pair (cell, probe, started_ms);
CREATE INDEX pair_session ON pair (reflector, session, probe);
CREATE TABLE state (                 -- wins and losses of one probe in one cell
  cell INTEGER NOT NULL REFERENCES cell (id),
  kind TEXT NOT NULL,
  probe TEXT NOT NULL,
  body TEXT NOT NULL,
  PRIMARY KEY (cell, kind, probe)
) WITHOUT ROWID;
CREATE INDEX state_probe ON state (probe);
CREATE TABLE verdict (               -- one row a hypothesis: what is shown, and what the selection needs
  cell INTEGER NOT NULL REFERENCES cell (id),
  effect TEXT NOT NULL,
  log_e REAL NOT NULL,
  log_weight REAL NOT NULL,
  listed INTEGER NOT NULL,
  view TEXT NOT NULL,
  stamp INTEGER NOT NULL,            -- another one each time it is written: tells whether pictures are still right
  PRIMARY KEY (cell, effect)
) WITHOUT ROWID;
CREATE TABLE hour (                  -- the cell at the end of each hour that has pairs
  cell INTEGER NOT NULL REFERENCES cell (id),
  effect TEXT NOT NULL,
  bucket_ms INTEGER NOT NULL,
  point TEXT NOT NULL,
  view TEXT NOT NULL,
  PRIMARY KEY (cell, effect, bucket_ms)
) WITHOUT ROWID;
CREATE TABLE cases (
  id TEXT PRIMARY KEY,
  cell INTEGER NOT NULL REFERENCES cell (id),
  effect TEXT NOT NULL,
  opened_ms INTEGER NOT NULL,
  body TEXT NOT NULL,                -- the case as analysis keeps it, with its witnesses: private
  numbers TEXT NOT NULL              -- what its page tells beside its cell
);
CREATE INDEX cases_cell ON cases (cell, effect);
CREATE TABLE case_event (            -- append-only
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL REFERENCES cases (id),
  as_of_ms INTEGER NOT NULL,         -- start of the newest hour that had been judged
  body TEXT NOT NULL
);
CREATE INDEX case_event_case ON case_event (id, seq);
CREATE TRIGGER case_event_kept BEFORE DELETE ON case_event
  BEGIN SELECT RAISE(ABORT, 'the history of a case is append-only'); END;
CREATE TRIGGER case_event_fixed BEFORE UPDATE ON case_event
  BEGIN SELECT RAISE(ABORT, 'the history of a case is append-only'); END;
CREATE TABLE label (                 -- drawn at random, constant over the cell's life, unlinkable between cells
  cell INTEGER NOT NULL REFERENCES cell (id),
  kind TEXT NOT NULL,                -- p a probe, n a network
  subject TEXT NOT NULL,
  label INTEGER NOT NULL,
  PRIMARY KEY (cell, kind, subject),
  UNIQUE (cell, kind, label)
) WITHOUT ROWID;
CREATE TABLE outbox (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  kind TEXT NOT NULL,
  topic TEXT NOT NULL UNIQUE,        -- a newer point of the same cell and hour takes an older one's place
  body TEXT NOT NULL
);
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""

_SECOND: Final = """
CREATE TABLE verdict_by_rule (       -- append-only: what an earlier edition of the rule had said last
  seq INTEGER PRIMARY KEY,
  cell INTEGER NOT NULL REFERENCES cell (id),
  effect TEXT NOT NULL,
  rule TEXT NOT NULL,
  until_ms INTEGER NOT NULL,         -- when the next edition's verdict took its place
  view TEXT NOT NULL
);
CREATE INDEX verdict_by_rule_cell ON verdict_by_rule (cell, effect, seq);
CREATE TRIGGER verdict_by_rule_kept BEFORE DELETE ON verdict_by_rule
  BEGIN SELECT RAISE(ABORT, 'the history of verdicts is append-only'); END;
CREATE TRIGGER verdict_by_rule_fixed BEFORE UPDATE ON verdict_by_rule
  BEGIN SELECT RAISE(ABORT, 'the history of verdicts is append-only'); END;
-- The only edition there was before this step.
INSERT OR IGNORE INTO meta (name, value)
  SELECT 'rule', 'evenlane-pairs@1:c2629c8a9046bb68' WHERE EXISTS (SELECT 1 FROM verdict);
-- A closed case shows its cell as it was then; what comes after belongs to another case.
UPDATE cases SET numbers = json_set(numbers, '$.closed', json(
    (SELECT v.view FROM verdict v WHERE v.cell = cases.cell AND v.effect = cases.effect)))
  WHERE json_extract(body, '$.status') <> 'open'
    AND EXISTS (SELECT 1 FROM verdict v WHERE v.cell = cases.cell AND v.effect = cases.effect);
"""

_THIRD: Final = """
CREATE TABLE enrolment (             -- who takes part, and what was agreed to; nothing else that a volunteer told
  probe TEXT PRIMARY KEY,            -- key id
  at_ms INTEGER NOT NULL,            -- the probe's clock, as signed
  enrolled_ms INTEGER NOT NULL,      -- this collector's
  consent TEXT NOT NULL,             -- version of the text
  language TEXT NOT NULL,
  hotspot INTEGER NOT NULL,
  token TEXT,                        -- id of the token by which it became vetted
  vetted_ms INTEGER
) WITHOUT ROWID;
CREATE TABLE token (
  id TEXT PRIMARY KEY,
  digest BLOB NOT NULL,              -- SHA-256 of the secret, which is kept nowhere
  label TEXT NOT NULL,
  uses INTEGER NOT NULL,
  used INTEGER NOT NULL DEFAULT 0,
  created_ms INTEGER NOT NULL,
  expires_ms INTEGER,
  revoked_ms INTEGER
) WITHOUT ROWID;
CREATE TABLE departed (              -- who left lately, so that what comes late does not bring them back
  mark BLOB PRIMARY KEY,             -- keyed hash of the key; the hash's key stands in a file of its own
  at_ms INTEGER NOT NULL,            -- the probe's clock: an enrolment must be later
  left_ms INTEGER NOT NULL,          -- this collector's
  pseudonym TEXT                     -- under which its pairs stay; forgotten after a day
) WITHOUT ROWID;
CREATE INDEX departed_when ON departed (left_ms);
CREATE TABLE kept (                  -- what judging needs of the sessions of probes that left, under pseudonyms
  reflector TEXT NOT NULL, session TEXT NOT NULL, probe TEXT NOT NULL,
  body TEXT NOT NULL,                -- pairs as facts, JSON
  PRIMARY KEY (reflector, session, probe)
) WITHOUT ROWID;
"""

MIGRATIONS: Final = (_FIRST, _SECOND, _THIRD)
"""Step n makes version n of version n - 1. Steps are added, never changed."""

SECURE_SINCE: Final = 3
"""Files of this version on hold no remains of what was deleted."""


def check_version(connection: sqlite3.Connection) -> int:
    """The file's version. Raises StoreError for one that is newer than this program."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise StoreError(f"it is of version {version}, this program knows {len(MIGRATIONS)}; use a newer evenlane")
    return version


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a file to this program's version, each step in a transaction. Raises StoreError for a newer file."""
    version = check_version(connection)
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;")
    if 0 < version < SECURE_SINCE:
        # Older programs only unlinked what they deleted.
        connection.execute("VACUUM")
