"""The workers of one machine as one service: which are alive, and which has a run."""
