"""Run a sweep as jobs on a Slurm cluster."""
