"""A fake model server, for tests and by hand: `python -m halt.testing.fake_openai`."""
