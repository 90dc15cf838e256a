"""All tests: workers that share a machine's cores take one thread each."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported, and for the processes that tests start: threads of several workers would wait in turn.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
