"""All tests: workers that share a machine's cores take one thread and one process each."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported, and for the processes that tests start: threads of several workers would wait in turn.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # UMAP's first use sets torch's threads too, to as many as numba takes: small models then run many times slower.
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")
    # Figures are drawn in the worker itself, but where a test asks for other processes.
    os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")
