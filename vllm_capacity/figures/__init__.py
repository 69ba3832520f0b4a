"""Small frames computed from a window or a part of it: the one definition of each figure."""
