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
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sybil import Document, Region
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import S3Place

README = Path(__file__).parents[1] / "README.md"
PACKAGE = Path(str(resources.files("shardstream")))

# `python`, but also `py`, `Python3` or `python title="..."`: no spelling escapes.
PYTHON_BLOCKS = FencedCodeBlockLexer(r"[ \t]*(?i:py)[^\n]*")
SKIP_COMMENT = re.compile(r"<!-- skip: (\S.*?) -->\s*\Z")
NEEDS_S3 = "needs an S3"


def examples_of(document: Document, reason: str | None = None) -> Iterator[Region]:
    """Yield the Python examples that have no reason to be skipped, or this one."""
    evaluator = PythonEvaluator()
    for region in PYTHON_BLOCKS(document):
        found = SKIP_COMMENT.search(document.text[: region.start])
        if (found[1] if found else None) == reason:
            yield Region(region.start, region.end, region.lexemes["source"], evaluator)


def run(path: Path, reason: str | None = None) -> int:
    """Run the examples of one Markdown file, in order; return how many there were."""
    document = Document.parse(str(path), partial(examples_of, reason=reason))
    document.namespace["__name__"] = "__main__"
    examples = list(document.examples())
    for example in examples:
        example.evaluate()
    return len(examples)


@pytest.mark.parametrize("path", [README, *sorted(PACKAGE.rglob("*.md"))], ids=lambda path: path.name)
def test_every_python_example_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python example of the README and of the package's documents runs."""
    monkeypatch.chdir(tmp_path)

    run(path)


def test_the_examples_of_object_storage_run(
    s3: S3Place, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the README does with an S3 of the environment works."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.server.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.server.secret)
    monkeypatch.setenv("AWS_REGION", s3.server.region)
    monkeypatch.setenv("AWS_DEFAULT_REGION", s3.server.region)

    num_run = run(README, NEEDS_S3)
    for found in s3.client.list_objects_v2(Bucket="corpora")["Contents"]:  # a second run begins with an empty place
        s3.client.delete_object(Bucket="corpora", Key=found["Key"])

    assert num_run == 1
    assert any(own_cache.glob("*.tokens"))


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
