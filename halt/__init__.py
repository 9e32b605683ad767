"""Halt: a streaming chat for any OpenAI-compatible model, whose Stop really stops."""

VERSION = "0.1.0"
