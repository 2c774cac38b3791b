"""The documents keep their word: every Python example in them runs, or says why it does not.

All examples of one document share a namespace and a temporary folder, and run from top to bottom, as a reader would run
them. An example that cannot run here stands below a comment that gives the reason::

    <!-- skip: needs eight GPUs -->
    ```python
    ...
    ```
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sybil import Document, Region
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

if TYPE_CHECKING:
    from collections.abc import Iterator

README = Path(__file__).parents[1] / "README.md"
PACKAGE = Path(str(resources.files("shardstream")))

# `python`, but also `py`, `Python3` or `python title="..."`: no spelling escapes.
PYTHON_BLOCKS = FencedCodeBlockLexer(r"[ \t]*(?i:py)[^\n]*")
SKIP_COMMENT = re.compile(r"<!-- skip: \S.*? -->\s*\Z")


def examples_of(document: Document) -> Iterator[Region]:
    """Yield the Python examples that have no reason to be skipped."""
    evaluator = PythonEvaluator()
    for region in PYTHON_BLOCKS(document):
        if not SKIP_COMMENT.search(document.text[: region.start]):
            yield Region(region.start, region.end, region.lexemes["source"], evaluator)


def run(path: Path) -> None:
    """Run the examples of one Markdown file, in order."""
    document = Document.parse(str(path), examples_of)
    document.namespace["__name__"] = "__main__"
    for example in document.examples():
        example.evaluate()


@pytest.mark.parametrize("path", [README, *sorted(PACKAGE.rglob("*.md"))], ids=lambda path: path.name)
def test_every_python_example_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python example of the README and of the package's documents runs."""
    monkeypatch.chdir(tmp_path)

    run(path)


@pytest.mark.parametrize(
    "opening",
    [
        pytest.param("```python", id="python"),
        pytest.param("```py", id="py"),
        pytest.param("``` Python3", id="Python3"),
        pytest.param('```python title="example.py"', id="attribute"),
        pytest.param("<!-- skip: -->\n```python", id="no-reason"),
        pytest.param("<!-- skip: another block -->\n\nText.\n\n```python", id="reason-elsewhere"),
    ],
)
def test_an_example_without_a_reason_is_run(opening: str, tmp_path: Path) -> None:
    """No spelling of Python, and no skip without a reason just above it, keeps an example from being run."""
    document = tmp_path / "document.md"
    document.write_text(f"# Title\n\n{opening}\nraise LookupError\n```\n", "utf-8")

    with pytest.raises(LookupError):
        run(document)


def test_an_example_with_a_reason_is_skipped(tmp_path: Path) -> None:
    """An example below a reason is not run; the next one is."""
    document = tmp_path / "document.md"
    document.write_text(
        "<!-- skip: fails -->\n\n```python\nraise LookupError\n```\n\n```python\nraise KeyError\n```\n", "utf-8"
    )

    with pytest.raises(KeyError):
        run(document)
