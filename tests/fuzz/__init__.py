"""Random hostile input for the parts of Halt that read external data: `make fuzz`.

A target generates inputs from a seed and checks each one. An input is bytes, so that it can be saved,
minimised and replayed. An input that breaks a promise is a finding: it is minimised and written to
`findings/`, which tests/fuzz/test_findings.py replays in every run.
"""
