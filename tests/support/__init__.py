"""Shared helpers of the tests: small data sets and recipes, fake engines and clusters, and waiting for events."""
