"""Janus, the data: preferences as system messages. What system_messages.py is made of."""
