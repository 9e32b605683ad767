"""Connections to models' servers: a pool, HTTP/1, name resolution."""
