"""Pre-training of SlotCon on the engine."""
