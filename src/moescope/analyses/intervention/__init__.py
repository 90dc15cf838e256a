"""Interventions on a prompt: what scaling, setting, ablating or replacing experts does to its next tokens."""
