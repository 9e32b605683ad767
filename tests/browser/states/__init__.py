"""Every state of the page, what a fake model answers in it, and what can be measured of it."""
