"""The rule verifier: does an answer say the same as the reference? Start at verifier.py."""
