"""The WebSocket API: many streams over one connection."""
