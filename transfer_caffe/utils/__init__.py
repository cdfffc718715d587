"""What every part of the package needs and no part of it owns: errors, whole files, locks, processes, progress."""
