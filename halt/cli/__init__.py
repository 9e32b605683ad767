"""The command line: the terminal chat and the commands that need no server."""
