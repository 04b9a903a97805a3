"""Asking models: requests, their journal, forecasts, the label stage."""
