"""The objective of SlotCon: the losses of a batch of view pairs."""
