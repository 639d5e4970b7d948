"""`orc volume`, `orc secret` and `orc config`: data and files for containers."""
