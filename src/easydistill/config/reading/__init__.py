"""How a config is read: from a file in one of four notations, or a mapping, to one typed job."""
