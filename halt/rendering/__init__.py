"""Markdown to safe HTML, slow texts in separate processes. Uses only `halt.clock` of Halt."""
