"""The workers of one machine as one service: who is alive, and whose run is it."""
