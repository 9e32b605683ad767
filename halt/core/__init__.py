"""The engine: runs a generation from its request to its end, with its log, Stop and readers.

It imports no Flask, SQL, HTTP, process or provider code; it declares protocols for what it needs.
"""
