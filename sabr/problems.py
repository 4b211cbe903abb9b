"""What is wrong with a value that was given: in one sentence, in the words of the file that it stands in."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sabr.errors import SabrError

ModelT = TypeVar("ModelT", bound=BaseModel)

# What is needed instead, by the kind of problem; all others say it themselves.
_NEEDED = {
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a mapping of keys"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "text",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "too_short": "a list of {min_length} or more",
    "string_too_short": "text of at least {min_length} letter",
    "string_pattern_mismatch": "text that matches {pattern}",
}
# Longer values are cut off.
_SHOWN = 100


class Problem(NamedTuple):
    """Where it is, as a path of keys (empty: it is about the whole), and what it is."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


def checked(kind: type[ModelT], value: object, where: str, remedy: str = "") -> ModelT:
    """The model of a value.

    Parameters
    ----------
    kind
        What it must be.
    value
        As it was read from YAML, JSON or the command line.
    where
        The file, or what else holds it, for the message.
    remedy
        What to do, for the message, where changing the value is not what helps: "delete it and run again".

    Raises
    ------
    SabrError
        One sentence: where, key path, value, and what is allowed.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        told = f"{where}: {first_problem(error, value)}"
        raise SabrError(f"{told}; {remedy}" if remedy else told) from error


def first_problem(error: ValidationError, value: object) -> Problem:
    """The first problem of a validation error of `value`; where it may be one of several kinds, what each needs."""
    problems = error.errors(include_url=False)
    first = problems[0]
    path = _path(first, value)
    here = [problem for problem in problems if _path(problem, value) == path]
    match first["type"]:
        case "value_error":
            return Problem(path, first["msg"].removeprefix("Value error, "))
        case "extra_forbidden" | "invalid_key":
            return Problem(path, "unknown key")
        case "missing":
            return Problem(path, "this key is missing")
        case "union_tag_not_found":
            return Problem(_below(path, first), "this key is missing")
        case "union_tag_invalid":
            told = f"{first['ctx']['tag']!r} is not allowed: one of {first['ctx']['expected_tags']} is needed here"
            return Problem(_below(path, first), told)
    return Problem(path, f"{written(first['input'])} is not allowed: {_allowed(here)}")


def written(value: object) -> str:
    """A value as YAML has it, in one line; a long one is cut off."""
    text = _written(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _written(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float() if not math.isfinite(value):
            return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
        case str():
            return repr(value)
        case Mapping():
            return f"{{{', '.join(f'{key}: {_written(below)}' for key, below in value.items())}}}"
        case Sequence() if not isinstance(value, bytes):
            return f"[{', '.join(map(_written, value))}]"
    return str(value)


def _allowed(problems: Sequence[ErrorDetails]) -> str:
    """What a value may be instead, which is of none of several kinds."""
    needed: dict[str, None] = {}
    quotes = ""
    for problem in problems:
        kind, context = problem["type"], problem.get("ctx", {})
        if kind not in _NEEDED:
            message = problem["msg"].replace("Input should be", "it must be")
            return f"{message[0].lower()}{message[1:]}"
        needed[_NEEDED[kind].format(**context)] = None
        if kind == "string_type" and isinstance(problem["input"], bool | int | float):
            quotes = ", in quotes"
    return f"{' or '.join(needed)} is needed here{quotes}"


def _path(problem: ErrorDetails, value: object) -> str:
    """The keys that lead to a problem, without the names of kinds that pydantic puts between them."""
    keys = []
    *above, last = problem["loc"] or ("",)
    for part in above:
        if _has(value, part):
            value = value[part]  # type: ignore[index]
            keys.append(str(part))
    if problem["type"] == "missing" or _has(value, last):
        keys.append(str(last))
    return ".".join(keys)


def _has(value: object, part: int | str) -> bool:
    if isinstance(value, Mapping):
        return part in value
    return isinstance(value, list | tuple) and isinstance(part, int) and part < len(value)


def _below(path: str, problem: ErrorDetails) -> str:
    key = str(problem["ctx"]["discriminator"]).strip("'")
    return f"{path}.{key}" if path else key
