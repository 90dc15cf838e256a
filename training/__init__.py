"""How the embedded corpus and model were made; not part of the package."""
