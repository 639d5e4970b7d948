"""Operations on networks, volumes, secrets and configs, and on the disk space that they take."""
