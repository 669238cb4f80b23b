"""Reads a file: its bytes, its encoding, its YAML. Whatever is wrong with it becomes a sentence, never a traceback."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from bench.errors import Location
from bench.matrix.report import Report
from bench.matrix.tree import Entry, Node, TreeBuilder, sort_of
from bench.matrix.wording import closest

LARGEST_FILE_BYTES = 1_000_000

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TAB_INDENT = re.compile(r" *\t")

# What the parser says, by a word of it, and what usually helps.
_SYNTAX_FIXES = (
    ("mapping values are not allowed", "indent keys of one mapping alike, and put quotes around text with ': ' in it"),
    ("cannot start any token", "put quotes around text that begins with a special character"),
    ("',' or ']'", "close the list with ]"),
    ("',' or '}'", "close the mapping with }"),
    ("unexpected end of stream", "close the quotes"),
    ("escape", "use single quotes, in which \\ means itself"),
    ("expected '-'", "begin every row of the list with -, all indented alike"),
    ("<block end>", "indent the rows or keys of one block alike"),
    ("could not find expected ':'", "write key: value"),
)  # fmt: skip


@dataclass(frozen=True)
class Document:
    """A file, as it stands in `text` (byte order mark and line ends included), and its tree."""

    path: Path
    text: str
    root: dict[str, Entry]


def read_document(path: Path, report: Report) -> Document:
    """Read a YAML file whose top is a mapping.

    Duplicate keys, keys that are no text, and tags go to `report`, and reading goes on.

    Raises:
        BenchError: the file cannot be read, or is not one YAML mapping within the limits.
    """
    text = _decode(_read_bytes(path, report), report)
    _refuse_unprintable(text, report)
    root = _parse(text.removeprefix("\ufeff"), report)
    if root is None or root.value is None:
        report.fail(None, "the file is empty", "a matrix begins with schema: 1")
    if not isinstance(root.value, dict):
        what = f"the top of a matrix is a mapping of keys, not {sort_of(root)}"
        report.fail(root.where, what, "begin with schema: 1, and give every part its key")
    return Document(path, text, root.value)


def _read_bytes(path: Path, report: Report) -> bytes:
    try:
        if path.is_dir():
            report.fail(None, "this is a folder", "name a matrix file in it, such as default.yaml")
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE_BYTES + 1)
    except FileNotFoundError:
        near = closest(path.name, _yaml_names(path.parent))
        fix = f"did you mean {path.with_name(near)}?" if near else "check the path, and the folder you are in"
        report.fail(None, "there is no such file", fix)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        report.fail(None, f"the file cannot be read ({reason})", "check its path and permissions")
    if len(data) > LARGEST_FILE_BYTES:
        what = f"the file is larger than {LARGEST_FILE_BYTES // 10**6} MB"
        report.fail(None, what, "a matrix is short: check that this is one, and cross values with axes")
    return data


def _yaml_names(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*.y*ml")] if folder.is_dir() else []


def _decode(data: bytes, report: Report) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        report.fail(None, "the file is UTF-16", "save it as UTF-8")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = len(data[data.rfind(b"\n", 0, error.start) + 1 : error.start].decode("utf-8")) + 1
        what = f"byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8"
        report.fail(Location(report.file, line, column), what, "save the file as UTF-8")


def _refuse_unprintable(text: str, report: Report) -> None:
    if found := _UNPRINTABLE.search(text.removeprefix("\ufeff")):
        line, column = _line_and_column(text.removeprefix("\ufeff"), found.start())
        what = f"the character U+{ord(found[0]):04X} cannot stand in YAML"
        report.fail(Location(report.file, line, column), what, "remove it")


def _line_and_column(text: str, offset: int) -> tuple[int, int]:
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)


def _parse(text: str, report: Report) -> Node | None:
    builder = TreeBuilder(report)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        _report_syntax(error, text, report)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the pure Python scanner lets the latter two out
        report.fail(None, f"this is not YAML: {str(error).splitlines()[0]}", "check the file in a YAML editor")
    return builder.root


def _report_syntax(error: yaml.MarkedYAMLError, text: str, report: Report) -> NoReturn:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
    lines = [*re.split("\r\n|[\r\n\x85\u2028\u2029]", text), ""]
    if _TAB_INDENT.match(lines[line - 1]) or lines[line - 1][column - 1 : column] == "\t":
        _report_tabs(lines, line, column, report)
    context = f" {error.context}" if error.context else ""
    if error.context and error.context_mark and error.context_mark.line + 1 != line:
        context += f" that begins in line {error.context_mark.line + 1}"
    what = f"this is not YAML: {error.problem}{context}"
    fix = next((fix for words, fix in _SYNTAX_FIXES if words in what), "see the line above, too")
    report.fail(Location(report.file, line, column), what, fix)


def _report_tabs(lines: list[str], line: int, column: int, report: Report) -> NoReturn:
    """Report the tab at which the parser stopped, and those that indent other lines."""
    tabs = {number: match.end() for number, text in enumerate(lines, 1) if (match := _TAB_INDENT.match(text))}
    for number, where in sorted({line: column, **tabs}.items()):
        what = "a tab stands in the indentation"
        report.add(Location(report.file, number, where), what, "YAML indents with spaces only")
    report.stop()
