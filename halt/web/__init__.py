"""The HTTP layer: routes, sessions, limits, security and streaming."""
