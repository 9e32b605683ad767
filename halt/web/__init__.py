"""What all HTTP routes share: who is asking, limits, security, streaming."""
