"""A notebook run into one HTML page, and the index over the pages of a folder."""
