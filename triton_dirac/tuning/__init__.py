"""How a kernel's tile is chosen: candidate configs, GPU targets, cost model, persisted picks."""
