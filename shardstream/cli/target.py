"""Options of the verbs that write a dataset."""

from typing import Final

import rich_click as click

out_option: Final = click.option(
    "--out", "uri", metavar="URI", required=True, help="Folder or URL of the dataset; empty, or not there yet."
)
tokenizer_name_option: Final = click.option(
    "--tokenizer-name", metavar="TEXT", help="Who made the ids, such as gpt2; recorded in the manifest."
)
