"""Answers to claims to preference pairs: dividing, the cache of labels, and pairing."""
