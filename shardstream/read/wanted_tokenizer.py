"""A dataset's tokenizer against the one that a reader counts on."""

import re
from collections.abc import Mapping
from typing import Final, Protocol, TypeAlias

from shardstream.errors import FormatError
from shardstream.format.manifest import TokenizerIdentity

_FIELDS: Final = tuple(TokenizerIdentity.__struct_fields__)
_SHA256: Final = re.compile("[0-9a-fA-F]{64}")


class HasSha256(Protocol):
    """Anything that names a tokenizer by its content, such as :class:`shardstream.ingest.tokenizer.Tokenizer`."""

    @property
    def sha256(self) -> str | None:
        """Checksum of the tokenizer's content."""
        ...


WantedTokenizer: TypeAlias = str | Mapping[str, str | int | None] | HasSha256


def check_tokenizer(uri: str, recorded: TokenizerIdentity | None, wanted: WantedTokenizer) -> None:
    """See that a dataset was made by the tokenizer that is wanted.

    Args:
        uri: The dataset, for messages.
        recorded: What its manifest says.
        wanted: A sha256, a mapping of any of ``name``, ``sha256``, ``eos_id``, ``bos_id``, ``pad_id``, or an object with
            such attributes, of which ``sha256`` has to be there. None says nothing of a field; an object's name counts
            only if its checksum is None, since one content may go by several names.

    Raises:
        FormatError: The manifest contradicts what is wanted, or does not say.
        ValueError: ``wanted`` is none of these.
    """
    for field, value in _fields_of(wanted).items():
        found = getattr(recorded, field, None)
        if found is None:
            raise FormatError(
                f"{uri}: wanted tokenizer.{field} {value!r}, but the manifest does not say which it is; open without "
                "tokenizer, if you know who made the dataset"
            )
        if found != value:
            raise FormatError(
                f"{uri}: tokenizer.{field} is {found!r}, wanted {value!r}; another tokenizer made this dataset: use that "
                "one, or tokenize again"
            )


def _fields_of(wanted: WantedTokenizer) -> dict[str, str | int]:
    if isinstance(wanted, str):
        fields: dict[str, str | int | None] = {"sha256": wanted}
    elif isinstance(wanted, Mapping):
        fields = dict(wanted)
    else:
        # Without a checksum it is no tokenizer: a path, too, has a name.
        fields = {field: getattr(wanted, field, None) for field in _FIELDS if hasattr(wanted, "sha256")}
        if fields.get("sha256") is not None:
            del fields["name"]
    known = {field: value for field, value in fields.items() if value is not None}
    sha256 = known.get("sha256")
    is_sha256 = sha256 is None or (isinstance(sha256, str) and _SHA256.fullmatch(sha256) is not None)
    if not known or not known.keys() <= set(_FIELDS) or not is_sha256:
        raise ValueError(
            f"tokenizer is {wanted!r}; wanted a sha256 of 64 hex digits, or any of {', '.join(_FIELDS)} as a mapping "
            "or as the attributes of an object that has a sha256"
        )
    if isinstance(sha256, str):
        known["sha256"] = sha256.lower()
    return known
