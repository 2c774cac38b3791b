"""Manifests as plain JSON values, to be spoilt one field at a time; and datasets on disk made of them."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Fields = dict[str, Any]

SHA256 = "0123456789abcdef" * 4


@pytest.fixture
def fields() -> Fields:
    """A valid manifest of three shards in which every field that version 1 knows has a value."""
    return {
        "format": "shardstream",
        "version": 1,
        "dtype": "uint16",
        "vocab_size": 1000,
        "shard_tokens": 8,
        "num_tokens": 20,
        "num_documents": 3,
        "tokenizer": {"name": "test", "sha256": SHA256, "eos_id": 7, "bos_id": 8, "pad_id": 9},
        "creator": "a test",
        "metadata": {"source": "nowhere"},
        "shards": [
            {
                "name": "a.bin",
                "num_tokens": 8,
                "num_bytes": 16,
                "sha256": SHA256,
                "byte_offset": 4,
                "documents": {"num_documents": 8, "num_bytes": 600, "sha256": SHA256},
            },
            {"name": "b/c=1.bin", "num_tokens": 8, "num_bytes": 16, "min_token": 0, "max_token": 999, "num_eos": 8},
            {
                "name": "d.bin",
                "num_tokens": 4,
                "num_bytes": 8,
                "location": "/elsewhere/d.zst",
                "stored": {"codec": "zstd", "num_bytes": 5, "sha256": SHA256},
            },
        ],
    }


class WriteRaw(Protocol):
    """Writes a dataset with nothing but ``json`` and NumPy, so that it may be as wrong as one likes."""

    def __call__(self, shards: dict[str, Sequence[int]], *, rows: Fields | None = None, **fields: Any) -> Path: ...


@pytest.fixture
def write_raw(tmp_path: Path) -> WriteRaw:
    """Write uint16 shards and a manifest below ``tmp_path / "dataset"``.

    ``rows`` are fields of every row, ``fields`` those of the manifest, both in place of the right ones.
    """

    def write(shards: dict[str, Sequence[int]], *, rows: Fields | None = None, **fields: Any) -> Path:
        folder = tmp_path / "dataset"
        entries: list[Fields] = []
        for name, ids in shards.items():
            data = np.array(ids, dtype="<u2").tobytes()
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
            entry: Fields = {"name": name, "num_tokens": len(ids), "num_bytes": len(data)}
            entries.append(entry | {"sha256": hashlib.sha256(data).hexdigest()} | (rows or {}))
        manifest: Fields = {
            "format": "shardstream",
            "version": 1,
            "dtype": "uint16",
            "vocab_size": 1000,
            "shard_tokens": max(entry["num_tokens"] for entry in entries),
            "num_tokens": sum(entry["num_tokens"] for entry in entries),
            "num_documents": 0,
            "shards": entries,
        }
        (folder / "manifest.json").write_text(json.dumps(manifest | fields), "utf-8")
        return folder

    return write
