"""Other people's loops: each file imports its framework, and nothing imports it."""
