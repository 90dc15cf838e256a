"""Runs cut into units of work that several processes and machines share, and that survive a kill."""
