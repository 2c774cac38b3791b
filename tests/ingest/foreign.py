"""Token files as other systems write them, made from their documented layout with nothing but NumPy."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Documents = Sequence[Sequence[int]]


def flat(documents: Documents) -> list[int]:
    return [token for document in documents for token in document]


def raw(path: Path, documents: Documents, dtype: Any) -> Path:
    """nanoGPT: `np.array(ids, dtype=np.uint16).tofile("train.bin")`."""
    np.array(flat(documents), dtype).tofile(path)
    return path


def olmo(path: Path, documents: Documents, dtype: Any) -> Path:
    """OLMo: `np.memmap("part.npy", mode="w+", dtype=...)`, which writes no header in spite of the name."""
    tokens = flat(documents)
    ids = np.memmap(path, mode="w+", dtype=dtype, shape=(len(tokens),))
    ids[:] = tokens
    ids.flush()
    return path


def npy(path: Path, documents: Documents, dtype: Any) -> Path:
    np.save(path, np.array(flat(documents), dtype))
    return path


LLM_C_VERSIONS = {2: (20240520, 1), 4: (20240801, 7)}


def llm_c(path: Path, documents: Documents, dtype: Any, **header: int) -> Path:
    """llm.c's `dev/data/data_common.py`: 256 int32, then the ids."""
    tokens = np.array(flat(documents), dtype)
    magic, version = LLM_C_VERSIONS[tokens.itemsize]
    ints = np.zeros(256, "<i4")
    ints[:3] = header.get("magic", magic), header.get("version", version), header.get("num_tokens", len(tokens))
    path.write_bytes(ints.tobytes() + tokens.tobytes())
    return path


MEGATRON_CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "float64": 6, "float32": 7, "uint16": 8}


def megatron(
    path: Path, documents: Documents, dtype: Any, *, bounds: Sequence[int] | None = None, **header: int
) -> Path:
    """Megatron's `indexed_dataset.py`: ids in the .bin, all else in the .idx; here a document is one sequence."""
    tokens = np.array(flat(documents), dtype)
    lengths = np.array([len(document) for document in documents], "<i4")
    offsets = (np.cumsum(lengths, dtype=np.int64) - lengths) * tokens.itemsize
    path.write_bytes(tokens.tobytes())
    path.with_suffix(".idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + np.uint64(header.get("version", 1)).tobytes()
        + np.uint8(header.get("code", MEGATRON_CODES[tokens.dtype.name])).tobytes()
        + np.array([len(lengths), len(lengths) + 1 if bounds is None else len(bounds)], "<u8").tobytes()
        + lengths.tobytes()
        + offsets.tobytes()
        + np.array(range(len(lengths) + 1) if bounds is None else bounds, "<i8").tobytes()
    )
    return path


def datatrove(path: Path, documents: Documents, dtype: Any, *, tokenizer: str = "gpt2") -> Path:
    """datatrove's `TokenizedFile`: ids, the end of each document in ids, and three lines of metadata."""
    tokens = np.array(flat(documents), dtype)
    path.write_bytes(tokens.tobytes())
    ends = np.cumsum([len(document) for document in documents], dtype="<u8")
    path.with_name(f"{path.name}.index").write_bytes(ends.tobytes())
    path.with_name(f"{path.name}.metadata").write_text(f"{tokenizer}|{tokens.itemsize}\n{len(tokens)}\n{len(tokens)} T")
    return path


Write = Callable[[Path, Documents, Any], Path]
# How each system writes ids of a small and of a large vocabulary: name of the file, and dtypes.
FORMATS: dict[str, tuple[Write, str, tuple[str, str]]] = {
    "raw ids (as nanoGPT's .bin)": (raw, "train.bin", ("<u2", "<u4")),
    "raw ids named .npy (as OLMo's and Dolma's)": (olmo, "part.npy", ("<u2", "<u4")),
    "NumPy .npy": (npy, "ids.npy", ("<u2", "<u4")),
    "llm.c .bin": (llm_c, "fineweb_train_000001.bin", ("<u2", "<u4")),
    "Megatron .bin and .idx": (megatron, "corpus_text_document.bin", ("<u2", "<i4")),
    "datatrove .ds": (datatrove, "00000_shuffled.ds", ("<u2", "<u4")),
}
