"""Conversations, generations and their journal in SQL."""
