"""What every test relies on."""

import signal

from hypothesis import settings

# Before gRPC: it sets what its core reads when it is imported.
import orchestrator  # noqa: F401

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts the tests in the background has it ignored, and so would all that they
    # start; some tests press Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is the machine's doing, not the code's.
settings.register_profile("orc", deadline=None)
settings.load_profile("orc")
