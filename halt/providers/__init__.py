"""Clients of model servers: send requests, decode streams, list models, find local servers."""
