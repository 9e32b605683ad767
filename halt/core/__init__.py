"""The engine: a generation from its request to its one end, its log, its Stop and its readers.

Knows no Flask, SQL, HTTP, process or provider; what it needs of those it names as protocols.
"""
