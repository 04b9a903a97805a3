"""Whether a text is what it claims to be: final answers against known ones, quotations against their source."""
