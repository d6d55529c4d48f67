# SPDX-License-Identifier: EUPL-1.2
"""JSON Schema (2020-12) generated from the record dataclasses, so that prose, code and schema cannot drift.

`python -m probe.wire.schema DIR` writes one file a record type; a test compares them with spec/schema/.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Any, Final, Literal, Union, get_args, get_origin

from probe.wire import limits
from probe.wire.codec import Bounds, fields_of
from probe.wire.records import Enrolment, Leave, Measurement, PairRecord, Plan, Receipt, Started

TITLES: Final = {
    "measurement": Measurement,
    "receipt": Receipt,
    "started": Started,
    "plan": Plan,
    "enrolment": Enrolment,
    "leave": Leave,
    "pair": PairRecord,
}
ENVELOPE: Final = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "envelope",
    "description": "A payload's bytes, the key that signed them, and the Ed25519 signature over exactly these bytes.",
    "type": "object",
    "required": ["evenlane", "key", "payload", "sig"],
    "properties": {
        "evenlane": {"const": 1},
        "key": {"type": "string", "pattern": "^[A-Za-z0-9_-]{43}$"},
        "payload": {"type": "string", "pattern": "^[A-Za-z0-9_-]+$", "maxLength": limits.MAX_ENVELOPE_BYTES},
        "sig": {"type": "string", "pattern": "^[A-Za-z0-9_-]{86}$"},
    },
}


def schema_of(cls: type, title: str) -> dict[str, Any]:
    """The schema of one record type, nested records under `$defs`."""
    definitions: dict[str, Any] = {}
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **_object(cls, definitions)}
    if definitions:
        schema["$defs"] = dict(sorted(definitions.items()))
    return schema


def _object(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    properties, required = {}, []
    for name, hint, bounds, needed in fields_of(cls):
        properties[name] = _value(hint, bounds, definitions)
        if needed:
            required.append(name)
    summary = (cls.__doc__ or "").split("\n\n")[0].replace("\n    ", " ")
    return {"description": summary, "type": "object", "required": required, "properties": properties}


def _value(hint: Any, bounds: Bounds, definitions: dict[str, Any]) -> dict[str, Any]:
    origin = get_origin(hint)
    if origin in (types.UnionType, Union):
        (inner,) = (arm for arm in get_args(hint) if arm is not type(None))
        return {"anyOf": [_value(inner, bounds, definitions), {"type": "null"}]}
    if origin is Literal:
        allowed = list(get_args(hint))
        return {"const": allowed[0]} if len(allowed) == 1 else {"enum": allowed}
    if origin is tuple:
        return {"type": "array", "maxItems": bounds.most, "items": _value(get_args(hint)[0], bounds, definitions)}
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)  # noqa: S101  (narrows for the type checker)
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}
            definitions[hint.__name__] = _object(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    return _scalar(hint, bounds)


def _scalar(hint: Any, bounds: Bounds) -> dict[str, Any]:
    if hint is bool:
        return {"type": "boolean"}
    if hint is str:
        schema: dict[str, Any] = {"type": "string", "maxLength": bounds.longest}
        if bounds.pattern is not None:
            schema["pattern"] = f"^(?:{bounds.pattern})$"
        return schema
    schema = {"type": "integer" if hint is int else "number"}
    schema["minimum"] = -limits.MAX_INT if bounds.low is None else bounds.low
    schema["maximum"] = limits.MAX_INT if bounds.high is None else bounds.high
    return schema


def documents() -> dict[str, str]:
    """File name to text, for every record type and the envelope."""
    found = {f"{title}.schema.json": schema_of(cls, title) for title, cls in TITLES.items()}
    found["envelope.schema.json"] = dict(ENVELOPE)
    return {name: json.dumps(schema, indent=1, ensure_ascii=False) + "\n" for name, schema in found.items()}


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for name, content in documents().items():
        (target / name).write_text(content, encoding="utf-8")
