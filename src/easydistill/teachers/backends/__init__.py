"""The teacher backends that come with EasyDistill."""
