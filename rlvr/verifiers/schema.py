"""Whether a completion is JSON that a JSON Schema accepts."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from rlvr import types
from rlvr.verifiers import payloads
from rlvr.verifiers.json_text import NotJsonError, find_json, measure_depth, parse_json

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_MAX_SCHEMA_CHARACTERS = 200_000
# Below this depth of the value, running out of stack is the schema's doing.
_SHALLOW = 32


def warm_up() -> None:
    """Imports the validator."""
    import jsonschema  # noqa: F401


def verify_json_schema(completion: str, reference: str, payload: Mapping[str, Any]) -> types.Verdict:
    """Right if the response (what follows the last `</think>`) is one JSON value that the schema accepts.

    Lenient: some fenced block, or an object or list standing in prose, is accepted. The schema's own "$schema" says
    which draft holds, 2020-12 where it does not. "format" is an annotation, as the standard has it; references outside
    the schema are never fetched.

    Payload:
        schema: the schema, an object or a boolean.

    Raises:
        DataError: a schema that is missing, not a schema, too long, endlessly recursive, or that refers to another.
    """
    schema = payloads.read_present(payload, "schema", "a JSON Schema")
    if not isinstance(schema, dict | bool):
        raise payloads.make_error("schema", schema, "an object, true or false")
    text = json.dumps(schema, sort_keys=True)
    if len(text) > _MAX_SCHEMA_CHARACTERS:
        raise payloads.make_error("schema", schema, f"at most {_MAX_SCHEMA_CHARACTERS} characters")
    validator = _make_validator(text)
    response = payloads.find_response(completion)
    if response is None:
        return types.Verdict(0.0, "unparsed", "the reasoning was never closed")
    status, detail = "wrong", ""
    try:
        detail = _find_fault(validator, parse_json(response))
        if not detail:
            return types.Verdict(1.0, "correct", "accepted")
    except NotJsonError as error:
        status, detail = "unparsed", f"not JSON: {error}"
    lenient = any(not _find_fault(validator, value) for value in find_json(response))
    return types.Verdict(0.0, status, detail, parts={"strict": 0.0, "lenient": float(lenient)})


@functools.lru_cache(maxsize=256)
def _make_validator(text: str) -> Any:
    import jsonschema  # a quarter of a second to import: only workers that need it pay
    import referencing

    schema = json.loads(text)
    named = schema.get("$schema", _DRAFT) if isinstance(schema, dict) else _DRAFT
    kind = jsonschema.validators.validator_for({"$schema": named}, default=None) if isinstance(named, str) else None
    if kind is None:
        raise payloads.make_error("$schema", named, f"the address of a published draft, such as {_DRAFT}")
    try:
        kind.check_schema(schema)
    except (jsonschema.SchemaError, RecursionError) as error:
        message = getattr(error, "message", "nested too deep")
        raise payloads.make_error("schema", schema, f"a JSON Schema; {message}") from error
    return kind(schema, registry=referencing.Registry())  # an empty registry fetches nothing


def _find_fault(validator: Any, value: Any) -> str:
    """Returns why the schema refuses the value, "" if it accepts it."""
    import referencing.exceptions

    try:
        fault = next(validator.iter_errors(value), None)
    except RecursionError:
        if measure_depth(value) <= _SHALLOW:
            raise payloads.make_error("schema", validator.schema, "a schema without endless references") from None
        return "nested too deep"
    except referencing.exceptions.Unresolvable as error:
        raise payloads.make_error("schema", validator.schema, f"a schema that stands alone; {error}") from error
    return "" if fault is None else f"{fault.json_path}: {fault.message}"
