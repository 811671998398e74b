"""An agent that answers questions about a repository: it plans, searches, reads and quotes. Every run is recorded.

    python examples/repo_agent.py "How does the outbox decide when a batch leaves?" --root .

With OPENAI_API_KEY set, a language model plans and answers (OPENAI_BASE_URL and OPENAI_MODEL are respected); without,
counting words does. The lines with `pt.` are all that recording takes; `@noted` and `noting` keep a second account
for demo.py to compare, which your agent does not need.
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import json
import os
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from journal import Step, keeping, noted, noting
from reading import Ranking, Sentence, files_below, keywords, mentions, sentences

import prefactor_trace as pt

if TYPE_CHECKING:
    from collections.abc import Sequence

QUESTION = "How does the outbox decide when a batch leaves?"


class Plan(NamedTuple):
    """What to search for, and which files to read in any case."""

    words: list[str]
    files: list[str]


class Answer(NamedTuple):
    """What the agent says, and its own account of what it did."""

    text: str
    steps: list[Step]


class Repository:
    """The agent's tools: what it can do with the files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.files = files_below(self.root)

    @pt.span
    @noted
    def search(self, word: str) -> dict[str, int]:
        """Count how often each file says *word*."""
        counts = {file: mentions(self._text(file), word) for file in self.files}
        return {file: count for file, count in counts.items() if count}

    @pt.span
    @noted
    async def scan(self, question: str) -> list[Sentence]:
        """Find the lines that read like *question*, letter by letter. Thorough, and slow."""
        alike, found = difflib.SequenceMatcher(b=question.lower()), []
        for file in self.files:
            for number, line in enumerate(self._text(file).splitlines(), 1):
                alike.set_seq1(line.lower())
                if alike.ratio() > 0.7:
                    found.append(Sentence(file, number, "", line.strip()))
                await asyncio.sleep(0)  # let others work, and be stopped
        return found

    @pt.span
    @noted
    async def read(self, file: str) -> str:
        """Return the text of *file*."""
        if not (self.root / file).resolve().is_relative_to(self.root):
            raise PermissionError(f"{file} is outside of the repository")
        return await asyncio.to_thread(self._text, file)

    @pt.span
    @noted
    async def study(self, file: str) -> list[Sentence]:
        """Return the sentences of *file*'s documentation, none if it cannot be read."""
        try:
            return list(sentences(file, await self.read(file)))
        except (OSError, SyntaxError):  # a plan may name what does not exist
            return []

    def _text(self, file: str) -> str:
        return (self.root / file).read_text(encoding="utf-8", errors="replace")


class Counting:
    """Plans and answers by the words of the question alone."""

    def __init__(self, question: str) -> None:
        self.question = question

    async def plan(self) -> Plan:
        """Search for the uncommon words, and read what is called like the first, as documentation often is."""
        words = keywords(self.question)
        return Plan(words, ["README.md", *(f"docs/{word}.md" for word in words[:1])])

    async def answer(self, best_first: Sequence[Sentence]) -> str:
        """Quote the best sentences."""
        return "\n".join(map(str, best_first[:6])) or "Nothing in this repository seems to answer that."


class Model(Counting):
    """Lets a language model plan and answer."""

    def __init__(self, question: str, files: Sequence[str]) -> None:
        super().__init__(question)
        self._files = "\n".join(files[:500])
        self._model = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")

    async def plan(self) -> Plan:
        """Ask for words and files; without a usable reply, count words."""
        reply = await self._ask(
            f"Files of a repository:\n{self._files}\n\nQuestion: {self.question}\n"
            'Reply with JSON only: {"words": [lower-case words to search for], "files": [files to read]}'
        )
        try:
            plan = json.loads(reply[reply.index("{") : reply.rindex("}") + 1])
            return Plan([str(word).lower() for word in plan["words"]], [str(file) for file in plan["files"]])
        except (KeyError, TypeError, ValueError):
            return await super().plan()

    async def answer(self, best_first: Sequence[Sentence]) -> str:
        """Ask for an answer that names its sources."""
        passages = "\n".join(map(str, best_first[:40]))
        return await self._ask(
            f"{passages}\n\nAnswer briefly, from this alone, naming file:line. {self.question}"
        )

    async def _ask(self, prompt: str) -> str:
        from openai import AsyncOpenAI

        inputs = {"model": self._model, "prompt": prompt}
        with noting("llm:chat", inputs), pt.span("llm:chat", payload=inputs) as step:
            async with AsyncOpenAI() as client:
                completion = await client.chat.completions.create(
                    model=self._model, messages=[{"role": "user", "content": prompt}]
                )
            text = completion.choices[0].message.content or ""
            step.set_result({"text": text})
            step.set_metadata({"usage": completion.usage})
        return text


async def scan_briefly(repository: Repository, question: str, patience: float) -> list[Sentence]:
    """Scan for *patience* seconds at most; what takes longer is given up."""
    try:
        return await asyncio.wait_for(repository.scan(question), patience)
    except asyncio.TimeoutError:
        return []


async def run(question: str, root: Path, patience: float = 0.1) -> Answer:
    """Answer *question* about the repository at *root*. *patience*: seconds for what is thorough and slow."""
    repository = Repository(root)
    mind = Model(question, repository.files) if os.environ.get("OPENAI_API_KEY") else Counting(question)
    with keeping() as steps:
        async with pt.instance(agent_name="repo-agent", agent_version="1.0.0"):
            inputs: dict[str, Any] = {"question": question}
            with noting("agent:plan", inputs), pt.span("agent:plan", payload=inputs) as step:
                plan = await mind.plan()
                step.set_result(plan)

            inputs = {"words": plan.words}
            with noting("agent:search", inputs), pt.span("agent:search", payload=inputs) as step:
                searches = [asyncio.to_thread(repository.search, word) for word in plan.words]
                alike, counts = await asyncio.gather(
                    scan_briefly(repository, question, patience), asyncio.gather(*searches)
                )
                ranking = Ranking(dict(zip(plan.words, counts, strict=True)), len(repository.files))
                files = list(dict.fromkeys([*plan.files, *ranking.best_files(3)]))
                step.set_result({"files": files})

            inputs = {"files": files}
            with noting("agent:read", inputs), pt.span("agent:read", payload=inputs):
                studied = await asyncio.gather(*map(repository.study, files))

            inputs = {"question": question}
            with noting("agent:answer", inputs), pt.span("agent:answer", payload=inputs) as step:
                text = await mind.answer(ranking.best_sentences(chain(alike, *studied)))
                step.set_result({"text": text})
    return Answer(text, steps)


def main(argv: Sequence[str] | None = None) -> int:
    """Answer the question on the command line. Return the exit code."""
    parser = argparse.ArgumentParser(description="Answer a question about a repository.")
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).parents[1], help="the repository's folder"
    )
    parser.add_argument("--patience", type=float, default=0.1, help="seconds for the thorough scan")
    parser.add_argument("--journal", type=Path, help="file to write what the agent did to, as JSON")
    options = parser.parse_args(argv)
    try:
        answer = asyncio.run(run(options.question, options.root, options.patience))
    except pt.InstanceTerminated as stopped:
        print(stopped, file=sys.stderr)
        return 1
    print(answer.text)
    if options.journal:
        account = {"steps": answer.steps, "ledger": pt.flush()._asdict()}
        options.journal.write_text(json.dumps(account), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
