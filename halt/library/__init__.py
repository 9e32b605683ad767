"""Halt inside of a Python program: `from halt import Halt`."""
