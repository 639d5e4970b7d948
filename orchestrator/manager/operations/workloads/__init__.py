"""Operations on services, jobs and containers, and streams to running containers."""
