"""A tokenizer by its name."""

import os
import re
from pathlib import Path
from typing import Final

from shardstream.ingest.tokenizer import Tokenizer

_HUB_NAME: Final = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
_SENTENCEPIECE_NAME: Final = re.compile(r"\.model(\.v[^.]*)?$")
_FILE_SUFFIXES: Final = (".json", ".model", ".txt")
_HUB_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tekken.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
_HUB_TIMEOUT_S: Final = 10  # to be answered at all; no answer is the common case on a cluster without a way out
_WANTED: Final = (
    "wanted tokenizer.json, vocab.json with merges.txt, a SentencePiece .model, tekken.json, a folder with one of these, "
    "'tiktoken:NAME', 'bytes', or a name on the Hugging Face Hub"
)


def load_tokenizer(name: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a name.

    Args:
        name: Any of

            * a ``tokenizer.json`` of Hugging Face's tokenizers,
            * a ``vocab.json`` with its ``merges.txt`` beside it, as GPT-2 has them, or ``gpt2_vocab.json`` with
              ``gpt2_merges.txt``,
            * a SentencePiece ``.model``,
            * Mistral's ``tekken.json``,
            * a folder that holds one of these; the first of this order counts,
            * ``tiktoken:NAME``, such as ``tiktoken:cl100k_base``,
            * ``bytes``, which needs nothing: ids 0 to 255, and 256 as end of text,
            * else a name on the Hugging Face Hub, such as ``gpt2``; what was downloaded once needs no network.

    Raises:
        OSError: A file cannot be read, or the Hub not be reached.
        ValueError: It names no tokenizer.
        ModuleNotFoundError: The library for its kind is not installed; the message says how to.
    """
    name = os.fspath(name)
    if name == "bytes":
        from shardstream.ingest.byte_tokenizer import ByteTokenizer  # noqa: PLC0415 - beside the other kinds

        return ByteTokenizer()
    if name.startswith("tiktoken:"):
        from shardstream.ingest.tiktoken_tokenizer import load_encoding  # noqa: PLC0415 - its library may be missing

        return load_encoding(name.removeprefix("tiktoken:"))
    if "://" in name:
        raise ValueError(f"{name!r}: a tokenizer is a local file or folder; copy it here first")
    path = Path(name)
    if path.is_dir() and name:  # the folder of no name would be this one
        return _load_file(_file_in(path), name=path.resolve().name)
    if path.is_file() or name.endswith(_FILE_SUFFIXES):
        is_by_folder = path.name in _HUB_FILES
        return _load_file(path, name=path.parent.resolve().name if is_by_folder else path.name)
    if _HUB_NAME.fullmatch(name):
        return _load_file(_file_in(_hub_folder(name)), name=name)
    raise ValueError(f"{name!r} is neither a file or folder nor the name of a tokenizer; {_WANTED}")


def _file_in(folder: Path) -> Path:
    """The file of a folder that is, or leads to, its tokenizer."""
    for pattern in ("tokenizer.json", "*vocab.json", "tokenizer.model", "*.model", "*.model.v*", "*tekken*.json"):
        if found := sorted(folder.glob(pattern)):
            if len(found) > 1:
                raise ValueError(f"{folder}: {found[0].name} and {found[1].name} may both be meant; name one of them")
            return found[0]
    raise ValueError(f"{folder}: no tokenizer in this folder; {_WANTED}")


def _load_file(path: Path, *, name: str) -> Tokenizer:
    if path.name.endswith(("vocab.json", "merges.txt")):
        from shardstream.ingest.json_tokenizer import load_vocab_and_merges  # noqa: PLC0415 - its library may be missing

        return load_vocab_and_merges(
            path.with_name(path.name.replace("merges.txt", "vocab.json")),
            path.with_name(path.name.replace("vocab.json", "merges.txt")),
            name=name,
        )
    content = path.read_bytes()
    if _SENTENCEPIECE_NAME.search(path.name):
        from shardstream.ingest.sentencepiece_tokenizer import SentencePieceTokenizer  # noqa: PLC0415 - may be missing

        return SentencePieceTokenizer(content, name=name, source=os.fspath(path))
    if _is_tekken(content):
        from shardstream.ingest.tiktoken_tokenizer import tekken_of  # noqa: PLC0415 - its library may be missing

        return tekken_of(content, name=name, source=os.fspath(path))
    from shardstream.ingest.json_tokenizer import JsonTokenizer, named_tokens_beside  # noqa: PLC0415 - may be missing

    return JsonTokenizer(content, name=name, source=os.fspath(path), named_tokens=named_tokens_beside(path))


def _is_tekken(content: bytes) -> bool:
    """Whether a JSON file is one of Mistral's; a file that is neither is the other library's to refuse."""
    # Megabytes of vocabulary are parsed once, by the one that knows them. A token of such a name would be no key here.
    return b'"default_num_special_tokens":' in content and b'"token_bytes":' in content


def _hub_folder(name: str) -> Path:
    """The local folder of the tokenizer that the Hub knows by this name."""
    try:
        import huggingface_hub  # noqa: PLC0415 - comes with tokenizers, and may be missing
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name!r} is no file or folder here, and a name on the Hugging Face Hub needs huggingface_hub: "
            "pip install 'shardstream[tokenizers]'"
        ) from error
    try:
        # All files in one question, since a question for a single one is asked six times over 23 seconds.
        folder = huggingface_hub.snapshot_download(name, allow_patterns=list(_HUB_FILES), etag_timeout=_HUB_TIMEOUT_S)
    except (huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.HFValidationError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise OSError(
            f"{name!r} is no file or folder here, and the Hugging Face Hub gave no such tokenizer: {reason}; without a "
            "network, name a local file: tokenizer.json, a SentencePiece .model, tekken.json"
        ) from error
    return Path(folder)
