"""`orc cluster`, `orc node`, `orc context`: members, access, and which cluster is called."""
