"""Conversations: what joins the engine and the store."""
