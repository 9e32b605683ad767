"""Providers that are connected on the page, and what was chosen there for models."""
