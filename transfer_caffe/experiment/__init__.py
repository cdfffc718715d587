"""What is to be trained: treatments, recipes, and what an architecture's layers are."""
