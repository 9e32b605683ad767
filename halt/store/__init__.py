"""Stores conversations, generations and their events in SQL."""
