"""Figures of a results table: `draw.draw_figures` draws all of them; each figure has its own module."""
