"""Figures and a self-contained page of one evaluation, from its files alone."""
