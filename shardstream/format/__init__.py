"""What is a dataset on disk? Pure: no network, no torch. ``FORMAT.md`` beside this file is the specification."""
