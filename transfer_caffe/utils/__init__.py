"""Utilities shared by the whole package: errors, atomic file writes, locks, processes, progress."""
