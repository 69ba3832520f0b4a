"""A window, or a part of it, becomes small frames: one definition of each figure."""
