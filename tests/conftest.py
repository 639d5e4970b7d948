"""What every test relies on."""

# First of all: it sets what gRPC's core reads when it is imported.
import orchestrator  # noqa: F401
