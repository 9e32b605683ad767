"""The chat page: its routes and view models."""
