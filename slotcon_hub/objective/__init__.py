"""The objective of SlotCon: what a batch of view pairs costs."""
