"""Splits a growing text into finished blocks and one open block, for the page and the terminal."""
