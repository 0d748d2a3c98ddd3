"""Rules for the prose of the code (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.harness import ROOT

# A sentence that begins so hides its actor.
NO_ACTOR = re.compile(r"(?:^|(?<=[.!?]\s)|\n\n)\s*((?:What|Who|Whose|Whom|How|It|Whoever|Whatever|Whichever)\b[^\n]*)")
SOURCES = [
    path
    for folder in ("tusd_py", "tests", "bench")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not {"node_modules", ".work"} & set(path.parts)
]


def docstrings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def comments(source: str) -> Iterator[str]:
    """The comments of a source; lines of comment that follow each other are one."""
    block: list[str] = []
    row = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if not token.line.lstrip().startswith("#") or token.start[0] != row + 1:
            yield " ".join(block)
            block = []
        block.append(token.string.lstrip("# "))
        row = token.start[0]
    yield " ".join(block)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_sentence_of_prose_begins_without_its_actor(path: Path) -> None:
    source = path.read_text()
    assert [match[1] for text in (*docstrings(source), *comments(source)) for match in NO_ACTOR.finditer(text)] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_docstring_begins_with_a_pronoun(path: Path) -> None:
    """A pronoun in front has nothing before it to stand for."""
    beginnings = [text.split(maxsplit=1)[0] for text in docstrings(path.read_text()) if text]
    assert {"Its", "They", "Their", "Them"}.isdisjoint(beginnings)
