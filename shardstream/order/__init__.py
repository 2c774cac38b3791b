"""Which sample is where, and for whom? Pure integers; ORDER.md is the specification."""
