"""Closed forms that everything else is held against."""
