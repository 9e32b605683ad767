"""Tests of the page in a real Chromium, served by a real gunicorn."""
