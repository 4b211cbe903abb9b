"""Named datasets as uint8 tensors, and batches cut from them."""
