"""Puts this folder, with the run folders that the tests below share, on the path."""
