"""Sweeps over all networks of a recipe: plan them, train several at a time, show their state, verify them."""
