"""A vision-language family that nobody has: what a new family needs, one file a side.

The tests register both adapters; no file of the project knows the family.
"""
