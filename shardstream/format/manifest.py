"""The manifest: JSON in, checked values out, and back.

Two choices stand behind the shape of this module. Rows are msgspec structs, because a dataset of 100,000 shards must
open in under a second and 100 MB, and because their types are checked while the JSON is read. And fields that a later version may add are kept beside the typed ones, in ``extra`` and ``shard_extra``, so that a merge or
a copy made by this version does not lose them.
"""

import hashlib
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np

from shardstream.errors import FormatError

FORMAT_NAME: Final = "shardstream"
FORMAT_VERSION: Final = 1
MANIFEST_NAME: Final = "manifest.json"

# A row takes about 250 bytes: this admits a million shards and keeps a hostile file from filling memory.
MAX_MANIFEST_BYTES: Final = 2**28
MAX_VOCAB_SIZE: Final = 2**32
# A reader has the whole of a side file in memory. Twice what the columns may unpack to, in side_file.py: enough for all.
MAX_SIDE_FILE_BYTES: Final = 2**31
# Free JSON grows up to 25-fold when it is parsed; beside the rows a manifest needs little.
_MAX_FREE_BYTES: Final = 2**24
_MAX_UINT16_VOCAB_SIZE: Final = 2**16
_MAX_MESSAGE_LENGTH: Final = 1600
_INT64_MAX: Final = 2**63 - 1

# Plain relative names: no way to say an absolute path, a drive, "..", a hidden file or a URL.
_COMPONENT = r"[A-Za-z0-9_][A-Za-z0-9_.=-]{0,254}"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_MAX_NAME_LENGTH: Final = 1024
_SHARD_SUFFIX: Final = re.compile(r"\.bin(\.zst)?\Z")
_HEX_SHA256 = r"^[0-9a-f]{64}\Z"

Count = Annotated[int, msgspec.Meta(ge=0, le=_INT64_MAX)]
PositiveCount = Annotated[int, msgspec.Meta(ge=1, le=_INT64_MAX)]
TokenId = Annotated[int, msgspec.Meta(ge=0, lt=MAX_VOCAB_SIZE)]
VocabSize = Annotated[int, msgspec.Meta(ge=1, le=MAX_VOCAB_SIZE)]
Sha256 = Annotated[str, msgspec.Meta(pattern=_HEX_SHA256)]
DtypeName = Literal["uint16", "uint32"]


def dtype_of_vocab(vocab_size: int) -> "np.dtype[np.unsignedinteger[Any]]":
    """The stored dtype of ids below ``vocab_size``: little-endian uint16 up to 65,536 ids, else uint32.

    Raises:
        ValueError: ``vocab_size`` is not in ``[1, 2**32]``.
    """
    if not 1 <= vocab_size <= MAX_VOCAB_SIZE:
        raise ValueError(
            f"vocab_size is {vocab_size}; wanted 1 to {MAX_VOCAB_SIZE}, the number of ids of the tokenizer"
        )
    return np.dtype("<u2" if vocab_size <= _MAX_UINT16_VOCAB_SIZE else "<u4")


class TokenizerIdentity(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Which tokenizer made the ids. Every field may be absent."""

    name: Annotated[str, msgspec.Meta(max_length=1024)] | None = None
    """What a person calls it, such as ``gpt2``."""
    sha256: Sha256 | None = None
    """Checksum of the tokenizer's content."""
    eos_id: TokenId | None = None
    """The id that ends a document."""
    bos_id: TokenId | None = None
    pad_id: TokenId | None = None


class StoredBytes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a shard lies in storage when it is not raw."""

    codec: Literal["zstd"]
    num_bytes: PositiveCount
    """Size of the stored object, in bytes."""
    sha256: Sha256
    """Checksum of the stored object; the entry's own ``sha256`` is that of the raw bytes."""


class SideFile(msgspec.Struct, frozen=True, kw_only=True):
    """The Parquet file beside a shard that lists the documents which start in it; see side_file.py."""

    num_documents: Count
    """Its rows."""
    num_bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE_FILE_BYTES)]
    """Size of the file, in bytes."""
    sha256: Sha256
    """Checksum of the file."""


class ShardEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One row of the manifest: one file of tokens."""

    name: str
    """Relative path below the manifest's folder, with ``/`` between its components; unique."""
    num_tokens: PositiveCount
    num_bytes: PositiveCount
    """Bytes of tokens: ``num_tokens`` times the size of the dtype. A header before them does not count."""
    sha256: Sha256 | None = None
    """Checksum of the raw token bytes; absent in an adopted file that nobody has read yet."""
    min_token: TokenId | None = None
    max_token: TokenId | None = None
    num_eos: Count | None = None
    """How often ``eos_id`` occurs; absent without an ``eos_id``."""
    byte_offset: Count = 0
    """Where the tokens start in the file, in bytes: the length of a foreign header."""
    location: Annotated[str, msgspec.Meta(min_length=1, max_length=4096, pattern=r"^[^\x00]*\Z")] | None = None
    """Path or URL of an adopted file; readers follow it only when told to trust it."""
    stored: StoredBytes | None = None
    documents: SideFile | None = None

    @property
    def documents_name(self) -> str:
        """Name of the side file, which is derived from that of the shard."""
        return f"{_SHARD_SUFFIX.sub('', self.name)}.documents.parquet"

    @property
    def file_bytes(self) -> int:
        """Size of the stored object, in bytes."""
        return self.stored.num_bytes if self.stored else self.byte_offset + self.num_bytes


class Manifest(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A dataset: what its tokens are, and the shards that hold them, in order.

    Build one with :meth:`parse` (from JSON) or by keyword; both check everything that can be checked without the shards.

    Raises:
        FormatError: A field breaks the specification; the message names it.
    """

    vocab_size: int
    shard_tokens: int
    """Tokens of a full shard; shorter shards may stand anywhere."""
    shards: tuple[ShardEntry, ...]
    num_documents: int = 0
    """Documents that the writer counted; 0 where none were."""
    tokenizer: TokenizerIdentity | None = None
    creator: str = ""
    metadata: Mapping[str, Any] = {}
    """Whatever the user wants kept; no meaning here."""
    extra: Mapping[str, Any] = {}
    """Fields of the manifest that this version does not know, kept as they were."""
    tokenizer_extra: Mapping[str, Any] = {}
    """The same of ``tokenizer``."""
    shard_extra: Mapping[str, Mapping[str, Any]] = {}
    """The same of rows, by shard name."""

    @cached_property
    def dtype(self) -> "np.dtype[np.unsignedinteger[Any]]":
        """The stored dtype of a token."""
        return dtype_of_vocab(self.vocab_size)

    @cached_property
    def num_tokens(self) -> int:
        """Length of the token stream."""
        return sum(shard.num_tokens for shard in self.shards)

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of all tokens, as raw shards."""
        return self.num_tokens * self.dtype.itemsize

    @property
    def eos_id(self) -> int | None:
        """The id that ends a document, if there is one."""
        return self.tokenizer.eos_id if self.tokenizer else None

    @cached_property
    def digest(self) -> str:
        """The dataset digest: hex sha256 over dtype, vocab_size and each shard's num_tokens and sha256, in order.

        It identifies the token stream and how it is cut, not the names of files. FORMAT.md gives the exact bytes.
        """
        lines = [f"shardstream digest 1\n{self.dtype.name} {self.vocab_size}\n"]
        lines += [f"{shard.num_tokens} {shard.sha256 or '-'}\n" for shard in self.shards]
        return hashlib.sha256("".join(lines).encode("ascii")).hexdigest()

    def __post_init__(self) -> None:
        """Check everything that concerns more than one field."""
        _check(self)

    @classmethod
    def parse(cls, data: bytes, *, source: str = MANIFEST_NAME) -> "Manifest":
        """Read and check a manifest.

        Args:
            data: The JSON, UTF-8.
            source: What to call it in messages: a path or URL.

        Raises:
            FormatError: It is too large, not JSON, of a higher version, or breaks the specification anywhere.
        """
        try:
            return _parse(data)
        except FormatError as error:
            raise FormatError(f"{source}: {_shortened(str(error))}") from error.__cause__

    def to_json(self) -> bytes:
        """The canonical JSON: keys sorted, no spaces, one line per shard row, a newline at the end."""
        rows = b",\n".join(
            msgspec.json.encode({**self.shard_extra.get(shard.name, {}), **msgspec.to_builtins(shard)}, order="sorted")
            if shard.name in self.shard_extra
            else msgspec.json.encode(shard, order="sorted")
            for shard in self.shards
        )
        fields: dict[str, Any] = {
            **self.extra,
            "format": FORMAT_NAME,
            "version": FORMAT_VERSION,
            "creator": self.creator,
            "dtype": self.dtype.name,
            "vocab_size": self.vocab_size,
            "shard_tokens": self.shard_tokens,
            "num_tokens": self.num_tokens,
            "num_documents": self.num_documents,
            "metadata": self.metadata,
            "shards": msgspec.Raw(b"[\n" + rows + b"\n]" if rows else b"[]"),
        }
        if self.tokenizer is not None:
            fields["tokenizer"] = {**self.tokenizer_extra, **msgspec.to_builtins(self.tokenizer)}
        return msgspec.json.encode(fields, order="sorted") + b"\n"


_REQUIRED: Final[dict[str, "msgspec.json.Decoder[Any]"]] = {
    name: msgspec.json.Decoder(type_)
    for name, type_ in {
        "format": str,
        "version": PositiveCount,
        "dtype": DtypeName,
        "vocab_size": VocabSize,
        "shard_tokens": PositiveCount,
        "num_tokens": Count,
        "num_documents": Count,
        "shards": msgspec.Raw,
    }.items()
}
_OPTIONAL: Final[dict[str, "msgspec.json.Decoder[Any]"]] = {
    "tokenizer": msgspec.json.Decoder(dict[str, msgspec.Raw] | None),
    "creator": msgspec.json.Decoder(str),
    "metadata": msgspec.json.Decoder(dict[str, Any]),
}
_ANY: Final = msgspec.json.Decoder(Any)
_ROWS: Final = msgspec.json.Decoder(tuple[ShardEntry, ...])
_ROW: Final = msgspec.json.Decoder(ShardEntry)
_TOKENIZER: Final = msgspec.json.Decoder(TokenizerIdentity)
_RAW_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_RAW_ROWS: Final = msgspec.json.Decoder(tuple[msgspec.Raw, ...])


def _parse(data: bytes) -> Manifest:
    if len(data) > MAX_MANIFEST_BYTES:
        raise FormatError(f"more than {MAX_MANIFEST_BYTES} bytes of manifest; write fewer, larger shards")
    raw: dict[str, msgspec.Raw] = _decode(_RAW_FIELDS, data, "manifest")
    _check_version(raw)
    if sum(memoryview(value).nbytes for name, value in raw.items() if name != "shards") > _MAX_FREE_BYTES:
        raise FormatError(f"more than {_MAX_FREE_BYTES} bytes beside the shards; keep metadata small")
    if missing := [name for name in _REQUIRED if name not in raw]:
        raise FormatError(f"missing field {', '.join(map(repr, missing))}; the manifest is incomplete")
    decoders = {name: decoder for name, decoder in (_REQUIRED | _OPTIONAL).items() if name in raw}
    fields = {name: _decode(decoder, raw[name], name) for name, decoder in decoders.items()}
    shards, shard_extra = _parse_rows(raw["shards"])
    tokenizer: TokenizerIdentity | None = None
    tokenizer_extra: dict[str, Any] = {}
    if fields.get("tokenizer") is not None:
        tokenizer, tokenizer_extra = _parse_known(_TOKENIZER, fields["tokenizer"], "tokenizer")
    manifest = Manifest(
        vocab_size=fields["vocab_size"],
        shard_tokens=fields["shard_tokens"],
        shards=shards,
        num_documents=fields["num_documents"],
        tokenizer=tokenizer,
        creator=fields.get("creator", ""),
        metadata=fields.get("metadata", {}),
        extra={name: _decode(_ANY, value, name) for name, value in raw.items() if name not in decoders},
        tokenizer_extra=tokenizer_extra,
        shard_extra=shard_extra,
    )
    for field, derived in (("dtype", manifest.dtype.name), ("num_tokens", manifest.num_tokens)):
        if fields[field] != derived:
            raise FormatError(f"{field} is {fields[field]}, but the rest of the manifest makes it {derived}")
    return manifest


def _check_version(raw: Mapping[str, msgspec.Raw]) -> None:
    """Before anything else: another version may give every other field another type."""
    name = _decode(_REQUIRED["format"], raw["format"], "format") if "format" in raw else None
    if name != FORMAT_NAME:
        raise FormatError(f"not a shardstream manifest: format is {name!r}, wanted {FORMAT_NAME!r}")
    version = _decode(_REQUIRED["version"], raw["version"], "version") if "version" in raw else FORMAT_VERSION
    if version > FORMAT_VERSION:
        raise FormatError(
            f"version is {version}, this shardstream reads up to {FORMAT_VERSION}; install a newer shardstream"
        )


def _parse_rows(raw: msgspec.Raw) -> tuple[tuple[ShardEntry, ...], dict[str, dict[str, Any]]]:
    try:
        return _ROWS.decode(raw), {}
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        if "unknown field" not in str(error):
            raise FormatError(_located("shards", error)) from error
    # Only a manifest of a later minor revision takes this slower way.
    shards: list[ShardEntry] = []
    shard_extra: dict[str, dict[str, Any]] = {}
    for index, raw_row in enumerate(_decode(_RAW_ROWS, raw, "shards")):
        where = f"shards[{index}]"
        shard, extra = _parse_known(_ROW, _decode(_RAW_FIELDS, raw_row, where), where)
        if extra:
            shard_extra[shard.name] = extra
        shards.append(shard)
    return tuple(shards), shard_extra


def _parse_known(
    decoder: "msgspec.json.Decoder[Any]", raw: Mapping[str, msgspec.Raw], where: str
) -> tuple[Any, dict[str, Any]]:
    """A struct from the fields that it knows, and the others beside it."""
    known = {name: value for name, value in raw.items() if name in decoder.type.__struct_fields__}
    extra = {name: _decode(_ANY, value, f"{where}.{name}") for name, value in raw.items() if name not in known}
    return _decode(decoder, msgspec.json.encode(known), where), extra


def _decode(decoder: "msgspec.json.Decoder[Any]", data: bytes | msgspec.Raw, field: str) -> Any:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise FormatError(_located(field, error)) from error


def _shortened(text: str) -> str:
    """A stranger's manifest must not fill a log: its megabyte of a name is not repeated."""
    half = _MAX_MESSAGE_LENGTH // 2
    return text if len(text) <= _MAX_MESSAGE_LENGTH else f"{text[:half]} ... {text[-half:]}"


def _located(field: str, error: Exception) -> str:
    """msgspec's message with its ``$`` path made part of ours: ``shards[3].num_tokens: Expected `int`, got `str```."""
    what, _, path = str(error).partition(" - at `$")
    return f"{field}{path.rstrip('`')}: {what}"


def _check(manifest: Manifest) -> None:
    try:
        itemsize = manifest.dtype.itemsize
    except ValueError as error:
        raise FormatError(str(error)) from error
    vocab_size, shard_tokens = manifest.vocab_size, manifest.shard_tokens
    for name in ("eos_id", "bos_id", "pad_id"):
        token = getattr(manifest.tokenizer, name, None)
        if token is not None and token >= vocab_size:
            raise FormatError(f"tokenizer.{name} is {token}, not below vocab_size {vocab_size}")
    if manifest.num_tokens > _INT64_MAX:
        raise FormatError(f"num_tokens is {manifest.num_tokens}, more than positions can count ({_INT64_MAX})")
    names: set[str] = set()
    for shard in manifest.shards:
        if shard.num_eos is not None and manifest.eos_id is None:
            raise FormatError(f"shard {shard.name!r}: num_eos is {shard.num_eos}, but tokenizer.eos_id is absent")
        if problem := _row_problem(shard, itemsize, vocab_size, shard_tokens):
            raise FormatError(f"shard {shard.name!r}: {problem}")
        for name in (shard.name, shard.documents_name) if shard.documents else (shard.name,):
            if name in names:
                what = "shard" if name == shard.name else "side file"
                raise FormatError(f"{what} {name!r} is listed twice; names must be unique")
            names.add(name)


def _row_problem(shard: ShardEntry, itemsize: int, vocab_size: int, shard_tokens: int) -> str | None:
    if shard.num_bytes != shard.num_tokens * itemsize:
        return f"num_bytes is {shard.num_bytes}, but {shard.num_tokens} tokens take {shard.num_tokens * itemsize}"
    if shard.num_tokens > shard_tokens:
        return f"num_tokens is {shard.num_tokens}, more than shard_tokens, {shard_tokens}"
    for name, token in (("min_token", shard.min_token), ("max_token", shard.max_token)):
        if token is not None and token >= vocab_size:
            return f"{name} is {token}, not below vocab_size {vocab_size}"
    if shard.min_token is not None and shard.max_token is not None and shard.min_token > shard.max_token:
        return f"min_token {shard.min_token} is above max_token {shard.max_token}"
    if shard.num_eos is not None and shard.num_eos > shard.num_tokens:
        return f"num_eos is {shard.num_eos}, more than its {shard.num_tokens} tokens"
    if shard.documents is not None and shard.documents.num_documents > shard.num_tokens:
        return f"documents.num_documents is {shard.documents.num_documents}, more than its {shard.num_tokens} tokens"
    return _place_problem(shard, itemsize)


def _place_problem(shard: ShardEntry, itemsize: int) -> str | None:
    if shard.byte_offset and (shard.byte_offset % itemsize or shard.stored):
        return f"byte_offset is {shard.byte_offset}; wanted a multiple of {itemsize}, and none in a compressed shard"
    if is_bad_name(shard.name):
        return "not a plain relative name; wanted letters, digits and _ . = - between slashes, and no leading dot"
    if shard.documents is not None and is_bad_name(shard.documents_name):
        return "its name leaves no room for that of its side file; wanted a shorter one"
    return None


def is_bad_name(name: str) -> bool:
    """Whether no shard may be called so: the name is no plain relative path, or is the manifest's."""
    return len(name) > _MAX_NAME_LENGTH or not _NAME.fullmatch(name) or name.casefold() == MANIFEST_NAME
