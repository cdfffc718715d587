"""A sweep as jobs on a Slurm cluster."""
