"""What extensions are made of: one module a kind of extension."""
