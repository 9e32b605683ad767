"""The command `doctor`: checks an installation and names a remedy for each fault."""
