"""What a network is, in use: reading checkpoints, building architectures, [0, 1] images -> logits."""
