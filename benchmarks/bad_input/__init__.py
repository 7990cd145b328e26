"""Wrong uses of the command line: one table, for the tests and for this benchmark."""
