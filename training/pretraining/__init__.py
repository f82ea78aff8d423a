"""What pre-training of SlotCon adds to the engine."""
