"""Connections to model servers: a connection pool, HTTP/1.1, name resolution."""
