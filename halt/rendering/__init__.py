"""Markdown to safe HTML, in processes of their own where it takes long. Knows nothing of Halt."""
