"""Judges: what they are asked about a response, and what is read from their replies."""
