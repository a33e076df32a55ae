"""Looks after a cache: checks it, mends it, tells what it is, compares it with another."""
