"""``FORMAT.md`` says what the code does: its example, its tables, its figures. Its Python runs in ``test_docs.py``."""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from pathlib import Path

import pytest

from shardstream import Manifest, ShardEntry, TokenizerIdentity
from shardstream.format import manifest as code
from shardstream.format.manifest import SideFile, StoredBytes
from shardstream.format.side_file import _ROW_BYTES, MAX_UNPACKED_BYTES

DOCUMENT = (resources.files("shardstream") / "format" / "FORMAT.md").read_text("utf-8")
GOLDEN = Path(__file__).parents[1] / "golden" / "v1" / "uint16" / "manifest.json"


def section(title: str) -> str:
    """What stands under a heading, up to the next heading of its level or a higher one."""
    level, start = next(
        (len(match[1]), match.end())
        for match in re.finditer(r"^(#+) (.*)$", DOCUMENT, re.MULTILINE)
        if match[2] == title
    )
    end = re.compile(rf"^#{{1,{level}}} ", re.MULTILINE).search(DOCUMENT, start)
    return DOCUMENT[start : end.start() if end else None]


def blocks(language: str, text: str = DOCUMENT) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def fields_of(title: str) -> dict[str, str]:
    """Field and whether writers must write it, from the table under a heading."""
    rows = re.findall(r"^\| `(\w+)` \|(?:[^|]*\|){2} (\w+) \|", section(title), re.MULTILINE)
    return dict(rows)


def test_example_is_the_golden_manifest() -> None:
    """The one manifest in the document is, byte for byte, the golden one, and it is a manifest."""
    (example,) = blocks("json")

    assert example.encode() == GOLDEN.read_bytes()
    assert Manifest.parse(example.encode()).num_tokens == 19


def test_example_of_the_digest_is_right() -> None:
    """The bytes that the document hashes are those of the example, and have the digest that it states."""
    lines, digest = blocks("text", section("The dataset digest"))

    assert hashlib.sha256(lines.encode("ascii")).hexdigest() == digest.strip()
    assert Manifest.parse(GOLDEN.read_bytes()).digest == digest.strip()
    assert f"or {len(lines)} bytes" in DOCUMENT


@pytest.mark.parametrize(
    ("title", "fields", "required"),
    [
        pytest.param(
            "Fields of the manifest",
            {*code._REQUIRED, *code._OPTIONAL},
            set(code._REQUIRED),
            id="manifest",
        ),
        pytest.param(
            "Fields of a row", set(ShardEntry.__struct_fields__), {"name", "num_tokens", "num_bytes"}, id="row"
        ),
        pytest.param("Fields of `tokenizer`", set(TokenizerIdentity.__struct_fields__), set(), id="tokenizer"),
        pytest.param(
            "Fields of `stored`", set(StoredBytes.__struct_fields__), {"codec", "num_bytes", "sha256"}, id="stored"
        ),
        pytest.param(
            "Fields of `documents`",
            set(SideFile.__struct_fields__),
            {"num_documents", "num_bytes", "sha256"},
            id="documents",
        ),
    ],
)
def test_tables_list_every_field(title: str, fields: set[str], required: set[str]) -> None:
    """A table has a row for each field that the code knows, and for no other; MUST is what the code requires."""
    table = fields_of(title)

    assert set(table) == fields
    assert {name for name, writers in table.items() if writers == "MUST"} == required


def test_rule_of_names_is_the_one_in_the_code() -> None:
    """The expression for names in the document is the one that names are matched with."""
    (expression,) = blocks("", section("Names"))

    assert expression.strip() == code._NAME.pattern
    assert f"at most {code._MAX_NAME_LENGTH:,} characters" in section("Names")


def test_bounds_are_those_of_the_code() -> None:
    """The figures in the document are the code's."""
    assert code.MAX_MANIFEST_BYTES == 2**28
    assert "| manifest | 2^28 bytes |" in section("Bounds")
    assert code.MAX_VOCAB_SIZE == 2**32
    assert "| `vocab_size` | integer | 1 to 2^32 |" in DOCUMENT
    assert code._MAX_UINT16_VOCAB_SIZE == 65_536
    assert "where `vocab_size` is at most 65,536" in section("Shards")
    assert f"| `version` | integer | {code.FORMAT_VERSION} |" in DOCUMENT
    assert MAX_UNPACKED_BYTES == 2**30
    assert "MUST NOT take more than 2^30 bytes" in section("Side files")
    assert MAX_UNPACKED_BYTES // _ROW_BYTES == 2**26
    assert "MUST NOT have more than 2^26 rows" in section("Side files")
    assert code.MAX_SIDE_FILE_BYTES == 2**31
    assert "| `num_bytes` | integer | 1 to 2^31 |" in section("Fields of `documents`")
    assert DOCUMENT.startswith(f"# The shardstream dataset format, version {code.FORMAT_VERSION}\n")


def test_links_within_the_document_lead_somewhere() -> None:
    """Every link to a part of the document has a heading to go to."""
    headings = re.findall(r"^#+ (.*)$", DOCUMENT, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}

    assert set(re.findall(r"\]\(#([^)]*)\)", DOCUMENT)) <= anchors
