"""The command `doctor`: the provider of sign-ins, and the proxies before a running Halt."""
