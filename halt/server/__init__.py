"""The server process: the command line, gunicorn's settings, and gunicorn's worker for Halt."""
