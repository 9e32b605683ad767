"""Conversations: use cases that join the generation service and the store."""
