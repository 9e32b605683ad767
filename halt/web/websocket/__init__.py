"""Chat by WebSocket."""
