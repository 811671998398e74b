"""How repo_agent.py finds its way in a repository: its files, their sentences, and which say the most. No tracing here."""

from __future__ import annotations

import ast
import math
import re
import textwrap
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_SUFFIXES = {".md", ".py", ".rst", ".toml", ".txt"}
_IGNORED = {"__pycache__", "build", "dist", "node_modules"}
_SECONDARY = {"benchmarks", "examples", "tests"}  # they talk about the code, but are not it
_COMMON = (
    "and any are can does for from has how its the then this was what when where which who why will with"
)


class Sentence(NamedTuple):
    """A sentence of the repository. *about*: the class or function it documents, if any."""

    file: str
    line: int
    about: str
    text: str

    def __str__(self) -> str:
        """Return it with where it stands."""
        about = f"{self.about}: " if self.about else ""
        return f"{self.file}:{self.line}\n    {about}{textwrap.shorten(self.text, 300)}"


def files_below(root: Path) -> list[str]:
    """Return the text files below *root*, relative to it; nothing hidden, nothing built."""
    paths = [path.relative_to(root) for path in root.rglob("*") if path.suffix in _SUFFIXES]
    return sorted(
        path.as_posix()
        for path in paths
        if _IGNORED.isdisjoint(path.parts) and not any(part.startswith(".") for part in path.parts)
    )


def keywords(question: str) -> list[str]:
    """Return the words of *question* that are worth a search, without a plural's s."""
    words = [word for word in re.findall(r"\w{3,}", question.lower()) if word not in _COMMON.split()]
    return list(dict.fromkeys(word.rstrip("s") for word in words))


def mentions(text: str, word: str) -> int:
    """Count the words in *text* that begin with *word*."""
    return len(re.findall(f"(?<![a-z]){re.escape(word)}", text.lower()))


def sentences(file: str, text: str) -> Iterator[Sentence]:
    """Yield the sentences of Python docstrings, or of any other text. Raises SyntaxError for what is no Python."""
    for first_line, about, prose in _docstrings(text) if file.endswith(".py") else [(1, "", text)]:
        for match in re.finditer(r"\S.*?(?:[.!?](?=\s)|(?=\n\s*\n)|\Z)", prose, re.DOTALL):
            line = first_line + prose.count("\n", 0, match.start())
            yield Sentence(file, line, about, " ".join(match[0].split()))


def _docstrings(code: str) -> Iterator[tuple[int, str, str]]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (
            docstring := ast.get_docstring(node, clean=False)
        ):
            yield node.body[0].lineno, getattr(node, "name", ""), docstring


class Ranking:
    """What says the most about the words that were searched for: rare words count more than frequent ones.

    Args:
        found: For each word, how often each file says it.
        files: How many files were searched.
    """

    def __init__(self, found: dict[str, dict[str, int]], files: int) -> None:
        self._found = found
        self._weights = {word: math.log(1 + files / len(counts)) for word, counts in found.items() if counts}

    def best_files(self, count: int) -> list[str]:
        """Return the best files, the best one first."""
        worth: Counter[str] = Counter()
        for word, weight in self._weights.items():
            for file, times in self._found[word].items():
                emphasis = 2 if mentions(file, word) else 1
                share = 1 if _SECONDARY.isdisjoint(file.split("/")) else 0.1
                worth[file] += int(1000 * weight * (1 + math.log(times)) * emphasis * share)
        return [file for file, _ in worth.most_common(count)]

    def best_sentences(self, candidates: Iterable[Sentence]) -> list[Sentence]:
        """Return the sentences that say any of the words, the best one first."""
        worth = {each: self._worth(each) for each in candidates}
        return sorted((each for each in worth if worth[each]), key=lambda each: -worth[each])

    def _worth(self, sentence: Sentence) -> float:
        said = self._weight(sentence.text)
        return said and said + self._weight(f"{sentence.file} {sentence.about}")

    def _weight(self, text: str) -> float:
        return sum(weight for word, weight in self._weights.items() if mentions(text, word))
