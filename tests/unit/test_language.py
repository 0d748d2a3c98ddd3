"""Rules for the prose of the code (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.support.harness import ROOT

# A sentence that begins so hides its actor.
NO_ACTOR = re.compile(r"(?:^|(?<=[.!?]\s)|\n\n)\s*((?:What|Who|Whose|Whom|How|It|Whoever|Whatever|Whichever)\b[^\n]*)")
# Verbs in the third person, which a summary line does not begin with: classes are nouns, functions imperatives.
VERB = re.compile(
    r"(?:Accepts|Adds|Answers|Appends|Asks|Blocks|Builds|Cancels|Checks|Closes|Compares|Counts|Creates|Cuts"
    r"|Decides|Deletes|Drops|Ends|Finds|Forwards|Gathers|Gets|Gives|Handles|Holds|Ignores|Installs|Keeps|Knows"
    r"|Lets|Looks|Makes|Measures|Moves|Notes|Observes|Opens|Passes|Prints|Puts|Raises|Reads|Receives|Refuses"
    r"|Releases|Removes|Renews|Repeats|Replaces|Returns|Runs|Says|Sees|Sends|Serves|Sets|Shows|Stands|Starts"
    r"|Stops|Stores|Syncs|Takes|Tells|Turns|Unlocks|Updates|Uses|Waits|Watches|Works|Writes|Yields)$"
)
# Beginnings of a noun phrase, which does not say what a function does.
NOUN_PHRASES = frozenset(["A", "An", "The", "Whether"])
NO_RESULT = ("None", "Iterator", "AsyncIterator", "Generator", "AsyncGenerator")
SOURCES = [
    path
    for folder in ("tusd_py", "tests", "bench")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not {"node_modules", ".work"} & set(path.parts)
]


def comments(source: str) -> Iterator[str]:
    """Yield the comments of a source; comment lines that follow each other are one."""
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


class Summary(NamedTuple):
    """The docstring of a class or function, but for those of tests."""

    name: str
    first_word: str
    returns_a_result: bool  # as a function that is called for its result


class Prose(NamedTuple):
    """The prose of one source."""

    docstrings: Sequence[str]
    comments: Sequence[str]
    summaries: Sequence[Summary]


@cache  # for all rules
def prose(path: Path) -> Prose:
    source = path.read_text()
    docstrings, summaries = [], []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node)
        if not text:
            continue
        docstrings.append(text)
        if not isinstance(node, ast.Module) and not node.name.lower().startswith("test"):
            is_called = not isinstance(node, ast.ClassDef) and returns_a_result(node)
            summaries.append(Summary(node.name, text.split(maxsplit=1)[0].rstrip(":,"), is_called))
    return Prose(docstrings, list(comments(source)), summaries)


def returns_a_result(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether a function is called for its result; properties and fixtures are named after their values."""
    decorators = {ast.unparse(decorator).partition("(")[0].rpartition(".")[2] for decorator in node.decorator_list}
    is_value = decorators & {"property", "cached_property", "fixture"}
    return not is_value and node.returns is not None and not ast.unparse(node.returns).startswith(NO_RESULT)


def offending(find: Callable[[Prose], Iterable[str]]) -> dict[str, Sequence[str]]:
    """Return what a rule finds, by source. A test for each of them would take longer than the rule."""
    found = {str(path.relative_to(ROOT)): [*find(prose(path))] for path in SOURCES}
    return {name: texts for name, texts in found.items() if texts}


def test_no_sentence_of_prose_begins_without_its_actor() -> None:
    def find(source: Prose) -> Iterator[str]:
        for text in (*source.docstrings, *source.comments):
            yield from (match[1] for match in NO_ACTOR.finditer(text))

    assert offending(find) == {}


def test_no_docstring_begins_with_a_pronoun() -> None:
    """A pronoun in front has nothing before it to stand for."""

    def find(source: Prose) -> Iterator[str]:
        return (text for text in source.docstrings if text.split(maxsplit=1)[0] in {"Its", "They", "Their", "Them"})

    assert offending(find) == {}


def test_no_summary_of_a_class_or_function_begins_with_a_verb_in_the_third_person() -> None:
    assert offending(lambda source: (one.name for one in source.summaries if VERB.match(one.first_word))) == {}


def test_no_summary_of_a_function_with_a_result_is_a_noun_phrase() -> None:
    """Such a summary begins with "Return", or with the verb of what the function does first."""

    def find(source: Prose) -> Iterator[str]:
        return (one.name for one in source.summaries if one.first_word in NOUN_PHRASES and one.returns_a_result)

    assert offending(find) == {}


def test_sources_are_those_of_the_package_its_tests_and_its_benchmark() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == {"tusd_py", "tests", "bench"}
