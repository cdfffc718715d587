"""Figures of a results table: `draw.draw_figures`, and one module a figure."""
