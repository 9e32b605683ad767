"""gunicorn as Halt runs it, and the demo model."""
