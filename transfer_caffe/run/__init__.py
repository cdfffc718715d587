"""The training run of one network: its folder, inputs, snapshots and record."""
