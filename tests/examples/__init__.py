"""Small clients, each to be copied as a whole. `tests/server/test_examples.py` runs every one of
them.
"""
