"""Networks as files that are run elsewhere."""
