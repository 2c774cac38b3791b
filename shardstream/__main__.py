"""``python -m shardstream``: the command line."""

from shardstream.cli import main

if __name__ == "__main__":
    main()
