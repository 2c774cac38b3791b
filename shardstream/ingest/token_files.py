"""A file of ids by its name -> a TokenFile."""

from shardstream.ingest.flat_ids import npy_file, raw_file
from shardstream.ingest.input_file import InputFile, refuse_archive
from shardstream.ingest.token_pieces import TokenFile


def open_token_file(path: str, *, dtype: str | None, column: str | None) -> TokenFile:
    """Look at a file of ids and say how to read it. What can be told without its ids is checked now.

    Args:
        path: Local path or fsspec URL that ends in ``.npy`` or ``.bin`` (also compressed, such as ``.bin.zst``), or in
            ``.parquet``, ``.arrow`` or ``.feather``.
        dtype: NumPy's name of the dtype of raw files, such as ``uint16`` or ``>u4``.
        column: The column to take; None finds it where there is but one of ids, or of lists of ids.

    Raises:
        ValueError: An argument is missing or does not suit the file.
        FormatError: The file is not what its name says, is damaged, or holds something else than ids.
        ImportError: A package that the URL needs is not installed.
        OSError: It cannot be read.
    """
    file = InputFile(path)
    refuse_archive(path, member="ids.npy")
    if file.suffix == ".npy":
        return npy_file(file)
    if file.suffix == ".bin":
        if dtype is None:
            raise ValueError(f"{path}: raw ids do not say their dtype; give it, such as uint16")
        return raw_file(file, dtype)
    if file.suffix not in {".parquet", ".arrow", ".feather"}:
        raise ValueError(
            f"{path}: its name must end in .npy, .bin, .parquet, .arrow or .feather; "
            "ids from elsewhere can come through standard input"
        )
    if file.codec is not None:
        raise ValueError(f"{path}: cannot be read from within {file.codec}; decompress it first")
    from shardstream.ingest.column_ids import arrow_file, parquet_file  # noqa: PLC0415 - pyarrow takes 0.1 s to import

    return parquet_file(file, column) if file.suffix == ".parquet" else arrow_file(file, column)
