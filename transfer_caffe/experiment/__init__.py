"""Definition of the experiment: treatments, recipes, and properties of the network architectures."""
