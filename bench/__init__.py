"""The measurements: `python -m bench` runs them all and prints one table.

Everything is measured from outside, at real processes: Halt under gunicorn, an upstream, and a load
generator, each in a process of its own. Linux only: figures are read from /proc, and times are
compared between processes, which share CLOCK_MONOTONIC there.
"""
