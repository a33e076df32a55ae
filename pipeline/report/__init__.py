"""Runs, laid out as one page to look at, and as tables for a paper."""
