"""Files an operator writes, from YAML to a checked model, with the line of every mistake.

    recipe = load(Recipe, Path("bundle.yaml"))

What is accepted is a small, predictable YAML:

* UTF-8, one document, at most 1 MiB and 32 levels deep;
* scalars as YAML 1.2's core schema reads them (``yes`` is a text, ``1e-3`` a number, a MAC address
  or a date is a text), because YAML 1.1's guesses surprise people who write site files;
* no duplicate keys (the last one would silently win) and no anchors, aliases or merge keys (they
  hide what a file says, and a few of them can expand to gigabytes).

Every fault is one :class:`~appliance.errors.ManifestInvalid` naming file, line, field, reason and
what is expected; a file that cannot be opened is :class:`~appliance.errors.FileUnreadable`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from appliance.errors import FileUnreadable, ManifestInvalid
from appliance.i18n import _
from appliance.manifests import contradiction

M = TypeVar("M", bound=BaseModel)

MAX_BYTES = 1 << 20
MAX_DEPTH = 32


def load(model: type[M], path: Path) -> M:
    """Read ``path`` and return it as a checked ``model``.

    Raises:
        FileUnreadable: the file is not there or may not be read.
        ManifestInvalid: it is not the YAML described above, or not what ``model`` asks for.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise FileUnreadable(path=path, reason=error.strerror or error) from error
    return parse(model, content, path)


def parse(model: type[M], content: bytes, path: Path) -> M:
    """:func:`load` for bytes already in memory; ``path`` only names them in errors."""
    node = _compose(_decode(content, path), path)
    try:
        return model.model_validate(_construct(node, path))
    except ValidationError as error:
        raise _explain(error, model, node, path) from error


# --- YAML ---------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's core scalars instead of YAML 1.1's."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own attribute, replaced whole


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), [*_first]
    )
_Loader.yaml_implicit_resolvers[""] = [("tag:yaml.org,2002:null", re.compile(r"\Z"))]


def _fault(path: Path, line: int, field: str, reason: str, expected: str) -> NoReturn:
    raise ManifestInvalid(path=path, line=line, field=field, reason=reason, expected=expected)


def _decode(content: bytes, path: Path) -> str:
    whole = _("the file")
    if len(content) > MAX_BYTES:
        reason = _("It is larger than {limit} bytes.").format(limit=MAX_BYTES)
        _fault(path, 1, whole, reason, _("a manifest is a few kilobytes of text"))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        _fault(path, line, whole, _("It is not UTF-8 text."), _("save the file as UTF-8"))


def _compose(text: str, path: Path) -> yaml.Node:
    """The document's node tree, after the checks that need no model."""
    try:
        _check_events(text, path)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        reason = _("It is not YAML: {problem}.").format(problem=error.problem or error.context)
        _fault(path, line, _("the file"), reason, _("check indentation, quotes and colons there"))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        reason = _("It holds a character that YAML forbids (code {code}).").format(
            code=error.character
        )
        _fault(path, line, _("the file"), reason, _("remove that character"))
    if not isinstance(node, yaml.MappingNode):
        line = node.start_mark.line + 1 if node else 1
        reason = _("It is not a list of 'name: value' lines.")
        _fault(path, line, _("the file"), reason, _("begin with lines such as 'name: demo'"))
    _check_keys(node, (), path)
    return node


def _check_events(text: str, path: Path) -> None:
    """Refuse aliases and deep nesting before anything recursive or expanding sees the document."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            reason = _("Anchors and aliases (&name, *name) are not accepted.")
            _fault(path, line, _("the file"), reason, _("write the value out where it is used"))
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            reason = _("It is nested more than {limit} levels deep.").format(limit=MAX_DEPTH)
            _fault(path, line, _("the file"), reason, _("remove the surplus brackets or indents"))


def _check_keys(node: yaml.Node, at: tuple[str | int, ...], path: Path) -> None:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _check_keys(item, (*at, index), path)
    elif isinstance(node, yaml.MappingNode):
        first_seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                reason = _("A field's name must be a plain text.")
                _fault(path, line, _dotted(at), reason, _("write 'name: value'"))
            field = (*at, key.value)
            if key.value in first_seen:
                reason = _("It is there twice; the first is on line {line}.").format(
                    line=first_seen[key.value]
                )
                _fault(path, line, _dotted(field), reason, _("keep one of the two"))
            if key.value == "<<":
                reason = _("Merge keys are not accepted.")
                _fault(path, line, _dotted(field), reason, _("write the fields out"))
            first_seen[key.value] = line
            _check_keys(value, field, path)


class _Constructor(_Loader):
    """Turns a checked node tree into values; keys are always texts."""

    def __init__(self) -> None:
        super().__init__("")

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}


def _construct(node: yaml.Node, path: Path) -> Any:
    try:
        return _Constructor().construct_document(node)
    except (yaml.MarkedYAMLError, ValueError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = _("It cannot be read: {problem}.").format(
            problem=getattr(error, "problem", None) or error
        )
        line = mark.line + 1 if mark else 1
        _fault(path, line, _("the file"), reason, _("use plain texts, numbers, lists and maps"))


# --- what pydantic found, in the operator's terms -------------------------------------------------


def _explain(
    error: ValidationError, model: type[BaseModel], root: yaml.Node, path: Path
) -> ManifestInvalid:
    """The first fault by line; how many others there are goes into the reason."""
    found = [(_locate(root, fault["loc"]), fault) for fault in error.errors(include_url=False)]
    (line, at), fault = min(found, key=lambda entry: entry[0][0])
    reason, expected = _sentences(fault, at, _Schema(model).at(fault["loc"]))
    if len(found) > 1:
        more = len(found) - 1
        reason += " " + _("({more} more after it)").format(more=more)
    return ManifestInvalid(
        path=path, line=line, field=_dotted(at), reason=reason, expected=expected
    )


def _locate(root: yaml.Node, loc: Sequence[str | int]) -> tuple[int, tuple[str | int, ...]]:
    """Line and field of a pydantic location.

    A location may hold steps the file does not have (the tag of a discriminated union, a missing
    field); those are passed over, and a missing field is shown at its parent's first line.
    """
    node, line, at = root, root.start_mark.line + 1, list[str | int]()
    for position, step in enumerate(loc):
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            node = node.value[step]
            line = node.start_mark.line + 1
            at.append(step)
        elif isinstance(node, yaml.MappingNode):
            pair = next((p for p in node.value if p[0].value == str(step)), None)
            if pair:
                key, node = pair
                line = key.start_mark.line + 1
                at.append(str(step))
            elif position == len(loc) - 1:
                at.append(step)
    return line, tuple(at)


def _dotted(at: Sequence[str | int]) -> str:
    """``("artefacts", 0, "name")`` as ``artefacts[0].name``."""
    text = ""
    for step in at:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text or _("the file")


def _sentences(
    fault: Mapping[str, Any], at: Sequence[str | int], schema: Mapping[str, Any]
) -> tuple[str, str]:
    """Reason and expectation of one pydantic fault."""
    message = str(fault["msg"])
    field = str(at[-1]) if at else ""
    match fault["type"]:
        case "missing":
            return _("It is missing."), _("add a line '{field}: …'").format(field=field)
        case "extra_forbidden":
            return _("There is no such field."), _known_fields(field, schema)
        case "union_tag_invalid":
            allowed = fault["ctx"]["expected_tags"]
            reason = _("'{value}' is not a known kind.").format(value=fault["ctx"]["tag"])
            return reason, _("use one of {allowed}").format(allowed=allowed)
        case "union_tag_not_found":
            tag = str(fault["ctx"]["discriminator"]).strip("'")
            reason = _("Its '{tag}' is missing.").format(tag=tag)
            return reason, _("add a line '{field}: …'").format(field=tag)
        case contradiction.KIND | "value_error" | "assertion_error":
            return _broken_rule(fault, schema)
        case _:
            expected = message.replace("Input should", _("it should"), 1)
            return _("It is {value}.").format(value=_shown(fault["input"])), expected


def _broken_rule(fault: Mapping[str, Any], schema: Mapping[str, Any]) -> tuple[str, str]:
    """A contradiction says what to type; of another rule only the field's description is known."""
    message = str(fault["msg"])
    if fault["type"] == contradiction.KIND:
        return f"{message}.", str(fault["ctx"]["expected"])
    expected = str(schema.get("description") or _("see the manifest's schema"))
    return message.split(", ", 1)[-1].rstrip(".") + ".", expected.rstrip(".")


def _shown(value: object) -> str:
    match value:
        case dict():
            return _("a map")
        case list():
            return _("a list")
        case None:
            return _("empty")
        case _:
            text = repr(value)
            return text if len(text) <= 60 else f"{text[:57]}…"


def _known_fields(field: str, schema: Mapping[str, Any]) -> str:
    known = list(schema.get("properties", {}))
    near = difflib.get_close_matches(field, known, n=1)
    if near:
        return _("did you mean '{near}'?").format(near=near[0])
    if not known:
        return _("remove it")
    return _("remove it, or use one of {known}").format(known=", ".join(known))


class _Schema:
    """Finds the part of a model's JSON Schema that a pydantic location speaks of."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.root = model.model_json_schema()

    def at(self, loc: Sequence[str | int]) -> Mapping[str, Any]:
        """The schema of the field at ``loc``, or of its parent when it is an unknown field."""
        schema = self._resolve(self.root)
        for step in loc:
            following = self._step(schema, step)
            if following is None:
                return schema
            schema = self._resolve(following)
        return schema

    def _resolve(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """Follow ``$ref`` and optional fields; keep a description written beside the ``$ref``."""
        for branch in schema.get("anyOf", ()):
            if branch.get("type") != "null":
                return {**self._resolve(branch), **_description(schema)}
        reference = schema.get("$ref")
        if reference is None:
            return schema
        target: Mapping[str, Any] = self.root["$defs"][reference.rsplit("/", 1)[1]]
        return {**self._resolve(target), **_description(schema)}

    def _step(self, schema: Mapping[str, Any], step: str | int) -> Mapping[str, Any] | None:
        if isinstance(step, int):
            return schema.get("items")
        if step in schema.get("properties", {}):
            return dict(schema["properties"][step])
        mapping = schema.get("discriminator", {}).get("mapping", {})
        if step in mapping:
            return {"$ref": mapping[step]}
        additional = schema.get("additionalProperties")
        return additional if isinstance(additional, dict) else None


def _description(schema: Mapping[str, Any]) -> dict[str, str]:
    return {"description": schema["description"]} if "description" in schema else {}
