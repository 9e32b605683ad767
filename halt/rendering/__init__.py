"""Markdown to safe HTML, in separate processes for slow texts; depends on nothing else in Halt."""
