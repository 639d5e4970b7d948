"""Lets tests in the folders below import the kits beside this file."""
