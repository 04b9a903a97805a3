"""Asking models: requests and their journal, forecasts, the label stage, retries."""
