"""The workers of one server on this machine: which are alive, and which produces a stream."""
