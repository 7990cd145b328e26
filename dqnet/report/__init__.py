"""Figures and tables from the files of finished runs alone."""
