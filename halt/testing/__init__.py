"""A fake model server for tests and manual use: `python -m halt.testing.fake_openai`."""
