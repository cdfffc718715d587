"""The table of results, and the numbers that figures, analysis and report read from it."""
