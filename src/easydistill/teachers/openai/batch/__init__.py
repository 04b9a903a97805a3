"""Rows answered through OpenAI's Batch API: submitted as files, waited for, collected."""
