"""Files that Megatron and datatrove wrote themselves, each in an environment of its own, are adopted as they are.

The environments hold only the tool and what it imports beyond the packages of this one, torch among them; so they are
ready in seconds.
"""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import shardstream

pytestmark = [pytest.mark.tools, pytest.mark.timeout(300)]  # the first import of a tool takes its time

MEGATRON = ["megatron-core==0.16.1"]
DATATROVE = ["datatrove==0.10.1", "humanize==4.12.3", "loguru==0.7.3"]

MEGATRON_WRITES = """
import json, sys
import numpy, torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

for name, dtype, documents in json.load(sys.stdin):
    builder = IndexedDatasetBuilder(f"{name}.bin", dtype=getattr(numpy, dtype))
    for document in documents:  # each is of one or more sequences
        builder.add_document(torch.tensor(sum(document, [])), list(map(len, document)))
    builder.finalize(f"{name}.idx")
"""
DATATROVE_WRITES = """
import json, sys
from datatrove.data import Document
from datatrove.pipeline.tokens import DocumentTokenizer, MegatronDocumentTokenizer

texts = json.load(sys.stdin)
for name in ("small", "large"):
    documents = [Document(text=text, id=str(index)) for index, text in enumerate(texts)]
    made = {"tokenizer_name_or_path": f"{name}.json", "eos_token": "<eos>"}
    DocumentTokenizer(name, shuffle_documents=False, **made).run(iter(documents), rank=3)
    MegatronDocumentTokenizer(name, **made).run(iter(documents), rank=3)
"""


def run_tool(packages: list[str], script: str, given: object, folder: Path) -> None:
    """Run a script in a new environment of these packages, on top of this one's."""
    environment = folder / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    paths = sysconfig.get_paths(vars={"base": str(environment), "platbase": str(environment)})
    ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(paths["purelib"], "ours.pth").write_text("\n".join(sorted(ours)))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--python",
        str(python),
        "install",
        "-q",
        "--no-deps",
    ]
    installed = subprocess.run([*pip, *packages], capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"pip cannot install {' '.join(packages)}: {installed.stderr.strip().splitlines()[-1]}")
    done = subprocess.run(
        [python, "-c", script],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_what_megatron_writes_is_adopted(tmp_path: Path) -> None:
    """megatron-core's IndexedDatasetBuilder: uint16 and int32, with documents of several sequences."""
    documents = {
        "small": [[[1, 2, 3], [4]], [[65535]], [[0, 7], [8], [9, 10]]],
        "large": [[[1, 100_000]], [[2], [131_071, 5]]],
    }
    given = [(name, "uint16" if name == "small" else "int32", documents[name]) for name in documents]
    run_tool(MEGATRON, MEGATRON_WRITES, given, tmp_path)

    for name, vocab_size in (("small", 65_536), ("large", 131_072)):
        manifest = shardstream.adopt([tmp_path / f"{name}.bin"], tmp_path, vocab_size=vocab_size, overwrite=True)
        dataset = shardstream.open(tmp_path)

        assert manifest.num_documents == len(documents[name])
        assert dataset[:].tolist() == [token for document in documents[name] for part in document for token in part]
        assert dataset.verify().ok


def test_what_datatrove_writes_is_adopted(tmp_path: Path) -> None:
    """datatrove's tokenizers, of ids of 16 and of 32 bits: .ds with index and metadata, and Megatron's format."""
    texts = [" ".join(f"w{word}" for word in range(start, start + 50, 7)) for start in range(1, 900, 90)]
    tokenizers: dict[str, Tokenizer] = {}
    for name, vocab_size in (("small", 1000), ("large", 70_000)):
        words = {"<eos>": 0, **{f"w{word}": vocab_size - word for word in range(1, vocab_size)}}
        tokenizers[name] = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
        tokenizers[name].pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizers[name].save(str(tmp_path / f"{name}.json"))
    run_tool(DATATROVE, DATATROVE_WRITES, texts, tmp_path)

    for name, tokenizer in tokenizers.items():
        expected = [token for text in texts for token in [*tokenizer.encode(text).ids, 0]]
        for file in ("00003_unshuffled.ds", "00003_tokens.bin"):
            manifest = shardstream.adopt(
                [tmp_path / name / file],
                tmp_path / name,
                vocab_size=tokenizer.get_vocab_size(),
                eos_id=0,
                overwrite=True,
            )
            dataset = shardstream.open(tmp_path / name)

            np.testing.assert_array_equal(dataset[:], expected, err_msg=file)
            assert manifest.num_documents == manifest.shards[0].num_eos == len(texts)
            assert dataset.verify().ok
            assert manifest.tokenizer is not None
            assert manifest.tokenizer.name == (f"{name}.json" if file.endswith(".ds") else None)
