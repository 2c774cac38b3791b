"""Other people's files to tokens. tokenizers is imported in one file here, and nowhere else."""
