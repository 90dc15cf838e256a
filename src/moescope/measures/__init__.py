"""Pure functions on arrays: nothing else of moescope is imported here."""
