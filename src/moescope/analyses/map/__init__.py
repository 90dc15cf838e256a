"""Map of experts' outputs on a plane, and how often neighbors recover expert and domain."""
