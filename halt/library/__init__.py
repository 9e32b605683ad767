"""Halt as a library for Python programs: `from halt import Halt`."""
