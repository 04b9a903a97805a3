"""Rows and files: records, formats, chat rendering, the journal, manifests."""
