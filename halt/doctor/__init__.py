"""Checks of a provider: connection, key, models, answers, Stop. Each result is a finding."""
