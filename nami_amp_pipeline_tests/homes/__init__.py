"""Homes that older versions of the program left behind, and how to make one."""
