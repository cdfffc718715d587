"""What belongs to one network's run: its folder, its inputs, its snapshots, its record."""
