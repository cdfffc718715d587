"""The results table, and the statistics that the figures, the analysis and the report compute from it."""
