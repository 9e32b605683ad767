"""Anthropic's Messages API, and other servers that implement it."""
