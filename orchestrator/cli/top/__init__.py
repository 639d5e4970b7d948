"""`orc top` and `orc stats`: resource usage, live."""
