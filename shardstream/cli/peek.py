"""``shardstream peek``: a window of a dataset, as ids and as text."""

import random
import sys
from typing import Final

import rich_click as click

from shardstream import ShardstreamError, SourceDocument, TokenDataset
from shardstream.cli.look import look_at, trust_locations_option
from shardstream.cli.program import Verb, examples, wrong_use
from shardstream.cli.report import console_of, counted, json_option, print_json, printable
from shardstream.ingest.tokenizer import Tokenizer
from shardstream.ingest.tokenizers import load_tokenizer

_DEFAULT_LENGTH: Final = 64  # tokens: some lines of a terminal


@click.command(
    cls=Verb,
    epilog=examples(
        "shardstream peek data/train --tokenizer tokenizer.json",
        "shardstream peek s3://bucket/train --position -100 --length 100",
    ),
)
@click.argument("uri")
@click.option("--position", type=int, metavar="P", help="First token; below 0 counted from the end.  [default: random]")
@click.option(
    "--length",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Tokens to show.  [default: {_DEFAULT_LENGTH}, or what there is]",
)
@click.option("--seed", type=int, metavar="N", help="Makes the random position the same again.")
@click.option(
    "--tokenizer",
    "tokenizer_name",
    metavar="T",
    help="Shows the tokens as text: a tokenizer.json or another tokenizer's file, its folder, tiktoken:NAME, bytes, or a "
    "name on the Hugging Face Hub.",
)
@trust_locations_option
@json_option
def peek(
    uri: str,
    *,
    position: int | None,
    length: int | None,
    seed: int | None,
    tokenizer_name: str | None,
    trust_locations: bool,
    as_json: bool,
) -> None:
    """Show some tokens of a dataset, as ids and, with a tokenizer, as text.

    A look at random places tells more about a dataset than any figure: whether the text is whole, whether documents end
    where they should, whether the tokenizer is the right one. Behind a URL only the bytes of the window are read, and none
    are kept; if the dataset is compressed, whole shards go into the cache. Where side files tell, it is also shown what
    the first token's document was made of: one of them is read whole, or a few where that document began in an earlier
    shard.
    """
    with wrong_use():
        tokenizer = load_tokenizer(tokenizer_name) if tokenizer_name else None
        dataset = look_at(uri, trust_locations=trust_locations)
        window = _window(len(dataset), position, length, seed)
    tokens = dataset[window.start : window.stop].tolist()
    document, notes = _document(dataset, window.start)
    # What a vocabulary lacks cannot be decoded, and may not even be a small integer.
    decoded = tokenizer.decode([token for token in tokens if token < tokenizer.vocab_size]) if tokenizer else None
    if tokenizer:
        notes += _notes(dataset, tokens, tokenizer)
    if as_json:
        found = document and {"start": document.start, "source": document.source, "key": document.key}
        print_json({"position": window.start, "tokens": tokens, "text": decoded, "document": found, "notes": notes})
        return
    console = console_of(sys.stdout)
    console.print(f"tokens {window.start:,} to {window.stop - 1:,} of {len(dataset):,}", style="bold", soft_wrap=True)
    if document is not None:
        place = ", ".join(filter(None, (document.source, document.key))) or "a source without a name"
        into = counted(window.start - document.start, "token")
        console.print(f"from {printable(place)}, {into} into the document", soft_wrap=True)
    console.print(" ".join(map(str, tokens)), soft_wrap=not console.is_terminal)
    if decoded is not None:
        console.print("\nas text", style="bold")
        click.echo(printable(decoded, kept="\n\t"))
    for note in notes:
        console_of(sys.stderr).print(f"Note: {printable(note)}", style="yellow", soft_wrap=True)


def _window(num_tokens: int, position: int | None, length: int | None, seed: int | None) -> range:
    """The positions to show."""
    if position is None:
        length = min(_DEFAULT_LENGTH, num_tokens) if length is None else length
        start = random.Random(seed).randrange(max(num_tokens - length, 0) + 1)  # noqa: S311 - no secret
    else:
        start = position + num_tokens if position < 0 else position
        length = min(_DEFAULT_LENGTH, num_tokens - start) if length is None else length
    if start < 0 or length < 1 or start + length > num_tokens:
        raise IndexError(
            f"tokens [{start}, {start + max(length, 1)}) do not lie within the dataset, whose positions are "
            f"[0, {num_tokens})"
        )
    return range(start, start + length)


def _document(dataset: TokenDataset, position: int) -> tuple[SourceDocument | None, list[str]]:
    """Where the token comes from, if side files tell; or why they do not, though they should."""
    if not all(shard.documents for shard in dataset.manifest.shards):
        return None, []
    try:
        return dataset.document_at(position), []
    except ShardstreamError as error:  # the tokens can be read all the same
        return None, [f"where it comes from is not known: {error}"]


def _notes(dataset: TokenDataset, tokens: list[int], tokenizer: Tokenizer) -> list[str]:
    """Why the text may not be what was written."""
    notes = []
    recorded = dataset.manifest.tokenizer.sha256 if dataset.manifest.tokenizer else None
    if recorded is not None and recorded != tokenizer.sha256:
        notes.append(
            f"this is not the tokenizer that the dataset records: its sha256 is {tokenizer.sha256}, not {recorded}"
        )
    if tokenizer.vocab_size > dataset.vocab_size:
        notes.append(
            f"the tokenizer has {tokenizer.vocab_size:,} ids, and the dataset's vocab_size is {dataset.vocab_size:,}: "
            "other tokens would not fit, so another tokenizer made these"
        )
    if num_unknown := sum(token >= tokenizer.vocab_size for token in tokens):
        notes.append(
            f"{num_unknown:,} of these tokens are beyond the tokenizer's {tokenizer.vocab_size:,} ids, and left out of the text"
        )
    return notes
