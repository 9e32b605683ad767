"""Faults at random moments: `python -m tests.chaos`, and what its rounds share with the tests."""
